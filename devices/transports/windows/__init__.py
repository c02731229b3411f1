"""A Windows machine behind its OpenSSH server. Start at host.py."""
