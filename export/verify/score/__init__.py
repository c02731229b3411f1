"""Scores: how much of the float model an artifact has kept, with intervals. Start at score.py."""
