"""The GGUF file, as llama.cpp's architecture `phi3` reads it."""
