"""The model as an ONNX graph of the operators that onnxruntime has fast kernels for. Start at layout.py."""
