"""`python -m runtimes.agent`: the name is part of the protocol (docs/agent-protocol.md); the code is in server.py."""

from __future__ import annotations

import contextlib
import os
import sys

from runtimes.agent.server import main

INTERRUPTED = 130

if __name__ == "__main__":
    try:
        exit_code = main()
    except SystemExit as end:  # --help
        exit_code = end.code if isinstance(end.code, int) else 1
    except KeyboardInterrupt:
        exit_code = INTERRUPTED
    with contextlib.suppress(OSError):  # nobody may read it
        sys.stderr.flush()
    # Not sys.exit: the interpreter aborts when it is finalised while a thread waits for stdin.
    os._exit(exit_code)
