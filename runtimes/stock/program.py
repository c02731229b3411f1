"""ExecuTorch's own runner with a .pte of anybody's: what is beside it. runtimes.agent.text_runner runs it."""

from __future__ import annotations

from pathlib import Path

from export.inspect.names import is_foreign, models_of
from runtimes.errors import EngineError
from runtimes.stock.model import StockModel

TOKENIZER = "tokenizer.json"
OTHERS = ("tokenizer.model", "tokenizer.bin")  # which the runner reads, and the tokenizers library does not


def look_at_program(path: Path) -> StockModel | None:
    """None for what has no .pte. Raises EngineError where there are several, or where the tokenizer is missing."""
    models = models_of(path) if is_foreign(path) else []
    if not models or models[0].suffix != ".pte":
        return None
    if len(models) > 1:
        names = ", ".join(model.name for model in models)
        raise EngineError(f"{path}: has several programs ({names}); give the file that is meant")
    program = models[0]
    tokenizer = program.parent / TOKENIZER
    if not tokenizer.is_file():
        other = next((name for name in OTHERS if (program.parent / name).is_file()), None)
        raise EngineError(
            f"{program}: ExecuTorch's runner takes text, and its tokenizer is not known: "
            + (f"there is {other}, and the prompt's length is counted with {TOKENIZER}; " if other else "")
            + f"put the checkpoint's {TOKENIZER} beside it"
        )
    return StockModel(
        path=path,
        engine="executorch",
        files=[program, tokenizer],
        context_tokens=None,
        vocab_size=None,
        special_ids=frozenset(),
        tokenizer=tokenizer,
    )
