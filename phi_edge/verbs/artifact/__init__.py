"""The verbs that look at finished artifacts."""
