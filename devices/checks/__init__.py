"""What `phi-edge doctor` checks, per kind of device. Start at doctor.py."""
