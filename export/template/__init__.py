"""Chat templates: the language in which they are written, and how much time and memory a rendering may take."""
