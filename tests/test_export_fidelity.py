"""A float artifact computes what transformers computes, in both formats, however the prompt is cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from export.artifact import open_artifact
from export.pipeline import export_model
from export.request import ExportRequest
from runtimes.engines.engine import Engine
from runtimes.registry import ENGINES

LENGTHS = (1, 7, 200)
# Either side of the sliding window, where others lose it or crash.
WINDOW_LENGTHS = (2046, 2047, 2048, 2064, 2100)


@pytest.fixture(scope="module")
def checkpoint(random_checkpoint: Callable[..., Path]) -> Path:
    return random_checkpoint()


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> tuple[list[int], npt.NDArray[np.float32]]:
    """Token ids, and transformers' logits after each of them."""
    import torch
    from transformers import Phi3ForCausalLM

    model = Phi3ForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager").eval()
    ids = np.random.default_rng(0).integers(3, 500, max(WINDOW_LENGTHS)).tolist()
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].numpy()
    return ids, logits


@pytest.fixture(scope="module", params=["onnx", "executorch"])
def engine(
    request: pytest.FixtureRequest, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    out = tmp_path_factory.mktemp("fp32") / request.param
    export_model(
        ExportRequest(checkpoint=str(checkpoint), out=out, format=request.param, scheme="fp32", context_tokens=2304)
    )
    artifact = open_artifact(out)
    engine = ENGINES[artifact.manifest.format](artifact, None)
    yield engine
    engine.close()


def in_pieces(engine: Engine, ids: list[int], size: int) -> npt.NDArray[np.float32]:
    """Logits after ids, prefilled `size` tokens at a time."""
    for start in range(0, len(ids), size):
        logits = engine.forward(ids[start : start + size], start)
    return logits


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("size", [1, 37, 512])
def test_logits_equal_transformers(
    engine: Engine, reference: tuple[list[int], npt.NDArray[np.float32]], length: int, size: int
) -> None:
    ids, logits = reference
    difference = np.abs(in_pieces(engine, ids[:length], size) - logits[length - 1]).max()
    assert difference < 1e-4


@pytest.mark.parametrize("length", WINDOW_LENGTHS)
def test_sliding_window_is_honoured(
    engine: Engine, reference: tuple[list[int], npt.NDArray[np.float32]], length: int
) -> None:
    ids, logits = reference
    difference = np.abs(in_pieces(engine, ids[:length], 500) - logits[length - 1]).max()
    assert difference < 1e-4


def test_eager_module_equals_transformers(
    checkpoint: Path, reference: tuple[list[int], npt.NDArray[np.float32]]
) -> None:
    from export.checkpoint.open import open_checkpoint
    from export.verify.reference import FloatModule

    opened, (ids, logits) = open_checkpoint(str(checkpoint)), reference
    length = 200
    module = FloatModule(opened, {name: tensor.read() for name, tensor in opened.tensors.items()})
    ours = module.logits(ids[:length], range(1, length + 1))
    assert np.abs(ours - logits[:length]).max() < 1e-4
