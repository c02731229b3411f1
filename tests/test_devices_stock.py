"""`phi-edge bench` of what other tools export, beside an artifact of ours: the same file, the same figures.

The tiny model without our manifest is what such tools write: a folder of onnxruntime-genai, a .pte, a .gguf.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import pytest
import tomli_w
from click.testing import CliRunner

from devices.errors import DeviceError
from devices.judge.compare import compare
from devices.measure.contender import open_contender, prompt_of
from devices.measure.measurement import Measurement, StockFacts, read_measurement
from devices.measure.validity import problems
from export.artifact import MANIFEST, sha256_file
from fakes.measurement import fake_measurement
from phi_edge.main import main
from runtimes.errors import EngineError
from runtimes.stock.genai import open_genai
from runtimes.stock.table import STOCK

OURS = (MANIFEST, "layout.json")
SMALL = ["--prompt-tokens", "24", "--generate-tokens", "4", "--reps", "1", "--threads", "1"]
ENGINES = {"builders": "onnxruntime-genai", "program": "executorch", "tiny": "llama.cpp"}


@pytest.fixture(scope="module")
def night(
    tmp_path_factory: pytest.TempPathFactory, tiny_onnx: Path, tiny_executorch: Path, tiny_gguf: Path
) -> dict[str, Measurement]:
    """Ours and theirs by one command: name -> measurement."""
    home = tmp_path_factory.mktemp("stock")
    shutil.copytree(tiny_onnx, home / "builders", ignore=shutil.ignore_patterns(*OURS))
    shutil.copytree(tiny_executorch, home / "program", ignore=shutil.ignore_patterns(*OURS))
    shutil.copy(tiny_gguf / "model.gguf", home / "tiny.gguf")
    paths = [tiny_onnx, home / "builders", home / "program", home / "tiny.gguf"]
    done = CliRunner().invoke(main, ["bench", *map(str, paths), *SMALL, "--out-dir", str(home / "out")])
    assert done.exit_code == 0, done.output
    return {file.stem.removesuffix("-local"): read_measurement(file) for file in (home / "out").iterdir()}


@pytest.mark.parametrize(("name", "engine"), ENGINES.items())
def test_another_tool_s_model_is_measured_as_ours_are(night: dict[str, Measurement], name: str, engine: str) -> None:
    measurement = night[name]
    assert problems(measurement) == []
    stock, (repetition,) = measurement.artifact.stock, measurement.repetitions
    assert stock is not None and stock.engine == engine
    packages = {row.package for row in STOCK.values()}
    assert packages & set(measurement.versions) == {stock.package}
    assert "reference_share" in stock.lacks and repetition.reference is None
    assert repetition.load_s is not None and repetition.run.memory.peak_bytes is not None
    stamps = repetition.run.token_at_s or repetition.run.piece_at_s
    assert len(stamps) == 4 and list(stamps) == sorted(stamps)
    assert measurement.artifact.artifact_bytes and len(measurement.artifact.digest) == 64


def test_the_same_weights_give_the_same_tokens_in_genai(night: dict[str, Measurement], tiny_onnx: Path) -> None:
    ours, theirs = (night[name].repetitions[0].run.token_ids for name in (tiny_onnx.name, "builders"))
    assert ours == theirs
    assert night[tiny_onnx.name].artifact.stock is None


def test_the_report_has_them_side_by_side_and_the_gate_judges_them(
    night: dict[str, Measurement], tmp_path: Path
) -> None:
    files = []
    for name, measurement in night.items():
        files.append(str(tmp_path / f"{name}.json"))
        Path(files[-1]).write_text(measurement.to_json(), encoding="utf-8")
    report = CliRunner().invoke(main, ["report", *files])
    assert report.exit_code == 0, report.output
    for name, engine in ENGINES.items():
        assert f"{name} · {engine} · local" in report.stdout
    assert report.stdout.count("another tool's export (scheme ") == 3
    (tmp_path / "b.toml").write_text("[[budget]]\nmax_ttft_s = 1e-9\n", encoding="utf-8")
    assert CliRunner().invoke(main, ["gate", *files, "--budgets", str(tmp_path / "b.toml")]).exit_code == 1


def test_ours_is_compared_with_theirs_whose_prompt_has_other_ids() -> None:
    ours = fake_measurement()
    stock = StockFacts(engine="llama.cpp", package="xllamacpp", loop="phi-edge's", lacks={})
    theirs = dataclasses.replace(
        ours,
        artifact=dataclasses.replace(ours.artifact, stock=stock),
        workload=dataclasses.replace(ours.workload, prompt_sha256="other"),
    )
    assert compare(ours, theirs, 0.05).changes


def test_a_job_measures_them_and_reads_each_file_once(
    tmp_path: Path, tiny_onnx: Path, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many cells as there are workloads, and a model may have 40 GB."""
    read: list[str] = []
    monkeypatch.setattr("devices.measure.readiness.BUSY_SHARE", 2.0)  # the machine that runs the tests is busy

    def hashed(file: Path) -> str:
        read.append(file.name)
        return sha256_file(file)

    monkeypatch.setattr("devices.measure.contender.sha256_file", hashed)
    shutil.copytree(tiny_onnx, tmp_path / "builders", ignore=shutil.ignore_patterns(*OURS))
    shutil.copy(tiny_gguf / "model.gguf", tmp_path / "theirs.gguf")
    workloads = [{"prompt_tokens": tokens, "generate_tokens": 4} for tokens in (8, 12)]
    plan = {"artifacts": ["builders", "theirs.gguf"], "devices": ["local"], "workload": workloads, "threads": 1}
    (tmp_path / "plan.toml").write_text(tomli_w.dumps(plan | {"repetitions": 1, "warmups": 0}))
    (tmp_path / "lab.toml").write_text(tomli_w.dumps({"leases": {"file": str(tmp_path / "leases.sqlite")}}))
    words = ["lab", "run", str(tmp_path / "plan.toml"), "--lab", str(tmp_path / "lab.toml")]
    done = CliRunner().invoke(main, [*words, "--out-dir", str(tmp_path / "night")])
    assert done.exit_code == 0, done.output
    cells = json.loads((tmp_path / "night" / "cells.json").read_text())["cells"]
    assert [(cell["artifact"], cell["state"]) for cell in cells] == [
        (name, "measured") for name in ("builders", "builders", "theirs", "theirs")
    ]
    measured = read_measurement(tmp_path / "night" / "theirs-local-12x4.json")
    assert measured.artifact.stock is not None and problems(measured) == []
    assert sorted(read) == sorted([*(file.name for file in (tmp_path / "builders").iterdir()), "theirs.gguf"])


