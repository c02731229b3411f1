"""A runtime on a device in, measurements, reports and verdicts out."""
