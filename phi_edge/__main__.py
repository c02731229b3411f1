"""`python -P -m phi_edge` is the command `phi-edge`."""

from __future__ import annotations

from phi_edge.main import main

if __name__ == "__main__":
    main(prog_name="phi-edge")
