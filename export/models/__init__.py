"""One model, one file, named as model_type in config.json."""
