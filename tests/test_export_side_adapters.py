"""LoRA adapters beside the weights: exported once, chosen by each request, in our engine and in the stock one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import torch
from click.testing import CliRunner
from tokenizers import Tokenizer

from export.artifact import Artifact, open_artifact, verify
from export.pipeline import export_model
from export.request import AdapterChoice, ExportRequest
from fakes.lora import IDS, Trained
from fakes.served import served
from phi_edge.main import main
from phi_edge.serve.app import Settings
from runtimes.api import GenerateRequest
from runtimes.engines.engine import AdaptableEngine, Engine, EngineOpener
from runtimes.engines.genai_engine import open_genai
from runtimes.engines.onnx_engine import open_onnx
from runtimes.errors import RequestError
from runtimes.loop.tokens import NewToken, TokenRequest, TokensDone
from runtimes.registry import open_runtime, open_tokens

# PEFT and transformers warn of their own deprecations.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
TINY = Path(__file__).parent.parent / "export" / "tiny"
BEGINNING, LESSON = "A lamp", "A lamp is a small sun in a glass."
ENGINES: dict[str, EngineOpener] = {"onnx": open_onnx, "genai": open_genai}


@pytest.fixture(scope="module")
def trained() -> Trained:
    """The tiny model with two adapters, of different matrices and ranks."""
    trained = Trained(TINY, {"r": 16, "target_modules": ["qkv_proj", "gate_up_proj", "down_proj"]}, shaken=False)
    trained.train(torch.tensor([Tokenizer.from_file(str(TINY / "tokenizer.json")).encode(LESSON).ids]), 60)
    trained.add("other", {"r": 3, "lora_alpha": 9, "target_modules": ["o_proj", "down_proj", "lm_head"]})
    return trained


@pytest.fixture(scope="module")
def folders(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("adapters") / "default"
    trained.save(folder)
    return folder, folder / "other"


@pytest.fixture(scope="module")
def artifact(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """In float, the second adapter by half."""
    return export_model(
        ExportRequest(
            checkpoint="tiny",
            out=tmp_path_factory.mktemp("side") / "out",
            scheme="fp32",
            context_tokens=128,
            side_adapters=(AdapterChoice(str(folders[0])), AdapterChoice(str(folders[1]), 0.5)),
        )
    )


@pytest.fixture(scope="module")
def expected(trained: Trained) -> dict[str | None, torch.Tensor]:
    """PEFT's logits for each adapter."""
    logits: dict[str | None, torch.Tensor] = {"default": trained.logits()}
    trained.model.add_weighted_adapter(["other"], [0.5], "part", combination_type="linear")
    trained.model.set_adapter("part")
    logits["other"] = trained.logits()
    with trained.model.disable_adapter():
        logits[None] = trained.logits()
    return logits


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, artifact: Artifact) -> Iterator[Engine]:
    opened = ENGINES[request.param](artifact, 1)
    yield opened
    opened.close()


def test_gives_pefts_logits_by_name(engine: Engine, expected: dict[str | None, torch.Tensor]) -> None:
    assert isinstance(engine, AdaptableEngine) and list(engine.adapters) == ["default", "other"]
    for name in (None, "default", "other", "default", None):
        engine.use_adapter(name)
        assert (torch.tensor(engine.forward(IDS, 0)) - expected[name]).abs().max() < 1e-3, name
    assert (expected[None] - expected["default"]).abs().max() > 0.1
    assert (expected[None] - expected["other"]).abs().max() > 0.1


def test_a_session_begins_anew_with_another_adapter(artifact: Artifact) -> None:
    loop = open_tokens(artifact, threads=1)

    def answer(adapter: str | None) -> tuple[float | None, int]:
        request = TokenRequest(ids=IDS, max_new_tokens=1, session="a", adapter=adapter, logprobs=0)
        token, done = loop.stream(request)
        assert isinstance(token, NewToken) and isinstance(done, TokensDone)
        return token.logprob, done.usage.reused

    plain, first = answer(None), answer("default")
    assert plain[0] != first[0] and (plain[1], first[1]) == (0, 0)
    again, back = answer("default"), answer(None)
    assert (again[1], back[1]) == (len(IDS) - 1, 0)
    assert again[0] == pytest.approx(first[0], abs=1e-4) and back[0] == pytest.approx(plain[0], abs=1e-4)
    loop.close()


def test_the_manifest_names_the_files(artifact: Artifact, folders: tuple[Path, Path]) -> None:
    verify(open_artifact(artifact.folder))
    side = artifact.manifest.source.side_adapters
    assert [(adapter.name, adapter.weight) for adapter in side] == [("default", 1.0), ("other", 0.5)]
    assert {"default.onnx_adapter", "other.onnx_adapter"} <= set(artifact.manifest.files)
    assert not artifact.manifest.source.adapters


