"""Ways to a device: run programs, move files, talk to an agent. The interface is host.py."""
