"""Reading finished models, ours and those of other tools: what a graph has, what is known to be wrong, what differs."""
