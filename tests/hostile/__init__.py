"""Hostile and broken input, generated: kinds.py lists the kinds, test_generated.py runs them.

Every input is made from a seed, so that a failure is reproduced by its kind and number.
"""
