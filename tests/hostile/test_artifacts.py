"""Artifacts whose manifest lies, whose files were exchanged, or that were never whole: none is loaded in good faith."""

from __future__ import annotations

import hashlib
import json
import random
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fakes.agent import fake_agent
from fakes.talk import Talk
from phi_edge.main import main
from runtimes.engines.fake import fake_artifact
from runtimes.engines.onnx_engine import _make_cache
from runtimes.errors import EngineError

ASK = ["What is your name?", "--max-new-tokens", "1"]


def call(*words: str) -> Result:
    return CliRunner().invoke(main, list(words))


def refused(result: Result, *parts: str) -> None:
    assert result.exit_code == 2, (result.exit_code, result.output)
    (line,) = result.stderr.splitlines()
    assert all(part in line for part in parts) and len(line) < 2000, line


def reseal(folder: Path, edit: Callable[[dict[str, Any]], object] = lambda manifest: None) -> None:
    """Make the manifest's sizes and hashes right again after an edit of the files, and edit the manifest."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    for name in manifest["files"]:
        data = (folder / name).read_bytes()
        manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    edit(manifest)
    path.write_text(json.dumps(manifest))


@pytest.fixture
def onnx(tiny_onnx: Path, tmp_path: Path) -> Path:
    """A copy to be broken."""
    return Path(shutil.copytree(tiny_onnx, tmp_path / "onnx"))


@pytest.fixture
def program(tiny_executorch: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_executorch, tmp_path / "executorch"))


TEMPLATE = "{% for m in messages %}<|user|>\nUNLISTED {{m.content}}<|end|>\n<|assistant|>\n{% endfor %}"


def test_a_file_that_the_manifest_does_not_list_is_named_and_never_read(onnx: Path, tmp_path: Path) -> None:
    before = call("run", str(onnx), *ASK, "--json").stdout.splitlines()[-1]
    (onnx / "chat_template.jinja").write_text(TEMPLATE)
    (onnx / "sub").mkdir()
    (onnx / "sub" / "\x1b[2J.bin").touch()
    result = call("check", str(onnx))
    assert result.exit_code == 0
    names = [line for line in result.stderr.splitlines() if line.startswith("stranger: ")]
    assert len(names) == 2 and "chat_template.jinja is not in the manifest" in names[0] and "\x1b" not in names[1]
    after = call("run", str(onnx), *ASK, "--json").stdout.splitlines()[-1]
    assert json.loads(before)["usage"] == json.loads(after)["usage"]
    assert call("bundle", str(onnx), str(tmp_path / "app"), "--for", "android").exit_code == 0
    assert not [path for path in (tmp_path / "app").rglob("*") if path.is_file() and b"UNLISTED" in path.read_bytes()]
    assert not (tmp_path / "app" / "model" / "chat_template.jinja").exists()


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_file_taken_out_of_the_manifest_is_not_read_through_a_link(onnx: Path, tmp_path: Path, name: str) -> None:
    (onnx / name).rename(tmp_path / name)
    (onnx / name).symlink_to(tmp_path / name)
    refused(call("check", str(onnx)), f"{name}: leads out of the artifact's folder")
    manifest = json.loads((onnx / "manifest.json").read_text())
    del manifest["files"][name]
    (onnx / "manifest.json").write_text(json.dumps(manifest))
    asked = call("run", str(onnx), "Once", "--raw", "--max-new-tokens", "1")
    if name == "tokenizer.json":
        refused(call("check", str(onnx)), "lists no tokenizer.json")
        refused(asked, "lists no tokenizer.json")
        refused(call("bundle", str(onnx), str(tmp_path / "app"), "--for", "windows"), "lists no tokenizer.json")
    else:
        assert asked.exit_code == 0 and f"stranger: {name}" in call("check", str(onnx)).stderr


def test_a_manifest_without_files_is_not_whole(onnx: Path, program: Path) -> None:
    reseal(onnx, lambda manifest: manifest.update(files={}))
    refused(call("check", str(onnx)), "lists no files")
    refused(call("run", str(onnx), *ASK), "lists no files")
    reseal(program, lambda manifest: manifest["files"].pop("model.pte"))
    refused(call("check", str(program)), "lists no .pte")


def in_model(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: manifest["model"].update(fields)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        *[
            (lambda manifest, value=value: manifest.update(context_tokens=value), "context_tokens")
            for value in (0, -1, 10**9, 10**18, 10**30)
        ],
        *[(in_model(kv_heads=value), "model: kv_heads is") for value in (0, -2)],
        *[(in_model(layers=value), "model: layers is") for value in (0, 10**8, 10**12)],
        (in_model(head_dim=10**12), "model: head_dim is"),
        *[(in_model(vocab_size=value), "model: vocab_size is") for value in (-1, 10**12)],
        (in_model(vocab_size=10**30), "vocab_size: expected a finite number of at most 64 bits"),
        (in_model(parameters=10**400), "parameters: expected a finite number of at most 64 bits"),
        (lambda manifest: manifest["loss"].update(mean_kl=10**400), "mean_kl: expected a finite number"),
        (lambda manifest: manifest["memory"].update(weights_bytes=10**400), "weights_bytes: expected a finite number"),
        (lambda manifest: manifest["memory"].update(kv_bytes_per_token=-1), "memory: kv_bytes_per_token is -1"),
        (lambda manifest: manifest["tokens"].update(stop=[-1]), "tokens: -1 is not in the vocabulary"),
        (lambda manifest: manifest["tokens"].update(stop=[10**12]), "tokens: 1000000000000 is not in the vocabulary"),
        (lambda manifest: manifest["rope"].update(switch_tokens=-5), "rope: switch_tokens is -5"),
        (lambda manifest: manifest["files"].update({"x" * 5000: {"bytes": 1, "sha256": ""}}), "is missing"),
        (lambda manifest: manifest["files"].update({"a\0b": {"bytes": 1, "sha256": ""}}), "is missing"),
        (lambda manifest: manifest["files"]["tokenizer.json"].update(bytes=-1), "files.tokenizer.json: bytes is -1"),
        (lambda manifest: manifest.update(schema="x" * 10_000), "schema 'xxx"),
    ],
    ids=range(25),
)  # fmt: skip
def test_numbers_of_a_manifest_size_nothing_unseen(
    onnx: Path, edit: Callable[[dict[str, Any]], None], said: str
) -> None:
    reseal(onnx, edit)
    refused(call("check", str(onnx)), said)
    refused(call("run", str(onnx), *ASK), said)


def test_a_plan_without_the_context_is_still_shown(onnx: Path) -> None:
    reseal(onnx, lambda manifest: manifest["memory"].update(total_bytes_per_context={}))
    assert call("check", str(onnx)).exit_code == 0


@pytest.mark.parametrize(
    "edit", [in_model(kv_heads=1), in_model(head_dim=64), in_model(vocab_size=2000), in_model(layers=3)], ids=range(4)
)
def test_sizes_other_than_the_graphs_are_refused(onnx: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    reseal(onnx, edit)
    refused(call("run", str(onnx), *ASK), "the graph's")


@pytest.mark.parametrize("how", ["empty", "half", "zeros", "flipped", "name", "input", "data"])
def test_a_graph_that_is_none(onnx: Path, how: str) -> None:
    import onnx as onnx_library

    path = onnx / "model.onnx"
    data = path.read_bytes()
    flipped = bytearray(data)
    for place in random.Random(3).sample(range(len(data)), 40):
        flipped[place] ^= 0xA5
    made = {"empty": b"", "half": data[: len(data) // 2], "zeros": bytes(len(data)), "flipped": bytes(flipped)}
    made["name"] = data.replace(b"\x22\x0bMatMulNBits", b"\x22\x0bMatMulNBit\xff")  # quoted by the engine, in its bytes
    if how in made:
        path.write_bytes(made[how])
    else:
        model = onnx_library.load(path, load_external_data=False)
        if how == "input":
            model.graph.input.pop(0)
        else:
            for tensor in model.graph.initializer:
                for entry in tensor.external_data:
                    entry.value = f"sub/../../{entry.value}" if entry.key == "location" else entry.value
        path.write_bytes(model.SerializeToString())
    reseal(onnx)
    result = call("run", str(onnx), *ASK)
    refused(result, "model.onnx" if how in made else "")
    if how == "name":
        assert "MatMulNBit\\xff" in result.stderr or "it gives no reason" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("how", ["empty", "noise", "half", "zeros", "long", "flipped"])
def test_a_program_that_is_none(program: Path, how: str) -> None:
    """In a process of its own: ExecuTorch aborts the whole process at some of these."""
    path, generator = program / "model.pte", random.Random(5)
    data = path.read_bytes()
    flipped = bytearray(data)
    end = int.from_bytes(data[16:24], "little")
    for place in generator.sample(range(64, end), 200):
        flipped[place] ^= 1 << generator.randrange(8)
    made = {
        "empty": b"", "noise": generator.randbytes(len(data)), "half": data[: len(data) // 2],
        "zeros": bytes(len(data)), "long": data[:16] + b"\xff" * 16 + data[32:], "flipped": bytes(flipped),
    }  # fmt: skip
    path.write_bytes(made[how])
    reseal(program)
    command = [sys.executable, "-P", "-m", "phi_edge", "run", str(program), *ASK]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert done.stderr.startswith("Error: ") and len(done.stderr.splitlines()) == 1


def test_a_crash_in_the_engine_is_not_silent() -> None:
    crash = "from runtimes.engines.executorch_engine import _quiet\nimport os\nwith _quiet():\n    os.abort()\n"
    done = subprocess.run([sys.executable, "-P", "-c", crash], capture_output=True, timeout=60)
    assert done.returncode == -6 and b"Aborted" in done.stderr


def test_a_cache_that_the_system_refuses_names_a_context(onnx: Path) -> None:
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))

    def enlarge(manifest: dict[str, Any]) -> None:
        manifest["context_tokens"] = 1 << 23
        manifest["memory"]["kept_tokens"] = None

    reseal(onnx, enlarge)
    command = [sys.executable, "-P", "-m", "phi_edge", "run", str(onnx), *ASK]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, preexec_fn=limited)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert "the system refused the KV cache: " in line and "for 8388608 tokens; export it again" in line
    said = fatal(Talk(["sh", "-c", f'ulimit -v {6 << 20}; exec "$@"', "sh", *command[:3], "runtimes.agent", str(onnx)]))
    assert said["code"] == "engine" and "the system refused the KV cache: " in said["message"]


@pytest.mark.parametrize("kept", [1, 2046])
def test_a_cache_that_is_shorter_than_the_window_is_refused(onnx: Path, kept: int) -> None:
    reseal(onnx, lambda manifest: manifest["memory"].update(kept_tokens=kept))
    command = [sys.executable, "-P", "-m", "phi_edge", "run", str(onnx), *ASK]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2 and f"kept_tokens is {kept}, and attention sees 2047 tokens" in done.stderr


def test_a_cache_beyond_every_address_is_refused() -> None:
    with pytest.raises(EngineError, match="the system refused the KV cache"):
        _make_cache((1, 1 << 10, 1 << 24, 1 << 10), "float32", 100)


def fatal(talk: Talk) -> dict[str, Any]:
    said = talk.next()
    assert said["event"] == "error" and said["fatal"] is True
    assert talk.end() == 2
    return said


@pytest.mark.parametrize(
    ("edit", "code"),
    [
        (lambda manifest: manifest.update(files={}), "artifact"),
        (lambda manifest: manifest.update(context_tokens=10**18), "artifact"),
        (lambda manifest: manifest.update(schema=9), "artifact"),
    ],
    ids=range(3),
)
def test_an_agent_that_cannot_open_it_says_so(
    tmp_path: Path, edit: Callable[[dict[str, Any]], None], code: str
) -> None:
    artifact = fake_artifact(tmp_path / "a")
    reseal(artifact.folder, edit)
    assert fatal(Talk([*fake_agent(), str(artifact.folder)]))["code"] == code


@pytest.mark.parametrize(
    "options", [["--threads", "x"], ["--threads", "0"], ["--threads", "100000"], ["--silence-s", "nan"], ["--nobody"]]
)
def test_an_agent_with_wrong_options_says_so(tmp_path: Path, options: list[str]) -> None:
    artifact = fake_artifact(tmp_path / "a")
    said = fatal(Talk([*fake_agent(), str(artifact.folder), *options]))
    assert said["code"] == "request" and "\n" not in said["message"]


def test_threads_without_measure_are_refused(tiny_onnx: Path, tmp_path: Path) -> None:
    for number in ("5000", str(10**30), "0"):
        refused(call("run", str(tiny_onnx), *ASK, "--threads", number), "allowed: 1 to 1024")
    bench = ["bench", str(tiny_onnx), "--out", str(tmp_path / "m.json")]
    refused(call(*bench, "--threads", "100000"), "1<=x<=1024")
    refused(call(*bench, "--reps", "20000"), "1<=x<=1000")
    for seconds in ("nan", "inf", "0", "1e9"):
        refused(call(*bench, "--deadline-s", seconds), "--deadline-s")
    (tmp_path / "lab.toml").write_text("[device.x]\nthreads = 100000\n")
    refused(call("doctor", "x", "--lab", str(tmp_path / "lab.toml")), "threads 100000; give 1 to 1024")
    refused(call("run", str(tiny_onnx), *ASK, "--lab", "nope.toml"), "give --device NAME, or leave --lab out")
    refused(call("export", "tiny", str(tmp_path / "o"), "--quiet", "--context", "0"), "--context 0")
    refused(call("export", "tiny", str(tmp_path / "o"), "--max-file-size", "9" * 400 + "GB"), "is not a size")


def test_names_in_a_manifest_are_shown_harmlessly(onnx: Path) -> None:
    def edit(manifest: dict[str, Any]) -> None:
        manifest["source"]["name"] = "\x1b[31mphi\x07\nError: forged\u202e"
        manifest["target"] = "cpu\r\x1b[1A"

    reseal(onnx, edit)
    result = call("check", str(onnx))
    assert result.exit_code == 0
    assert not {char for char in result.output if not char.isprintable()} - {"\n"}
    assert not any(line.startswith("Error") for line in result.output.splitlines())
