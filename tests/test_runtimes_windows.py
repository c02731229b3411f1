"""Which packages and which graphics adapter are chosen on Windows, from made-up facts."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

from export.artifact import open_artifact
from export.pipeline import export_model
from export.request import ExportRequest
from runtimes.engines.directml import choose_adapter, choose_stack, open_windows
from runtimes.engines.engine import Graphics
from runtimes.engines.fake import FakeEngine
from runtimes.engines.genai_engine import load_genai, open_genai, rare_id
from runtimes.engines.onnx_engine import open_onnx
from runtimes.errors import EngineError, RequestError
from runtimes.loop.loop import TokenLoop
from runtimes.loop.tokens import NewToken, TokenRequest, TokensDone
from runtimes.registry import open_tokens
from runtimes.system.windows.dxgi import SOFTWARE, Adapter, GpuMeter, _Desc1, adapter_of, list_adapters

WINML = {"onnxruntime-genai-winml": "0.18.0", "onnxruntime-windowsml": "1.30.0", "windowsml": "2.5.96"}
DIRECTML = {"onnxruntime-genai-directml": "0.13.1", "onnxruntime-directml": "1.24.4"}


def test_a_whole_stack_is_chosen() -> None:
    assert choose_stack(WINML).name == "winml"
    assert choose_stack(DIRECTML).name == "directml"
    # Its genai lets graph capture be turned off; the other one knows no such option.
    assert choose_stack(WINML).options == {"enable_graph_capture": "0"} and not choose_stack(DIRECTML).options


@pytest.mark.parametrize(
    ("installed", "message"),
    [
        ({}, r"onnxruntime-genai-winml, onnxruntime-windowsml, windowsml missing; pip install 'phi-edge\[winml\]'"),
        (
            {"onnxruntime-directml": "1.24.4"},
            r"onnxruntime-genai-directml missing; pip install 'phi-edge\[directml\]'",
        ),
        (
            WINML | {"onnxruntime": "1.32.0"},
            "onnxruntime, onnxruntime-windowsml all write the import package onnxruntime; pip uninstall onnxruntime, "
            "then pip install --force-reinstall onnxruntime-genai-winml onnxruntime-windowsml windowsml",
        ),
        (
            DIRECTML | {"onnxruntime-genai": "0.18.0"},
            "package onnxruntime_genai; pip uninstall onnxruntime-genai, then",
        ),
        (WINML | DIRECTML, "pip uninstall onnxruntime-directml, then"),
        (
            {"onnxruntime": "1.32.0", "onnxruntime-directml": "1.24.4"},
            "all write the import package onnxruntime; pip uninstall onnxruntime onnxruntime-directml$",
        ),
        (
            {"onnxruntime-genai-directml": "0.14.1", "onnxruntime-directml": "1.24.4"},
            r"genai-directml is 0.14.1; only 0.13.1 works with the rest; pip install 'phi-edge\[directml\]'",
        ),
        (WINML | {"onnxruntime-winml": "1.0"}, "onnxruntime-winml is installed, and was malware: .*; pip uninstall"),
    ],
)
def test_other_installs_are_refused(installed: dict[str, str], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        choose_stack(installed)


def adapter(name: str, luid: str, dedicated: float, software: bool = False) -> Adapter:
    return Adapter(name=name, luid=luid, dedicated_bytes=int(dedicated * 1e9), shared_bytes=int(8e9), software=software)


LAPTOP = [
    adapter("Intel Iris Xe", "0:4711", 0.1),
    adapter("NVIDIA RTX 4060", "0:4712", 8.3),
    adapter("Microsoft Basic Render Driver", "0:99", 0, software=True),
]


def test_the_adapter_with_most_memory_of_its_own() -> None:
    assert choose_adapter(LAPTOP).name == "NVIDIA RTX 4060"
    assert choose_adapter(LAPTOP, "0:4711").name == "Intel Iris Xe"
    assert choose_adapter(LAPTOP, "iris").name == "Intel Iris Xe"
    assert choose_adapter(LAPTOP, "basic render").software
    assert choose_adapter(LAPTOP, "0").name == "Intel Iris Xe"  # a number is a place, though 4060 has a 0 too


def test_an_adapter_without_direct3d_12_is_passed_over() -> None:
    old = dataclasses.replace(LAPTOP[1], d3d12=False)
    assert choose_adapter([LAPTOP[0], old]).name == "Intel Iris Xe"
    with pytest.raises(EngineError, match=r"RTX 4060 .*without Direct3D 12.*: DirectML cannot use it; there are: 0: I"):
        choose_adapter([LAPTOP[0], old], "rtx")


def test_an_adapter_is_for_directml_on_windows(tiny_onnx: Path, tiny_directml: Path) -> None:
    wanted = Graphics(adapter="0")
    with pytest.raises(
        RequestError, match="exported for DirectML, WebGPU or CUDA, and this one is for cpu: remove them"
    ):
        open_tokens(open_artifact(tiny_onnx), graphics=wanted)
    with pytest.raises(RequestError, match="here the CPU runs this artifact"):
        open_tokens(open_artifact(tiny_directml), graphics=wanted)


@pytest.mark.parametrize(
    ("adapters", "wanted", "message"),
    [
        ([], None, r"this would run on the CPU \(adapters: none\); export for --target cpu, or allow the CPU"),
        (LAPTOP[2:], None, r"would run on the CPU \(adapters: 0: Microsoft Basic .* 0.0 GB of its own, software\)"),
        (LAPTOP, "amd", "adapter 'amd' matches 0; there are: 0: Intel Iris Xe .LUID 0:4711, 0.1 GB"),
        (LAPTOP, "0:47", "matches 0"),
        (LAPTOP, "i", "matches 3"),
        (LAPTOP, "3", "adapter '3' matches 0; .*; 2: Microsoft"),
    ],
)
def test_no_adapter_is_no_silent_cpu(adapters: list[Adapter], wanted: str | None, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        choose_adapter(adapters, wanted)


def test_a_description_is_read() -> None:
    desc = _Desc1(
        description="A", dedicated_video=8 << 30, shared=16 << 30, luid_low=4712, luid_high=-1, flags=SOFTWARE
    )
    assert adapter_of(desc, d3d12=False) == Adapter(
        name="A", luid="-1:4712", dedicated_bytes=8 << 30, shared_bytes=16 << 30, software=True, d3d12=False
    )


@pytest.mark.skipif(sys.platform == "win32", reason="for where there is no Windows")
def test_elsewhere_there_is_no_adapter(tiny_onnx: Path) -> None:
    assert list_adapters() == []
    assert GpuMeter().usage() is None
    with pytest.raises(EngineError, match=r"DirectML's packages|all write"):
        open_windows(open_artifact(tiny_onnx), None)


def tokens(loop: TokenLoop, ids: list[int], session: str | None = None) -> tuple[list[int], TokensDone]:
    records = list(loop.stream(TokenRequest(ids=ids, max_new_tokens=12, session=session)))
    done = records[-1]
    assert isinstance(done, TokensDone) and done.error is None
    return [record.id for record in records if isinstance(record, NewToken)], done


PROMPT = [1, 17, 42, 99, 300, 7, 21, 5, 250]


@pytest.mark.parametrize("continues", [True, False], ids=["appends", "chooses"])
def test_genai_under_our_loop_gives_our_tokens(tiny_directml: Path, continues: bool) -> None:
    """The artifact for DirectML, float16 and all, in stock onnxruntime-genai on the CPU; both ways to go on."""
    artifact = open_artifact(tiny_directml)
    engine = load_genai(artifact, 1, provider=None, options={})
    engine.continues = continues
    genai, plain = TokenLoop(engine), TokenLoop(open_onnx(artifact, 1))
    longer = [*PROMPT, 33, 4]
    for ids in (PROMPT, longer, [*PROMPT[:4], 8] * 150):
        theirs, done = tokens(genai, ids, "a")
        # Half precision sums differ with the pieces, so both prefill alike.
        assert theirs == tokens(plain, ids, "a" if continues else None)[0]
        assert done.usage.reused + done.usage.prefilled == len(ids)
        assert (done.usage.reused > 0) == (continues and ids is not PROMPT)
    genai.close()
    plain.close()


def test_an_engine_that_cannot_continue_gets_whole_prompts() -> None:
    engine = FakeEngine(continues=False, context_tokens=2000)
    loop = TokenLoop(engine)
    tokens(loop, list(range(3, 200)) * 5, "a")
    tokens(loop, list(range(3, 200)) * 5 + [7], "a")
    assert [call for call in engine.calls if call[0] == 0] == [(0, 985), (0, 986)]
    assert all(count == 1 for start, count in engine.calls if start)


def test_genai_needs_its_config(tmp_path: Path) -> None:
    request = ExportRequest(
        checkpoint="tiny", out=tmp_path / "o", target="windows-directml", scheme="int4-b32", lengths_as_inputs=True
    )
    with pytest.raises(EngineError, match="without --lengths-as-inputs"):
        open_genai(export_model(request), None)


def test_the_generators_own_stop_is_a_token_like_any_other(tiny_directml: Path) -> None:
    artifact = open_artifact(tiny_directml)
    engine, plain = load_genai(artifact, 1, provider=None, options={}), open_onnx(artifact, 1)
    engine.continues = False
    given = [rare_id(artifact), 5, rare_id(artifact)]
    ours, theirs = plain.forward(PROMPT, 0), engine.forward(PROMPT, 0)
    for position, id in enumerate(given, len(PROMPT)):
        ours, theirs = plain.forward([id], position), engine.forward([id], position)
        assert abs(ours - theirs).max() < 0.05
    with pytest.raises(EngineError, match="goes on by one token from 12, or starts again at 0"):
        engine.forward([5, 6], 12)
