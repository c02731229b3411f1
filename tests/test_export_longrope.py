"""Long rope: short factors up to the original length, long ones beyond it for every token, in both formats."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from export.artifact import Artifact
from export.pipeline import export_model
from export.request import ExportRequest
from runtimes.api import GenerateRequest, TokenEvent
from runtimes.registry import ENGINES, open_runtime

ORIGINAL = 64  # of conftest's longrope_checkpoint
LENGTHS = (1, ORIGINAL - 1, ORIGINAL, ORIGINAL + 1, ORIGINAL + 40)
IDS = np.random.default_rng(0).integers(3, 500, 128).tolist()


@pytest.fixture(scope="module")
def checkpoint(longrope_checkpoint: Path) -> Path:
    return longrope_checkpoint


class Reference:
    """transformers, with the whole sequence computed anew for every length: nothing is left of a shorter one."""

    def __init__(self, checkpoint: Path) -> None:
        from transformers import Phi3ForCausalLM

        self.model = Phi3ForCausalLM.from_pretrained(checkpoint, attn_implementation="eager").eval()

    def logits(self, ids: list[int]) -> npt.NDArray[np.float32]:
        import torch

        with torch.no_grad():
            result: npt.NDArray[np.float32] = self.model(torch.tensor([ids]), use_cache=False).logits[0, -1].numpy()
        return result


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> Reference:
    return Reference(checkpoint)


@pytest.fixture(scope="module", params=["onnx", "executorch"])
def artifact(request: pytest.FixtureRequest, longrope: Callable[[str], Artifact]) -> Artifact:
    return longrope(request.param)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("size", [1, 7, 160])
def test_logits_either_side_of_the_switch(artifact: Artifact, reference: Reference, length: int, size: int) -> None:
    engine = ENGINES[artifact.manifest.format](artifact, None)
    assert engine.switch_tokens == ORIGINAL
    for start in range(0, length, size):
        end = min(start + size, length)
        logits = engine.forward(IDS[start:end], start, long=length > ORIGINAL)
    assert np.abs(logits - reference.logits(IDS[:length])).max() < 1e-4
    engine.close()


@pytest.mark.parametrize("prompt", [ORIGINAL - 8, ORIGINAL, ORIGINAL + 1])
def test_a_generation_that_crosses_the_switch(artifact: Artifact, reference: Reference, prompt: int) -> None:
    expected = IDS[:prompt]
    for _ in range(24):
        expected.append(int(reference.logits(expected).argmax()))
    runtime = open_runtime(artifact)
    request = GenerateRequest(token_ids=IDS[:prompt], max_new_tokens=24, ignore_stop_ids=True)
    ours = [event.id for event in runtime.generate(request) if isinstance(event, TokenEvent)]
    assert ours == expected[prompt:]
    runtime.close()


@pytest.mark.parametrize("artifact", ["executorch"], indirect=True)
def test_the_stock_runner_is_told_to_end_at_the_switch(artifact: Artifact) -> None:
    from executorch.extension.pybindings import _portable_lib

    ENGINES["executorch"](artifact, None).close()  # registers the kernels
    program = _portable_lib._load_program(str(artifact.path("model.pte")))
    assert program.load_method("get_max_context_len").call(()) == [ORIGINAL]


@pytest.mark.parametrize("format", ["onnx", "executorch"])
def test_a_short_context_exports_the_short_table_alone(
    checkpoint: Path, reference: Reference, tmp_path: Path, format: str
) -> None:
    request = ExportRequest(
        checkpoint=str(checkpoint), out=tmp_path / "out", format=format, scheme="fp32", context_tokens=ORIGINAL
    )
    artifact = export_model(request)
    rope = artifact.manifest.rope
    assert (rope.type, rope.switch_tokens) == ("longrope", None)
    engine = ENGINES[artifact.manifest.format](artifact, None)
    logits = engine.forward(IDS[:ORIGINAL], 0)
    assert np.abs(logits - reference.logits(IDS[:ORIGINAL])).max() < 1e-4
    engine.close()
