"""What bench, run and doctor ask of a device, per kind of device. The interface is driver.py, the table table.py."""
