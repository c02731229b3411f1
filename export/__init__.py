"""A Phi-3 checkpoint in, a sealed artifact folder out (ONNX or ExecuTorch). Importing this imports nothing heavy."""
