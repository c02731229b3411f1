"""Scores: how much of the float model an artifact has kept, with intervals.

blocks.py cuts the text, losses.py compares token by token, figures.py makes the intervals.
"""
