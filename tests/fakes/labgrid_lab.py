"""A real labgrid coordinator with a real exporter on 127.0.0.1, and the places of a small lab."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

LIMIT_S = 60.0


class LabgridLab:
    """`with LabgridLab(folder, ["pi5"]) as lab:` its address is `lab.coordinator`. Each place has one resource."""

    def __init__(self, folder: Path, places: list[str]) -> None:
        self._folder, self._places = folder, places
        self._running: list[subprocess.Popen[str]] = []
        self.coordinator = ""

    def __enter__(self) -> LabgridLab:
        # As a coordinator saves its places, which it does every 15 s, and reads them when it starts.
        match = "  matches:\n  - exporter: here\n    group: {0}\n    cls: NetworkService\n"
        places = "".join(f"{place}:\n{match.format(place)}" for place in self._places)
        (self._folder / "places.yaml").write_text(places)
        coordinator = self._start("coordinator", "-l", "127.0.0.1:0")
        assert coordinator.stdout is not None
        self.coordinator = coordinator.stdout.readline().rpartition(" ")[2].strip()
        resources = "".join(
            f"{place}:\n  NetworkService:\n    address: 127.0.0.1\n    username: nobody\n" for place in self._places
        )
        (self._folder / "exporter.yaml").write_text(resources)
        self._start("exporter", "-c", self.coordinator, "-n", "here", "exporter.yaml")
        until_s = time.monotonic() + LIMIT_S
        while len(self.client("resources").splitlines()) < len(self._places) and time.monotonic() < until_s:
            time.sleep(0.05)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in reversed(self._running):
            process.kill()
            process.communicate()

    def restart(self) -> None:
        """A new coordinator at the same address, with the same places."""
        old = self._running.pop(0)
        old.kill()
        old.communicate()
        again = self._start("coordinator", "-l", self.coordinator)
        assert again.stdout is not None and "listening" in again.stdout.readline()

    def client(self, *words: str) -> str:
        """What labgrid's own client prints."""
        command = [sys.executable, "-m", "labgrid.remote.client", "-x", self.coordinator, *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=True, cwd=self._folder)
        return done.stdout

    def _start(self, name: str, *words: str) -> subprocess.Popen[str]:
        with (self._folder / f"{name}.log").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", f"labgrid.remote.{name}", *words],
                stdout=subprocess.PIPE if name == "coordinator" else log,
                stderr=log,
                text=True,
                cwd=self._folder,
            )
        self._running.append(process)
        return process
