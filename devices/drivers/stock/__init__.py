"""Models that other tools exported, opened on a device by the engines that they were exported for."""
