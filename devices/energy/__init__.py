"""Energy that a device used during a request: told by the device itself, or by a meter beside it."""