def test_run_takes_a_name(artifact: Artifact) -> None:
    def run(*words: str) -> str:
        result = CliRunner().invoke(
            main, ["run", str(artifact.folder), BEGINNING, "--raw", "--max-new-tokens", "40", *words]
        )
        assert result.exit_code == 0, result.output
        return result.stdout

    assert "small sun" in run("--lora", "default") and "small sun" not in run()
    wrong = CliRunner().invoke(main, ["run", str(artifact.folder), BEGINNING, "--raw", "--lora", "nobody"])
    assert wrong.exit_code == 2
    assert "has no adapter 'nobody'; it has: default, other" in wrong.stderr


def test_a_server_has_a_model_for_each(artifact: Artifact) -> None:
    with served(open_runtime(artifact.folder, threads=1), Settings(model="lamp")) as server:
        names = [model["id"] for model in httpx.get(f"{server.url}/v1/models").json()["data"]]
        assert names == ["lamp", "lamp:default", "lamp:other"]

        def ask(path: str, **fields: object) -> dict[str, Any]:
            answer: dict[str, Any] = httpx.post(f"{server.url}/v1/{path}", json=fields, timeout=60).json()
            assert answer["model"] == fields["model"]
            return answer

        texts = [
            ask("completions", model=name, prompt=BEGINNING, max_tokens=40)["choices"][0]["text"] for name in names
        ]
        assert ["small sun" in text for text in texts] == [False, True, False]
        for name in names:
            assert ask("chat/completions", model=name, messages=[{"role": "user", "content": "Hi"}], max_tokens=2)
            assert ask("responses", model=name, input="Hi", max_output_tokens=16)
        wrong = httpx.post(f"{server.url}/v1/completions", json={"model": "lamp:nobody", "prompt": BEGINNING})
        assert wrong.status_code == 404
        assert "this server has lamp, lamp:default, lamp:other" in wrong.json()["error"]["message"]


def test_an_artifact_without_adapters(tiny_onnx: Path) -> None:
    runtime = open_runtime(tiny_onnx, threads=1)
    with pytest.raises(RequestError, match="it has none: export it with --side-adapter"):
        list(runtime.generate(GenerateRequest(prompt=BEGINNING, adapter="default")))
    runtime.close()


def test_in_four_bits(folders: tuple[Path, Path], expected: dict[str | None, torch.Tensor], tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = [
        "export",
        "tiny",
        str(out),
        "--scheme",
        "int4-b32",
        "--context",
        "128",
        "--side-adapter",
        str(folders[0]),
        "--quiet",
    ]
    assert CliRunner().invoke(main, words).exit_code == 0
    engine = open_onnx(open_artifact(out), 1)
    assert isinstance(engine, AdaptableEngine)
    plain = torch.tensor(engine.forward(IDS, 0))
    engine.use_adapter("default")
    change, wanted = torch.tensor(engine.forward(IDS, 0)) - plain, expected["default"] - expected[None]
    assert torch.cosine_similarity(change, wanted, dim=0) > 0.5
    engine.close()
    config = json.loads((out / "genai_config.json").read_text())
    assert config["model"]["decoder"]["session_options"]["log_severity_level"] == 3


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--target", "android"], "ExecuTorch has its weights inside XNNPACK's programs"),
        (["--target", "windows-directml"], "windows-directml has none"),
        (["--target", "web"], "web has none"),
        (["--target", "cpu", "--format", "executorch"], "merge one with --adapter"),
    ],
)
def test_where_adapters_cannot_be_exchanged(
    folders: tuple[Path, Path], tmp_path: Path, options: list[str], part: str
) -> None:
    words = ["export", "tiny", str(tmp_path / "out"), "--side-adapter", str(folders[0]), *options]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2 and part in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("config", "part"),
    [
        ({"r": 4, "use_dora": True, "target_modules": ["o_proj"]}, "DoRA"),
        ({"r": 4, "target_modules": ["embed_tokens"]}, "an embedding"),
        ({"r": 4, "target_modules": ["o_proj"], "modules_to_save": ["lm_head"]}, "saved whole"),
    ],
)
def test_what_is_more_than_a_and_b(tmp_path: Path, config: dict[str, object], part: str) -> None:
    folder = Trained(TINY, config).save(tmp_path / "adapter")
    result = CliRunner().invoke(main, ["export", "tiny", str(tmp_path / "out"), "--side-adapter", str(folder)])
    assert result.exit_code == 2 and part in result.stderr and "merge it with --adapter" in result.stderr
