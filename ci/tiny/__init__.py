"""How the embedded tiny model is trained. CI does not run this."""
