"""An ExecuTorch artifact's one file: the program, with its weights inside."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from export.checkpoint.tokens import looks_ahead
from export.job import Job
from export.to_executorch import program
from export.to_executorch.sizes import LOGITS_ROWS, PREFILL_TOKENS
from export.weights.slots import Interleaved, SlotId, Slots
from export.weights.weight_file import WeightFile

LOOK_AHEAD = (
    "tokenizer.json splits text with a look-ahead: an ExecuTorch runner must be built with "
    "SUPPORT_REGEX_LOOKAHEAD=ON, and link that library whole"
)


class ExecuTorchLayout:
    """model.pte, with its weights inside."""

    files: tuple[str, ...] = ("model.pte",)

    def __init__(self, job: Job) -> None:
        tokens = job.checkpoint.tokens
        self.program = program.build(
            job.checkpoint.config,
            job.scheme,
            context_tokens=job.context_tokens,
            ring_tokens=job.ring_tokens,
            bos=tokens.bos,
            stop=list(tokens.stop),
        )
        self.slots: Slots = self.program.slots
        self.coverage = self.program.coverage
        self.interleaved: Interleaved = self.program.interleaved
        self.activations = "int8 by row, dynamic, in every linear layer" if job.scheme.bits else "float32"
        ring = f", a ring of {job.ring_tokens} tokens" if job.ring_tokens else ""
        self.options: Mapping[str, Any] = {
            "backend": "xnnpack",
            "delegates": job.model.layers + 1,
            "kv_cache": f"float32, state of the program{ring}",
            "logits": "last token; several, if asked for",
            "logits_rows": LOGITS_ROWS,
            "prefill_tokens": min(PREFILL_TOKENS, job.context_tokens),
        }
        self.notes: Sequence[str] = (LOOK_AHEAD,) if looks_ahead(json.loads(job.checkpoint.tokenizer)) else ()

    def fill(self, sink: WeightFile) -> None:
        """Nothing: the rotary tables are constants of the program."""

    def finish(self, folder: Path, digests: Mapping[SlotId, str]) -> None:
        self.program.finish(folder / "model.pte", digests)
