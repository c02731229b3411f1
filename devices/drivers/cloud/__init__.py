"""Services that run models of their own, as devices of the lab."""
