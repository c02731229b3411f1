"""The Python agent over the fake engine that ships: `python tests/fakes/agent.py [--fake-forward-s S] ARTIFACT ...`."""

from __future__ import annotations

import argparse
import os
import sys

from runtimes.agent.server import main
from runtimes.engines.fake import fake_opener


def fake_agent(forward_s: float = 0.0) -> list[str]:
    """The command, before the artifact; each of its forwards takes so long. -P: this folder is no import path."""
    return [sys.executable, "-P", __file__, "--fake-forward-s", str(forward_s)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--fake-forward-s", type=float, default=0.0)
    options, rest = parser.parse_known_args()
    exit_code = main(rest, fake_opener(forward_s=options.fake_forward_s))
    sys.stderr.flush()
    os._exit(exit_code)  # as runtimes.agent does
