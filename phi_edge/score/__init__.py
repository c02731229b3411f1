"""`phi-edge score`: what is read and asked, the engine that is scored, and the figures."""
