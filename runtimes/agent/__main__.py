"""`python -m runtimes.agent`: the name is part of the protocol (docs/agent-protocol.md); the code is in server.py."""

from __future__ import annotations

import os
import sys

from runtimes.agent.server import main

if __name__ == "__main__":
    exit_code = main()
    sys.stderr.flush()
    # Not sys.exit: the interpreter aborts when it is finalised while a thread waits for stdin.
    os._exit(exit_code)
