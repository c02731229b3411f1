"""Token ids to token ids: prefill, sampling, sessions. Start at loop.py."""
