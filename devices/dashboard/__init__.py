"""`phi-edge history --html`: the figures of a history as one page to look at every morning."""
