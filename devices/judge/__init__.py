"""Measurements in, verdicts out: budgets, comparisons, JUnit. Start at gate.py."""
