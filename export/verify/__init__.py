"""An artifact compared with its checkpoint's model. Start at conformance.py."""
