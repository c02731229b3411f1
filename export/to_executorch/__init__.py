"""The model as one ExecuTorch program, lowered to XNNPACK. Start at layout.py."""
