"""Text around token ids: chat template, tokenizer, whole characters, stop strings. Start at runtime.py."""
