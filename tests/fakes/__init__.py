"""Fakes that speak the real wire protocols, and emulated devices. They are in no wheel and go to no device."""
