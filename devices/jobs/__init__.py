"""Artifacts x devices x workloads in one job that survives being killed. Start at run.py."""
