"""`python -m runtimes.agent.text_runner`: one answer of ExecuTorch's own text runner, in a process of its own.

A Question comes as a line of JSON on stdin, an Answer goes out as one on stdout. The runner takes text and gives text
piece by piece, a token each; its bindings take no ids, and do not go on behind a stop id.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

from export.strict import build, parse_json
from runtimes.agent.facts import age_s, cached_before, load_mode
from runtimes.agent.lines import LineWriter
from runtimes.api import MemoryUse
from runtimes.engines.executorch_engine import check_header, load_library
from runtimes.errors import EngineError, RuntimesError
from runtimes.stock.question import Answer, Question
from runtimes.system.energy.meter import EnergyMeter
from runtimes.system.memory import MemorySampler

LEAST_PREFILL_S = 0.02  # the runner counts whole milliseconds: of a shorter prompt they say too little


def answer(question: Question, memory: MemorySampler) -> Answer:
    """Load, warm up, ask. Raises EngineError."""
    program = Path(question.model)
    check_header(program)
    cached_share = cached_before([program], cold=question.cold)
    library = load_library()
    try:
        from executorch.extension.llm.runner import GenerationConfig, Stats, TextLLMRunner
    except (ImportError, RuntimeError) as error:
        raise EngineError(f"this executorch has no text runner ({error}); install the wheel") from error
    if question.threads is not None:
        library._unsafe_reset_threadpool(question.threads)
    pieces: list[str] = []
    stamps: list[float] = []
    figures: list[tuple[int, float]] = []

    def keep(stats: Stats) -> None:
        prefill_ms = stats.prompt_eval_end_ms - stats.inference_start_ms
        figures.append((stats.num_prompt_tokens, prefill_ms / 1000))

    try:
        began = time.perf_counter()
        runner = TextLLMRunner(question.model, question.tokenizer)
        # It loads when it is first asked.
        first = GenerationConfig(echo=False, temperature=0.0, max_new_tokens=1, warming=True)
        runner.generate(question.texts[0][:1], first, lambda piece: None, lambda stats: None)
        runner.reset()
        load_s, open_s = age_s(), time.perf_counter() - began
        config = GenerationConfig(echo=False, temperature=0.0, max_new_tokens=question.new_tokens)
        text = _warm_up(runner, config, question) if question.warm_up else question.texts[0]
        accepted = 0.0

        def take(piece: str) -> None:
            stamps.append(time.perf_counter() - accepted)
            pieces.append(piece)

        with EnergyMeter() as meter:
            accepted = time.perf_counter()
            runner.generate(text, config, take, keep)
    except Exception as error:  # the bindings raise nothing narrower
        raise EngineError(f"ExecuTorch's runner failed on {program}: {error}") from error
    ((prompt_tokens, prefill_s),) = figures
    return Answer(
        pieces=pieces,
        at_s=stamps,
        prompt_tokens=prompt_tokens,
        prefill_s=prefill_s if prefill_s >= LEAST_PREFILL_S else None,
        load_s=load_s,
        open_s=open_s,
        load_mode=load_mode([program]),
        cached_share=cached_share,
        energy_j=meter.joules,
        energy_source=meter.source,
        memory=memory.use() or MemoryUse(),
        versions={
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("executorch", "torch")},
        },
    )


def _warm_up(runner: Any, config: Any, question: Question) -> str:
    """Answer texts, unmeasured, until an answer is as long as it should be; -> that text. The first where none is."""
    for text in question.texts:
        pieces: list[str] = []
        runner.generate(text, config, pieces.append, lambda stats: None)
        runner.reset()
        if len(pieces) == question.new_tokens:
            return text
    return question.texts[0]


def main() -> int:
    """See the module; -> the exit code."""
    out = LineWriter.over_stdout()
    question = build(Question, parse_json(sys.stdin.buffer.readline()), "the question", EngineError)
    with MemorySampler() as memory:
        try:
            found = answer(question, memory)
        except RuntimesError as error:
            found = Answer(error=" ".join(str(error).split()))
    out.write(dataclasses.asdict(found))
    os._exit(0)  # torch's and ExecuTorch's thread pools need not be shut down


if __name__ == "__main__":
    sys.exit(main())
