"""Adapters on the command line: what the manifest says of them, and one clear line for those that do not fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from export.artifact import open_artifact, sha256_file
from fakes.lora import Trained
from phi_edge.main import main

# PEFT and transformers warn of their own deprecations.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
LAYER = "base_model.model.model.layers.0"
QKV_A, QKV_B = (f"{LAYER}.self_attn.qkv_proj.lora_{side}.weight" for side in "AB")


@pytest.fixture(scope="module")
def base(random_checkpoint: Callable[..., Path]) -> Path:
    return random_checkpoint(num_hidden_layers=1)


@pytest.fixture(scope="module")
def good(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    trained = Trained(base, {"r": 4, "target_modules": ["qkv_proj", "down_proj"]})
    return trained.save(tmp_path_factory.mktemp("adapter") / "good")


@pytest.fixture
def adapter(good: Path, tmp_path: Path) -> Path:
    """A copy to be changed."""
    return Path(shutil.copytree(good, tmp_path / "adapter"))


def export(checkpoint: Path, out: Path, *adapters: object, options: tuple[str, ...] = ()) -> Result:
    words = [word for adapter in adapters for word in ("--adapter", str(adapter))]
    words += ["--scheme", "fp32", "--context", "96", "--quiet", *options]
    return CliRunner().invoke(main, ["export", str(checkpoint), str(out), *words])


def refused(result: Result, *parts: str) -> None:
    """One line on stderr that has all the parts, exit 2."""
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.strip().splitlines()
    assert [part for part in parts if part not in line] == [], line


def edit(adapter: Path, **changes: Any) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(adapter: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path)


def test_the_manifest_names_the_adapter(base: Path, good: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = export(base, out, f"{good}=0.5")
    assert result.exit_code == 0, result.output
    source = open_artifact(out).manifest.source
    assert source.files["model.safetensors"].sha256 == sha256_file(base / "model.safetensors")
    (adapter,) = source.adapters
    assert (adapter.name, adapter.weight, adapter.base) == ("good", 0.5, str(base))
    assert {name: file.sha256 for name, file in adapter.files.items()} == {
        name: sha256_file(good / name) for name in ("adapter_config.json", "adapter_model.safetensors")
    }
    shown = CliRunner().invoke(main, ["check", str(out), "--against", str(base), "--adapter", f"{good}=0.5"])
    assert shown.exit_code == 0, shown.output
    assert "adapter  good, weight 0.5, trained on" in shown.stdout
    for wrong in ([], ["--adapter", str(good)]):
        answer = CliRunner().invoke(main, ["check", str(out), "--against", str(base), *wrong])
        refused(answer, "was made with 1 adapters; give them: --adapter good=0.5")


def test_another_adapter_starts_a_new_export(base: Path, adapter: Path, tmp_path: Path) -> None:
    from export.pipeline import describe_job, resolve_judged
    from export.request import AdapterChoice, ExportRequest

    def digest(*adapters: AdapterChoice) -> str:
        request = ExportRequest(checkpoint=str(base), out=tmp_path / "out", adapters=adapters)
        return describe_job(*resolve_judged(request))

    choice = AdapterChoice(str(adapter))
    assert len({digest(), digest(choice), digest(AdapterChoice(str(adapter), 0.5))}) == 3
    before = digest(choice)
    edit_tensors(adapter, lambda tensors: tensors.update({QKV_A: tensors[QKV_A] * 2}))
    assert digest(choice) != before


def test_a_bias_of_b_needs_a_base_with_biases(base: Path, tmp_path: Path) -> None:
    config = {"r": 4, "target_modules": ["qkv_proj"], "lora_bias": True}
    adapter = Trained(base, config).save(tmp_path / "adapter")
    refused(
        export(base, tmp_path / "out", adapter), "changes the bias of model.layers.0.self_attn.qkv_proj", "has none"
    )


def test_optimum_takes_several(good: Path) -> None:
    import argparse

    from export.request import AdapterChoice
    from optimum.commands.register.register_phi_edge import PhiEdgeExportCommand

    parser = argparse.ArgumentParser()
    PhiEdgeExportCommand.parse_args(parser)
    assert parser.parse_args(["tiny", "out"]).adapters == ()
    words = ["tiny", "out", "--adapter", str(good), "--adapter", f"{good}=-0.5"]
    assert parser.parse_args(words).adapters == (AdapterChoice(str(good)), AdapterChoice(str(good), -0.5))


def test_an_adapter_in_the_place_of_a_checkpoint(base: Path, good: Path, tmp_path: Path) -> None:
    refused(
        export(good, tmp_path / "out"), "is a PEFT adapter of", str(base), f"phi-edge export BASE OUT --adapter {good}"
    )


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"peft_type": "PREFIX_TUNING"}, ["PREFIX_TUNING", "only LORA"]),
        ({"peft_type": "IA3"}, ["IA3", "only LORA"]),
        ({"peft_type": "LOHA"}, ["LOHA"]),
        ({"peft_type": ["LORA"]}, ["only LORA"]),
        ({"use_qalora": True}, ["use_qalora", "merge_and_unload"]),
        ({"alora_invocation_tokens": [1]}, ["alora_invocation_tokens"]),
        ({"layer_replication": [[0, 1], [0, 1]]}, ["layer_replication"]),
        ({"a_key_of_tomorrow": "on"}, ["a_key_of_tomorrow", "on"]),
        ({"fan_in_fan_out": True}, ["fan_in_fan_out"]),
        ({"init_lora_weights": "pissa"}, ["pissa", "path_initial_model_for_weight_conversion"]),
        ({"init_lora_weights": "olora"}, ["olora"]),
        ({"bias": "some"}, ["bias", "lora_only"]),
        ({"r": 0}, ["r is 0"]),
        ({"r": 10**9}, ["r is 1000000000"]),
        ({"r": True}, ["r is True"]),
        ({"r": 8}, ["has rank 4", "says 8"]),
        ({"lora_alpha": "16"}, ["lora_alpha"]),
        ({"lora_alpha": 1e300}, ["lora_alpha"]),
        ({"use_dora": "yes"}, ["use_dora"]),
        ({"use_dora": True}, ["no lora_magnitude_vector"]),
        ({"rank_pattern": ["o_proj"]}, ["rank_pattern must be an object"]),
        ({"rank_pattern": {"(a+)+b": 3}}, ["(a+)+b", "name the modules"]),
        ({"alpha_pattern": {"((((x{999}){999}){999}){999})": 3}}, ["name the modules"]),
        ({"alpha_pattern": {"a.*b.*c.*d": 3}}, ["name the modules"]),
        ({"alpha_pattern": {"(qkv": 3}}, ["is no pattern"]),
        ({"alpha_pattern": {"qkv_proj": None}}, ["alpha_pattern: qkv_proj is None"]),
        ({"trainable_token_indices": ["a"]}, ["trainable_token_indices"]),
    ],
)
def test_a_config_that_is_not_merged(
    base: Path, adapter: Path, tmp_path: Path, changes: dict[str, Any], parts: list[str]
) -> None:
    edit(adapter, **changes)
    refused(export(base, tmp_path / "out", adapter), *parts)
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "peft_type"),
        ("{}", "peft_type"),
    ],
)
def test_a_damaged_config(base: Path, adapter: Path, tmp_path: Path, text: str, part: str) -> None:
    (adapter / "adapter_config.json").write_text(text)
    refused(export(base, tmp_path / "out", adapter), "adapter_config.json", part)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda t: t.pop(QKV_B), ["has no lora_B", "again"]),
        (lambda t: t.update({QKV_A: torch.zeros(4, 64)}), ["[4, 64]", "[4, 128]", "the base that it was trained on"]),
        (lambda t: t.update({QKV_B: torch.zeros(64, 4)}), ["[64, 4]", "[256, 4]"]),
        (lambda t: t.update({QKV_A: torch.zeros(4, 128, dtype=torch.int32)}), ["has type", "BF16"]),
        (lambda t: t.update({"lora_A.weight": torch.zeros(4)}), ["is not a tensor of LoRA"]),
        (lambda t: t.update({f"{LAYER}.mlp.lora_E": torch.zeros(4)}), ["lora_E", "is not a tensor of LoRA"]),
        (lambda t: t.update({QKV_A.replace(".weight", ".default.weight"): torch.zeros(4, 128)}), ["twice"]),
        (
            lambda t: t.update({name.replace("layers.0", "layers.7"): t[name] for name in (QKV_A, QKV_B)}),
            ["layers.7.self_attn.qkv_proj", "does not have"],
        ),
        (
            lambda t: t.update({f"{LAYER}.input_layernorm.lora_{side}.weight": t[QKV_A] for side in "AB"}),
            ["input_layernorm", "no matrix"],
        ),
        (
            lambda t: t.update({"base_model.model.score.weight": torch.zeros(2, 128)}),
            ["the weight of score", "does not have"],
        ),
        (
            lambda t: t.update({"base_model.model.model.embed_tokens.weight": torch.zeros(800, 128)}),
            ["[800, 128]", "tokens were added", "merge_and_unload"],
        ),
        (
            lambda t: t.update({"base_model.model.model.embed_tokens.base_layer.weight": torch.zeros(768, 128)}),
            ["this base's is another", "the base that it was trained on"],
        ),
        (lambda t: t.clear(), ["has no tensors"]),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit(
    base: Path,
    adapter: Path,
    tmp_path: Path,
    change: Callable[[dict[str, torch.Tensor]], object],
    parts: list[str],
) -> None:
    edit_tensors(adapter, change)
    refused(export(base, tmp_path / "out", adapter), *parts)
    assert not list(tmp_path.glob("out*"))


def test_weights_that_are_not_finite(base: Path, adapter: Path, tmp_path: Path) -> None:
    edit_tensors(adapter, lambda tensors: tensors[QKV_A].fill_(torch.nan))
    refused(export(base, tmp_path / "out", adapter), "makes model.layers.0.self_attn.qkv_proj.weight not finite")
    assert not (tmp_path / "out").exists()


def test_a_folder_without_weights(base: Path, adapter: Path, tmp_path: Path) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    refused(export(base, tmp_path / "out", adapter), "pickled weights", "save the adapter again")
    (adapter / "adapter_model.bin").unlink()
    refused(export(base, tmp_path / "out", adapter), "has no weights")
    (adapter / "adapter_config.json").unlink()
    refused(export(base, tmp_path / "out", adapter), "has no adapter_config.json")
    shutil.rmtree(adapter)
    refused(export(base, tmp_path / "out", adapter), "no such folder", "hf download")


@pytest.mark.parametrize("weight", ["", "nan", "inf", "1e9", "half"])
def test_a_weight_that_is_no_number(base: Path, good: Path, tmp_path: Path, weight: str) -> None:
    refused(export(base, tmp_path / "out", f"{good}={weight}"), "FOLDER=WEIGHT")


def test_adapters_that_exclude_each_other(base: Path, good: Path, adapter: Path, tmp_path: Path) -> None:
    refused(export(base, tmp_path / "out", good, good), "given twice")
    whole = {"base_model.model.model.layers.0.self_attn.qkv_proj.weight": torch.zeros(256, 128)}
    save_file(whole, adapter / "adapter_model.safetensors")
    refused(export(base, tmp_path / "out", f"{adapter}=0.5"), "cannot be added in part", "leave out =0.5")
    refused(export(base, tmp_path / "out", good, adapter), "both change", "qkv_proj", "give one of them")
