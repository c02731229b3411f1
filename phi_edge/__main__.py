"""The command `phi-edge`, which is `python -P -m phi_edge` too."""

from __future__ import annotations

import atexit
import gc
import io
import signal
import sys


def run() -> None:
    """Do what the command line says. A Ctrl-C while our modules are imported, which nothing could catch, ends the
    process without a traceback."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:  # not so in a job that a shell runs in the background
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    # At its end Python looks at every object once more, which takes it a second after an export; what the process has
    # is given back in any case.
    atexit.register(gc.freeze)
    from phi_edge.main import main

    signal.signal(signal.SIGINT, handler)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # None where it is closed
            stream.reconfigure(errors="backslashreplace")  # of a character that cp1252 or latin-1 does not have
    main(prog_name="phi-edge")


if __name__ == "__main__":
    run()
