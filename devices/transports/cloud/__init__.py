"""Models that a service runs: their streaming protocols, and the generate interface over them."""
