"""LoRA adapters: read strictly, and merged into the base's weights while these stream."""
