"""A checkpoint folder, read strictly: config, tensors, tokenizer. Start at open.py."""
