"""Weights through the export: read in chunks, quantised, written into their slots, journalled. Start at stream.py."""