def test_ours_and_theirs_take_turns(tmp_path: Path, tiny_gguf: Path) -> None:
    shutil.copy(tiny_gguf / "model.gguf", tmp_path / "theirs.gguf")
    out = tmp_path / "m.json"
    (tmp_path / "lab.toml").write_text(tomli_w.dumps({"leases": {"file": str(tmp_path / "leases.sqlite")}}))
    words = ["bench", str(tiny_gguf), "--against", str(tmp_path / "theirs.gguf"), "--rounds", "2", "--warmup", "0"]
    done = CliRunner().invoke(main, [*words, *SMALL, "--lab", str(tmp_path / "lab.toml"), "--out", str(out)])
    assert done.exit_code == 0, done.output
    ours, theirs = read_measurement(out), read_measurement(tmp_path / "m.against.json")
    assert ours.artifact.stock is None and theirs.artifact.stock is not None
    assert ours.pair == theirs.pair is not None and len(theirs.repetitions) == 4
    assert "decode_tokens_per_s" in done.stdout
    gated = CliRunner().invoke(main, ["gate", str(out), "--baseline", str(tmp_path / "m.against.json")])
    assert gated.exit_code in (0, 1) and "against the baseline" in gated.stdout


def write(folder: Path, *names: str) -> None:
    """Files of two brackets; a name may say what its file has instead: NAME=CONTENT."""
    for name, _, content in (each.partition("=") for each in names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content or "{}", encoding="utf-8")


@pytest.mark.parametrize(
    ("files", "given", "said"),
    [
        (["m.pte"], "m.pte", "put the checkpoint's tokenizer.json beside it"),
        (["m.pte", "tokenizer.model"], "", "there is tokenizer.model"),
        (["a.pte", "b.pte", "tokenizer.json"], "", "several programs (a.pte, b.pte)"),
        (["model.onnx"], "", "no genai_config.json, which onnxruntime-genai needs"),
        (["model.onnx", "genai_config.json"], "", "model.vocab_size is None"),
        (["model.onnx", 'genai_config.json={"model": {"vocab_size": 1000000000000}}'], "", "at most 16777216"),
        (["model.onnx", f"genai_config.json={'[' * 100_000}"], "", "is not JSON"),
        (["model.gguf"], "model.gguf", "cannot be read as a GGUF file"),
        (["manifest.json", "model.gguf"], "model.gguf", "is a file of an artifact; give its folder"),
    ],
)
def test_what_an_engine_needs_is_asked_for_in_one_line(tmp_path: Path, files: list[str], given: str, said: str) -> None:
    write(tmp_path / "theirs", *files)
    out = tmp_path / "m.json"
    done = CliRunner().invoke(main, ["bench", str(tmp_path / "theirs" / given), "--out", str(out)])
    assert done.exit_code == 2 and not out.exists()
    assert said in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_vocabulary_without_an_ordinary_token(tmp_path: Path) -> None:
    write(
        tmp_path, "model.onnx", 'genai_config.json={"model": {"vocab_size": 2, "bos_token_id": 1, "eos_token_id": 0}}'
    )
    with pytest.raises(DeviceError, match="every token of its vocabulary of 2 is a special one"):
        prompt_of(open_contender(tmp_path), 4)


def test_only_this_machine_measures_them(tmp_path: Path, tiny_gguf: Path) -> None:
    shutil.copy(tiny_gguf / "model.gguf", tmp_path / "tiny.gguf")
    (tmp_path / "lab.toml").write_text('[device.pi5]\ntransport = "ssh"\nhost = "localhost"\n', encoding="utf-8")
    words = ["bench", str(tmp_path / "tiny.gguf"), "--device", "pi5", "--lab", str(tmp_path / "lab.toml")]
    done = CliRunner().invoke(main, [*words, *SMALL, "--out", str(tmp_path / "m.json")])
    assert done.exit_code == 2
    assert "is measured on the device local alone" in done.stderr


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime_genai", None)
    with pytest.raises(EngineError, match="pip install onnxruntime-genai"):
        open_genai(tmp_path, 64, None)


def test_every_row_of_the_table_loads() -> None:
    assert set(STOCK) == set(ENGINES.values())
