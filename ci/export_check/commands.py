"""One command of phi-edge in a process of its own: its lines as they come, its exit code as a finding."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ci.export_check.finding import Finding
from runtimes.terminal import harmless, one_line

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Commands:
    """How they are run: in `folder`, with what they print going to `say` and into a file of `logs`.

    `github` puts their lines into a fold of GitHub's log, in which none is obeyed: a model may answer `::set-env`.
    """

    folder: Path
    logs: Path
    github: bool
    say: Callable[[str], None]

    def run(self, verb: str, words: Sequence[str]) -> Finding:
        """Run `phi-edge VERB WORDS`. Exit code 1 is a missed limit, any other but 0 an error."""
        command = [sys.executable, "-P", "-m", "phi_edge", verb, *words]
        # Of this checkout, as the judging is.
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        closing = self._fold(f"phi-edge {verb}")
        last = ""
        with (
            (self.logs / f"{verb}.log").open("w", encoding="utf-8") as log,
            subprocess.Popen(
                command,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONPATH": path},
                encoding="utf-8",
                errors="replace",
            ) as process,
        ):
            assert process.stdout is not None
            for line in process.stdout:
                log.write(line)
                self.say(harmless(line.rstrip("\n")))
                last = line.strip() or last
        for line in closing:
            self.say(line)
        return _finding(verb, process.returncode, one_line(last))

    def _fold(self, title: str) -> Sequence[str]:
        """Open a fold of GitHub's log; the lines that close it."""
        if not self.github:
            self.say(f"== {title}")
            return ()
        token = secrets.token_hex(16)
        self.say(f"::group::{title}")
        self.say(f"::stop-commands::{token}")
        return f"::{token}::", "::endgroup::"


def _finding(verb: str, code: int, last: str) -> Finding:
    reason = last.removeprefix("Error: ") or "it printed nothing"
    if code == 0:
        return Finding(step=verb, name=verb, outcome="pass", said="done")
    if code == 1:
        return Finding(step=verb, name=verb, outcome="missed", said=reason)
    return Finding(step=verb, name=verb, outcome="error", said=f"{reason} (exit code {code})")
