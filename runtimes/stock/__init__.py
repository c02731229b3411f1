"""Models that other tools exported, in the engines that they were exported for: to be measured, and nothing else."""
