"""A browser of this machine as a device: the agent protocol, spoken by a page."""
