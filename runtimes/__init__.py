"""An artifact in, a stream of token events out, on every target. Importing this imports no engine."""
