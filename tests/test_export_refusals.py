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

from phi_edge.main import main


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


LONG: dict[str, Any] = {"rope_type": "longrope", "short_factor": [1.0] * 16, "long_factor": [1.0] * 16}
CONFIG_FAULTS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "model_type": ({"model_type": "gpt2"}, ("'gpt2'", "known: phi3")),
    "rope type": ({"rope_parameters": {"rope_type": "yarn"}}, ("'yarn'", "default, longrope, su")),
    "unknown key": ({"attention_sinks": 4}, ("'attention_sinks'", "known keys")),
    "activation": ({"hidden_act": "gelu"}, ("hidden_act", "'gelu'", "'silu'")),
    "heads": ({"num_key_value_heads": 3}, ("divide",)),
    "bias": ({"attention_bias": True}, ("attention_bias",)),
    "heads of another size": ({"num_attention_heads": 3}, ("hidden_size 128", "num_attention_heads 3", "divide")),
    "head size": ({"head_dim": 64}, ("head_dim is 64", "hidden_size / heads")),
    "layer types": ({"layer_types": ["full_attention"]}, ("'layer_types'", "known keys")),
    "layers apart": ({"per_layer_config": {"0": {"sliding_window": 64}}}, ("'per_layer_config'",)),
    "experts": ({"num_local_experts": 16}, ("'num_local_experts'",)),
    "soft cap": ({"final_logit_softcapping": 30.0}, ("'final_logit_softcapping'",)),
    "bias of the feed-forward": ({"mlp_bias": True}, ("mlp_bias is True", "False")),
    "bias of the head": ({"lm_head_bias": True}, ("lm_head_bias is True", "False")),
    "full attention now and then": ({"full_attn_mod": 2}, ("full_attn_mod is 2",)),
    "rope of each layer type": (
        {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
        ("'full_attention'", "known:"),
    ),
    "rope key": ({"rope_parameters": {"rope_type": "longrope", "long_mscale": 1.2}}, ("'long_mscale'", "known:")),
    "two ropes": (
        {"rope_scaling": {"type": "longrope"}, "rope_parameters": {"rope_type": "default"}},
        ("rope_scaling and rope_parameters differ", "leave one"),
    ),
    "two rope types": (
        {"rope_parameters": {"rope_type": "default", "type": "su"}},
        ("rope_type is 'default' and type 'su'", "leave one"),
    ),
    "two thetas": (
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "rope_theta": 5000.0},
        ("rope_theta is 5000.0, and 10000.0", "leave one"),
    ),
    "two rotary parts": (
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}, "partial_rotary_factor": 1.0},
        ("partial_rotary_factor is 1.0, and 0.5",),
    ),
    "two original lengths": (
        {"rope_parameters": LONG | {"original_max_position_embeddings": 64}},
        ("original_max_position_embeddings is 4096, and 64",),
    ),
    "original length among the rope settings alone": (
        {
            "rope_parameters": LONG | {"original_max_position_embeddings": 64},
            "original_max_position_embeddings": None,
        },
        ("is 64 in the rope settings alone", "4096"),
    ),
    "factors without a type": (
        {"rope_parameters": {"short_factor": [1.0] * 16, "long_factor": [1.0] * 16}},
        ("short_factor without type longrope",),
    ),
    "factors of the default rope": (
        {"rope_parameters": {"rope_type": "default", "factor": 2.0}},
        ("factor without type longrope",),
    ),
    "original length that is no number": (
        {"rope_parameters": LONG, "original_max_position_embeddings": "4k"},
        ("original_max_position_embeddings is '4k'", "a number"),
    ),
    "original length of the default rope": (
        {"rope_parameters": None, "original_max_position_embeddings": "4k"},
        ("original_max_position_embeddings is '4k'", "a number"),
    ),
    "long rope list": (
        {"rope_parameters": LONG | {"long_factor": [1.0] * 17}},
        ("long_factor", "17 numbers", "16"),
    ),
    "rope list that is none": ({"rope_parameters": LONG | {"long_factor": 2.0}}, ("long_factor", "2.0", "16")),
    "window beyond the context": (
        {"sliding_window": 5000},
        ("sliding_window 5000 is larger than max_position_embeddings 4096", "null", "262144"),
    ),
    "window of 0": ({"sliding_window": 0}, ("sliding_window is 0", "null or a positive whole number")),
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


FAR = {"id": 5000, "content": "<|far|>", "special": True}
TOKENIZER_FAULTS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "added id": ({"added_tokens": [FAR]}, ("id 5000", "vocab_size is 768")),
    "id": ({"model": {"type": "BPE", "vocab": {"a": 0, "b": 768}}}, ("id 768", "vocab_size is 768")),
    "list": ({"model": {"type": "Unigram", "vocab": [["a", 0.0]] * 769}}, ("id 768", "vocab_size is 768")),
    "no model": ({"model": None}, ("tokenizer.json", "no vocabulary", "save the tokenizer again")),
    "no vocabulary": ({"model": {"type": "BPE"}}, ("tokenizer.json", "'vocab'")),
    "id that is no number": ({"model": {"type": "BPE", "vocab": {"a": "0"}}}, ("no whole number",)),
    "added token without its id": ({"added_tokens": [{"content": "<|far|>"}]}, ("tokenizer.json", "'id'")),
}


@pytest.mark.parametrize("fault", TOKENIZER_FAULTS)
def test_tokenizer_faults(broken: Path, tmp_path: Path, fault: str) -> None:
    changes, parts = TOKENIZER_FAULTS[fault]
    path = broken / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    refused(export(broken, tmp_path / "out"), *parts)
    nothing_left(tmp_path / "out")


def test_a_stop_id_beyond_the_vocabulary(broken: Path, tmp_path: Path) -> None:
    (broken / "generation_config.json").write_text('{"eos_token_id": [2, 32007]}')
    refused(export(broken, tmp_path / "out"), "id 32007", "vocab_size is 768")


@pytest.mark.parametrize("content", [{}, {"weight_map": []}, {"weight_map": {"a": "../model.safetensors"}}])
def test_an_index_that_names_no_files(broken: Path, tmp_path: Path, content: dict[str, Any]) -> None:
    (broken / "model.safetensors.index.json").write_text(json.dumps(content))
    refused(export(broken, tmp_path / "out"), "weight_map", "beside it")


def test_no_window_as_it_is_published(broken: Path, tmp_path: Path) -> None:
    """Phi-4-mini and others say 262144 with a context of 131072."""
    edit_config(broken, sliding_window=262144)
    result = export(broken, tmp_path / "out", "--dry-run")
    assert result.exit_code == 0, result.output


OPTION_FAULTS: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "scheme": (["--scheme", "int3"], ("'int3'", "int4-b32", "fp32")),
    "target": (["--target", "toaster"], ("'toaster'", "raspberry-pi", "windows-directml")),
    "format": (["--format", "tflite"], ("'tflite'", "onnx, executorch, gguf")),
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
    monkeypatch.setattr("export.plan.shutil.disk_usage", lambda _: usage._replace(free=1000))
    refused(export(good, tmp_path / "out"), "disk", "free")
    nothing_left(tmp_path / "out")


def test_disk_full_while_writing(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("export.weights.weight_file.write_at", full)
    refused(export(good, tmp_path / "out"), "No space left on device")
    nothing_left(tmp_path / "out")
