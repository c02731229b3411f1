"""Loaded models in this process, one file per engine; ids in, logits out. The interface is engine.py."""
