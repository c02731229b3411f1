"""What `phi-edge doctor` looks at, per kind of device. Start at doctor.py."""
