"""What an export has finished, so that the same command can go on after an interruption with the same bytes.

One line for each finished stage of the forward pass: the SHA-256 of every slot it filled, the meter's sums, and the
hidden state that the next stage starts from (in a file beside it). A line is believed only if the bytes still match.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import torch
from torch import Tensor

from export.artifact import MANIFEST, sha256_file
from export.errors import SpaceError
from export.weights.loss import LossMeter
from export.weights.slots import SlotId
from export.weights.weight_file import WeightFile
from export.weights.work_folder import JOURNAL, LOCK, take_over

# The values of a long calibration text take a hundred megabytes a stage: then only the last ones are kept.
SMALL_BYTES = 8 << 20
KEPT_STAGES = 2


@dataclass(frozen=True)
class Stage:
    """A finished stage."""

    number: int
    slots: Mapping[str, str]  # slot's name -> SHA-256 of its bytes
    meter: Mapping[str, Any]
    shape: list[int]  # of the values it ended with
    values: str  # SHA-256 of their file


class Journal:
    """The journal of one job in its work folder. Holding it open locks the folder against a second export."""

    def __init__(self, folder: Path, job: str) -> None:
        self.folder, self.job = folder, job
        self.path = folder / JOURNAL
        self.sensitivities = folder / "sensitivity.json"  # what a budget's pass has measured
        self.stages: list[Stage] = []

    def __enter__(self) -> Journal:
        take_over(self.folder)
        self.lock = (self.folder / LOCK).open("a")
        if not lock(self.lock):
            self.lock.close()
            raise SpaceError(f"{self.folder}: another export is writing here; wait for it, or give another OUT")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.lock.close()

    def is_empty(self) -> bool:
        """Whether nothing, of this job or another, is finished here: no stage and no measurement."""
        stages = self.path.read_bytes().splitlines()[1:] if self.path.is_file() else []
        return not stages and not self.sensitivities.is_file()

    def is_of_this_job(self) -> bool:
        """Whether what lies in the work folder is an earlier run's of this very job."""
        if not self.path.is_file():
            return False
        with self.path.open(encoding="utf-8") as file:
            return file.readline() == self._first_line()

    def is_finished(self, out: Path) -> bool:
        """Whether this very job has sealed `out`, and was interrupted before it could remove its work folder."""
        return (out / MANIFEST).is_file() and self.is_of_this_job()

    def starts_anew(self, *, fresh: bool) -> bool:
        """Whether no earlier run's stages count. Then they are forgotten; with `fresh` what was measured, too."""
        if fresh:
            self.sensitivities.unlink(missing_ok=True)
        elif self.is_of_this_job():
            return False
        self.path.unlink(missing_ok=True)
        return True

    def resume(self, sink: WeightFile) -> int:
        """Take over every stage whose bytes are still what they were; -> how many."""
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.is_of_this_job() else []
        ids = {str(id): id for id in sink.slots}
        for line in lines[1:]:
            try:
                stage = Stage(**json.loads(line))
            except (ValueError, TypeError):  # a line cut off by the interruption
                break
            if stage.number != len(self.stages) or not self._slots_match(stage, sink, ids):
                break
            self.stages.append(stage)
        while self.stages and not self._values_match(self.stages[-1]):
            self.stages.pop()
        for stage in self.stages:
            sink.restore({ids[name]: digest for name, digest in stage.slots.items()})
        self._rewrite()
        return len(self.stages)

    def last(self) -> tuple[Tensor, LossMeter]:
        """The values and the meter that the last finished stage ended with."""
        stage = self.stages[-1]
        data = bytearray(self._values(stage.number).read_bytes())
        # A float scheme has no text to compute: its values are empty, which frombuffer refuses.
        values = torch.frombuffer(data, dtype=torch.float32) if data else torch.empty(0)
        return values.view(stage.shape), LossMeter(**stage.meter)

    def record(self, values: Tensor, meter: LossMeter, slots: Mapping[SlotId, str]) -> None:
        """Note that the next stage is finished: its bytes are in the weight file by now."""
        number = len(self.stages)
        self._values(number).write_bytes(values.contiguous().numpy().tobytes())
        names = {str(id): digest for id, digest in slots.items()}
        stage = Stage(number, names, asdict(meter), list(values.shape), sha256_file(self._values(number)))
        self.stages.append(stage)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(stage)) + "\n")
        if number >= KEPT_STAGES and values.nbytes > SMALL_BYTES:
            self._values(number - KEPT_STAGES).unlink(missing_ok=True)

    def _slots_match(self, stage: Stage, sink: WeightFile, ids: Mapping[str, SlotId]) -> bool:
        return all(name in ids and sink.stored_sha256(ids[name]) == digest for name, digest in stage.slots.items())

    def _values_match(self, stage: Stage) -> bool:
        values = self._values(stage.number)
        return values.is_file() and sha256_file(values) == stage.values

    def _values(self, number: int) -> Path:
        return self.folder / f"stage-{number}.values"

    def _first_line(self) -> str:
        return json.dumps({"job": self.job}) + "\n"

    def _rewrite(self) -> None:
        lines = [json.dumps(asdict(stage)) + "\n" for stage in self.stages]
        part = self.path.with_suffix(".part")
        part.write_text("".join([self._first_line(), *lines]), encoding="utf-8")
        part.replace(self.path)


def lock(file: TextIO) -> bool:
    """Lock an open file until it is closed; False where another process has. Windows has no fcntl: no lock there."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
