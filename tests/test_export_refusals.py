"""The user's faults: one clear line, exit 2, and nothing half-written left behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from phi_edge import main


@pytest.fixture(scope="module")
def good(random_checkpoint: Callable[..., Path]) -> Path:
    return random_checkpoint(num_hidden_layers=1)


@pytest.fixture
def broken(good: Path, tmp_path: Path) -> Path:
    """A copy to be broken."""
    return Path(shutil.copytree(good, tmp_path / "checkpoint"))


def export(checkpoint: Path | str, out: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["export", str(checkpoint), str(out), "--quiet", *options])


def refused(result: Result, *parts: str) -> None:
    """One line on stderr that holds all the parts, exit 2."""
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    for part in parts:
        assert part in lines[0]


def nothing_left(out: Path) -> None:
    assert not out.exists()
    assert not out.with_name(out.name + ".part").exists()


def edit_config(checkpoint: Path, **changes: Any) -> None:
    path = checkpoint / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_missing_folder(tmp_path: Path) -> None:
    refused(export(tmp_path / "nowhere", tmp_path / "out"), "nowhere", "no such folder", "hub id")


def test_missing_shard(broken: Path, tmp_path: Path) -> None:
    (broken / "model.safetensors").unlink()
    refused(export(broken, tmp_path / "out"), "model.safetensors", "missing")
    nothing_left(tmp_path / "out")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(broken: Path, tmp_path: Path, value: float) -> None:
    tensors = load_file(broken / "model.safetensors")
    tensors["model.layers.0.mlp.down_proj.weight"][5, 7] = value
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    refused(export(broken, tmp_path / "out"), "model.layers.0.mlp.down_proj.weight", "not finite")
    assert not (tmp_path / "out").exists()


def test_truncated_shard(broken: Path, tmp_path: Path) -> None:
    shard = broken / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1000])
    refused(export(broken, tmp_path / "out"), "truncated")
    nothing_left(tmp_path / "out")


CONFIG_FAULTS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "model_type": ({"model_type": "llama"}, ("'llama'", "known: phi3")),
    "rope type": ({"rope_parameters": {"rope_type": "yarn"}}, ("'yarn'", "default, longrope, su")),
    "unknown key": ({"attention_sinks": 4}, ("'attention_sinks'", "known keys")),
    "activation": ({"hidden_act": "gelu"}, ("hidden_act", "'gelu'", "'silu'")),
    "heads": ({"num_key_value_heads": 3}, ("divide",)),
    "bias": ({"attention_bias": True}, ("attention_bias",)),
    "rope list": (
        {"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0] * 16}},
        ("short_factor", "1 numbers", "16"),
    ),
    "no original length": (
        {
            "rope_parameters": {"rope_type": "longrope", "short_factor": [1.0] * 16, "long_factor": [1.0] * 16},
            "original_max_position_embeddings": None,
        },
        ("original_max_position_embeddings", "4096"),
    ),
    "rope number": (
        {"rope_parameters": {"rope_type": "longrope", "short_factor": ["a"] * 16, "long_factor": [1.0] * 16}},
        ("short_factor[0]", "'a'", "above 0"),
    ),
    "rope factor of 0": (
        {"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0] * 16, "long_factor": [1.0] * 15 + [0]}},
        ("long_factor[15]", "above 0"),
    ),
    "rope settings": ({"rope_parameters": [1]}, ("rope settings", "object")),
    "rope theta": ({"rope_parameters": {"rope_type": "default", "rope_theta": "ten"}}, ("rope_theta", "'ten'")),
    "rotary part": ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 2.0}}, ("partial_rotary",)),
    "epsilon": ({"rms_norm_eps": -1}, ("rms_norm_eps", "-1")),
    "window": ({"sliding_window": "2047"}, ("sliding_window", "null or a positive whole number")),
    "tied": ({"tie_word_embeddings": "no"}, ("tie_word_embeddings", "true or false")),
    "stop id": ({"eos_token_id": "2"}, ("eos_token_id", "'2'")),
    "id beyond the vocabulary": ({"bos_token_id": 99999}, ("99999", "vocab_size")),
    "shape": ({"intermediate_size": 384}, ("gate_up_proj", "config.json says")),
    "vocabulary": ({"vocab_size": 64}, ("shape",)),
}


@pytest.mark.parametrize("fault", CONFIG_FAULTS)
def test_config_faults(broken: Path, tmp_path: Path, fault: str) -> None:
    changes, parts = CONFIG_FAULTS[fault]
    edit_config(broken, **changes)
    refused(export(broken, tmp_path / "out"), *parts)
    nothing_left(tmp_path / "out")


def test_a_tokenizer_that_does_not_fit_the_vocabulary(broken: Path, tmp_path: Path) -> None:
    path = broken / "tokenizer.json"
    content = json.loads(path.read_text())
    content["added_tokens"].append(content["added_tokens"][-1] | {"id": 5000, "content": "<|far|>"})
    path.write_text(json.dumps(content))
    refused(export(broken, tmp_path / "out"), "id 5000", "vocab_size")
    nothing_left(tmp_path / "out")


OPTION_FAULTS: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "scheme": (["--scheme", "int3"], ("'int3'", "int4-b32", "fp32")),
    "target": (["--target", "toaster"], ("'toaster'", "raspberry-pi", "windows-directml")),
    "format": (["--format", "tflite"], ("'tflite'", "onnx, executorch")),
    "format of target": (["--target", "windows-directml", "--format", "executorch"], ("windows-directml", "onnx")),
    "context": (["--context", "99999"], ("99999", "4096")),
    "block": (["--scheme", "int4-b128"], ("int4-b128", "128", "320")),
}


@pytest.mark.parametrize("fault", OPTION_FAULTS)
def test_option_faults(good: Path, tmp_path: Path, fault: str) -> None:
    options, parts = OPTION_FAULTS[fault]
    refused(export(good, tmp_path / "out", *options), *parts)
    nothing_left(tmp_path / "out")


def test_output_not_empty(good: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious.txt").write_text("mine")
    refused(export(good, out), "not empty")
    assert (out / "precious.txt").read_text() == "mine"


def test_not_enough_disk(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("export.pipeline.shutil.disk_usage", lambda _: usage._replace(free=1000))
    refused(export(good, tmp_path / "out"), "disk", "free")
    nothing_left(tmp_path / "out")


def test_disk_full_while_writing(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("export.weight_file.os.pwrite", full)
    refused(export(good, tmp_path / "out"), "No space left on device")
    nothing_left(tmp_path / "out")
