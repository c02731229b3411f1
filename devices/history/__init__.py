"""Measurements of many nights in one folder that only grows, and their figures as a table of DuckDB."""
