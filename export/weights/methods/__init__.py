"""How the codes of a matrix are found: data-free, weighted, gptq, and bits by a budget. Start at method.py."""
