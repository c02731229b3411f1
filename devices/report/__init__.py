"""Measurements side by side, as markdown, JSON or one HTML page."""
