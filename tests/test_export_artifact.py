"""The artifact's promises: sealed last, the same bytes every time, and no change unseen."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from export.artifact import open_artifact
from export.pipeline import export_model
from export.request import ExportRequest
from phi_edge.main import main


@pytest.fixture
def copy(tiny_onnx: Path, tmp_path: Path) -> Path:
    """An artifact to be broken."""
    return Path(shutil.copytree(tiny_onnx, tmp_path / "artifact"))


def check_refuses(folder: Path, *parts: str) -> None:
    result = CliRunner().invoke(main, ["check", str(folder)])
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    for part in parts:
        assert part in lines[0]


def edit_manifest(folder: Path, old: str, new: str) -> None:
    path = folder / "manifest.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_check_accepts_a_whole_artifact(tiny_onnx: Path) -> None:
    result = CliRunner().invoke(main, ["check", str(tiny_onnx)])
    assert result.exit_code == 0, result.output
    assert "uint4-b64-e8-weighted" in result.output


def test_changed_byte(copy: Path) -> None:
    path = copy / "model.onnx.data"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    check_refuses(copy, "model.onnx.data", "changed since the export")


def test_missing_file(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    check_refuses(copy, "tokenizer.json", "missing")


def test_no_manifest(copy: Path) -> None:
    (copy / "manifest.json").unlink()
    check_refuses(copy, "has no manifest.json")


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../b", "C:\\\\windows", "..\\\\up"])
def test_path_that_climbs_out(copy: Path, name: str) -> None:
    edit_manifest(copy, '"model.onnx.data"', f'"{name}"')
    check_refuses(copy, "climbs out")


def test_link_that_leads_out(copy: Path, tmp_path: Path) -> None:
    outside = tmp_path / "tokenizer.json"
    shutil.move(copy / "tokenizer.json", outside)
    (copy / "tokenizer.json").symlink_to(outside)
    check_refuses(copy, "leads out")


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ('"schema": 2', '"schema": 99', "schema 99"),
        ('"window_tokens"', '"windowtokens"', "unknown key 'windowtokens' (did you mean 'window_tokens'?)"),
        ('"format": "onnx"', '"format": "tflite"', "'tflite'"),
        ('"vocab_size": ', '"vocab_size": "many", "x": ', "unknown key 'x'"),
        ("{", "", "is not JSON"),
    ],
)
def test_manifest_is_read_strictly(copy: Path, old: str, new: str, part: str) -> None:
    edit_manifest(copy, old, new)
    check_refuses(copy, part)


def test_manifest_says_what_was_applied(tiny_onnx: Path, tiny_executorch: Path) -> None:
    onnx, executorch = (open_artifact(folder).manifest for folder in (tiny_onnx, tiny_executorch))
    assert onnx.scheme.name == "uint4-b64-e8-weighted" and onnx.engine["accuracy_level"] == 4
    assert executorch.scheme.name == "int4-b32-e8-weighted" and executorch.engine["backend"] == "xnnpack"
    for manifest in (onnx, executorch):
        assert list(manifest.tokens.stop) == [755, 758, 756]
        assert manifest.window_tokens == 2047
        assert manifest.source.files["model.safetensors"].bytes > 6_000_000
        # The weighted search clips a column that is hardly used: its error may be large beside the others.
        assert 0 < manifest.loss.worst_group_error < 1
        assert 0 < manifest.loss.mean_kl < 0.2
        memory = manifest.memory
        assert memory.kv_bytes_per_token == 2 * 4 * 2 * 32 * 4
        assert memory.needed_bytes(512) == memory.total_bytes_per_context["512"] > memory.weights_bytes
        assert {"torch", "onnx", "executorch", "phi-edge"} <= set(manifest.tools)


def test_same_bytes_twice(random_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """In the same place; test_export_bytes.py does it for all artifacts, from one machine to the next."""
    checkpoint = random_checkpoint(num_hidden_layers=2)
    first, second = (
        export_model(ExportRequest(checkpoint=str(checkpoint), out=tmp_path / name, scheme="int4-b32"))
        for name in ("first", "second")
    )
    for name in first.manifest.files:
        assert first.path(name).read_bytes() == second.path(name).read_bytes(), name
    assert first.manifest.digest() == second.manifest.digest()


def test_optimum_command_line(tmp_path: Path) -> None:
    optimum = Path(sys.executable).parent / "optimum-cli"
    out = tmp_path / "out"
    result = subprocess.run(
        [optimum, "export", "phi-edge", "tiny", out, "--target", "raspberry-pi"], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert json.loads((out / "manifest.json").read_text())["target"] == "raspberry-pi"
    refused = subprocess.run(
        [optimum, "export", "phi-edge", "tiny", tmp_path / "no", "--task", "fill-mask"], capture_output=True, text=True
    )
    assert refused.returncode == 2 and "text-generation" in refused.stderr
