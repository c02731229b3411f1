"""Raw measurements and the metrics that are computed from them. Start at bench.py."""
