"""`phi-edge serve`: an artifact behind OpenAI's HTTP interface. Start at app.py."""
