"""A model's tokenizer as the tokenizers library has it, with limits."""
