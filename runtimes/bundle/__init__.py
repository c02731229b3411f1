"""What an app ships, made from an artifact: the model's files and source code that runs them."""
