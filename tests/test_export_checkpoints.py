"""Checkpoints as trainers and other programs leave them: taken as what they are, with a note, or refused by name."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file
from torch import Tensor

from export.artifact import Manifest, open_artifact
from export.checkpoint.open import open_checkpoint
from export.errors import CheckpointError
from export.pipeline import export_model
from export.request import ExportRequest
from phi_edge.main import main
from runtimes.api import GenerateRequest, TokenEvent
from runtimes.registry import open_runtime

IDS = [1, 5, 9]


@pytest.fixture(scope="module")
def plain(random_checkpoint: Callable[..., Path]) -> Path:
    return random_checkpoint(num_hidden_layers=1)


@pytest.fixture(scope="module")
def tied(random_checkpoint: Callable[..., Path]) -> Path:
    return random_checkpoint(num_hidden_layers=1, tie_word_embeddings=True)


@pytest.fixture
def copied(plain: Path, tmp_path: Path) -> Path:
    """A copy of the plain one, to be changed."""
    return Path(shutil.copytree(plain, tmp_path / "checkpoint"))


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None removes one."""
    content = json.loads(path.read_text()) if path.is_file() else {}
    content = {key: value for key, value in (content | changes).items() if value is not None}
    path.write_text(json.dumps(content))


def save(folder: Path, tensors: Mapping[str, Tensor], name: str = "model.safetensors") -> None:
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / name, metadata={"format": "pt"})


def weights(folder: Path) -> dict[str, Tensor]:
    return dict(load_file(folder / "model.safetensors"))


def export(checkpoint: Path, out: Path, **options: Any) -> Manifest:
    return export_model(ExportRequest(checkpoint=str(checkpoint), out=out, context_tokens=64, **options)).manifest


def refused(checkpoint: Path, *parts: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(str(checkpoint))
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def notes(checkpoint: Path) -> str:
    return "; ".join(open_checkpoint(str(checkpoint)).notes)


def ours(artifact: Path, ids: list[int], count: int = 8) -> list[int]:
    runtime = open_runtime(artifact)
    request = GenerateRequest(token_ids=ids, max_new_tokens=count, ignore_stop_ids=True)
    tokens = [event.id for event in runtime.generate(request) if isinstance(event, TokenEvent)]
    runtime.close()
    return tokens


def theirs(checkpoint: Path, ids: list[int], count: int = 8) -> list[int]:
    """transformers, greedy, float32, as a user loads it."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    ids, start = list(ids), len(ids)
    for _ in range(count):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[start:]


def command(*words: str) -> Result:
    return CliRunner().invoke(main, list(words))


# --- a head of its own ---


@pytest.fixture(scope="module")
def parted(tied: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tied by config.json, with a head that was trained apart."""
    folder = Path(shutil.copytree(tied, tmp_path_factory.mktemp("parted") / "checkpoint"))
    tensors = weights(folder)
    torch.manual_seed(1)
    save(folder, tensors | {"lm_head.weight": torch.randn_like(tensors["model.embed_tokens.weight"]) * 0.1})
    return folder


@pytest.mark.parametrize("format", ["onnx", "executorch"])
def test_a_head_that_has_parted_from_its_embedding_is_kept(parted: Path, tmp_path: Path, format: str) -> None:
    manifest = export(parted, tmp_path / "out", scheme="fp32", format=format)
    assert ours(tmp_path / "out", IDS) == theirs(parted, IDS)
    assert any("they differ: both are kept" in note for note in manifest.notes)


def test_check_compares_with_the_head_that_has_parted(parted: Path, tmp_path: Path) -> None:
    export(parted, tmp_path / "out", scheme="int4-b32")
    result = command("check", str(tmp_path / "out"), "--against", str(parted))
    assert result.exit_code == 0, result.output
    assert "they differ: both are kept" in result.output


def test_a_head_that_equals_the_embedding_stays_tied(tied: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tied, tmp_path / "checkpoint"))
    tensors = weights(folder)
    save(folder, tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()})
    checkpoint = open_checkpoint(str(folder))
    assert checkpoint.config.tie_word_embeddings and "lm_head.weight" not in checkpoint.tensors
    assert not checkpoint.notes


def test_a_tied_checkpoint_may_have_the_head_alone(tied: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tied, tmp_path / "checkpoint"))
    tensors = weights(folder)
    save(folder, tensors | {"lm_head.weight": tensors.pop("model.embed_tokens.weight")})
    export(folder, tmp_path / "out", scheme="fp32")
    assert ours(tmp_path / "out", IDS) == theirs(tied, IDS)


# --- weight files ---


def sharded(plain: Path, folder: Path, count: int = 3) -> Path:
    """The checkpoint in shards, without an index."""
    shutil.copytree(plain, folder)
    tensors = list(weights(folder).items())
    (folder / "model.safetensors").unlink()
    for number in range(count):
        save(folder, dict(tensors[number::count]), f"model-{number + 1:05}-of-{count:05}.safetensors")
    return folder


def test_shards_without_an_index_are_found_by_their_names(plain: Path, tmp_path: Path) -> None:
    folder = sharded(plain, tmp_path / "checkpoint")
    assert "found by their names" in notes(folder)
    assert set(open_checkpoint(str(folder)).weight_files) == {path.name for path in folder.glob("*.safetensors")}


def test_a_shard_that_is_missing_is_named(plain: Path, tmp_path: Path) -> None:
    folder = sharded(plain, tmp_path / "checkpoint")
    (folder / "model-00002-of-00003.safetensors").unlink()
    refused(folder, "model-00002-of-00003.safetensors is missing")


def test_two_sets_of_shards(plain: Path, tmp_path: Path) -> None:
    folder = sharded(plain, tmp_path / "checkpoint")
    shutil.copy(folder / "model-00001-of-00003.safetensors", folder / "model-00001-of-00002.safetensors")
    refused(folder, "shards of 2 and of 3 files", "remove the old ones")


def test_a_fresh_file_beside_an_old_index(copied: Path) -> None:
    index = {"weight_map": {name: "model-00001-of-00002.safetensors" for name in weights(copied)}}
    (copied / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "was not used" in notes(copied)
    save(copied, weights(copied), "model-00001-of-00002.safetensors")
    refused(copied, "two sets of weights", "model.safetensors and", "remove the one")


def test_an_index_that_names_another_shard(plain: Path, tmp_path: Path) -> None:
    folder = sharded(plain, tmp_path / "checkpoint")
    files = {name: path.name for path in sorted(folder.glob("*.safetensors")) for name in load_file(path)}
    name = next(iter(files))
    index = {"weight_map": files | {name: next(file for file in files.values() if file != files[name])}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, f"has {name} in", "and it is in", "download it again")


def test_a_tensor_in_two_shards(plain: Path, tmp_path: Path) -> None:
    folder = sharded(plain, tmp_path / "checkpoint")
    first = folder / "model-00001-of-00003.safetensors"
    second = folder / "model-00002-of-00003.safetensors"
    save(folder, load_file(second) | load_file(first), second.name)
    refused(folder, first.name, second.name, "remove one")


def test_config_names_the_weight_file(copied: Path) -> None:
    (copied / "model.safetensors").rename(copied / "merged.safetensors")
    refused(copied, "has no model.safetensors, and merged.safetensors in its place")
    edit(copied / "config.json", transformers_weights="merged.safetensors")
    assert open_checkpoint(str(copied)).weight_files == ("merged.safetensors",)
    edit(copied / "config.json", transformers_weights="../merged.safetensors")
    refused(copied, "transformers_weights is '../merged.safetensors'", "a file beside it")


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        (("pytorch_model.bin",), ("only pickled weights (pytorch_model.bin)", "save_pretrained")),
        (("pytorch_model-00001-of-00002.bin", "training_args.bin"), ("only pickled weights",)),
        (("phi3-q4.gguf",), ("llama.cpp's weights (GGUF) (phi3-q4.gguf)", "made from")),
        (("model.onnx", "model.onnx.data"), ("model.onnx", "an export already")),
        (("model.pte",), ("model.pte", "an export already")),
        ((), ("no weights: neither model.safetensors nor",)),
    ],
)
def test_weights_of_other_kinds(copied: Path, names: tuple[str, ...], parts: tuple[str, ...]) -> None:
    (copied / "model.safetensors").unlink()
    for name in names:
        (copied / name).write_bytes(b"x")
    refused(copied, *parts)


@pytest.mark.parametrize(
    ("where", "parts"),
    [
        ("models/phi3.gguf", ("is llama.cpp's weights (GGUF), not a checkpoint", "give the folder")),
        ("models/model.safetensors", ("is a safetensors file", "give its folder")),
        ("models/pytorch_model.bin", ("is pickled weights",)),
        ("models/model.onnx", ("an export already",)),
        ("models/notes.txt", ("is a file",)),
        ("Modelle/Größe", ("no such folder", "not a hub id")),
        ("models/phi3.", ("no such folder", "not a hub id", "cannot start or end")),
        ("models/phi3..4", ("no such folder", "not a hub id")),
        ("~user/x", ("no such folder", "not a hub id")),
        ("", ("''", "no such folder")),
        ("a\0b", ("no such folder",)),
        ("x" * 5000, ("File name too long",)),
    ],
)
def test_what_is_no_checkpoint_is_told_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, parts: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("models").mkdir()
    for name in ("phi3.gguf", "model.safetensors", "pytorch_model.bin", "model.onnx", "notes.txt"):
        (tmp_path / "models" / name).write_bytes(b"GGUF")
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(where)
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The hub's client without a hub: what it was asked, the snapshot it gives, and a repository's files."""
    seen: dict[str, Any] = {"files": []}

    def snapshot(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        seen.update(name=name, revision=revision, patterns=allow_patterns)
        return str(seen["snapshot"])

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda self, name, revision: seen["files"])
    return seen


@pytest.mark.parametrize("revision", [None, "main", "refs/pr/7", "v1.0"])
def test_a_revision_of_the_hub(hub: dict[str, Any], plain: Path, revision: str | None) -> None:
    hub["snapshot"] = plain
    where = "owner/name" + (f"@{revision}" if revision else "")
    assert open_checkpoint(where).name == where
    assert (hub["name"], hub["revision"]) == ("owner/name", revision)


@pytest.mark.parametrize(
    ("files", "part"),
    [
        (["cpu/model.onnx", "README.md"], "an export already"),
        (["pytorch_model.bin"], "only pickled weights"),
        (["phi3-q4.gguf"], "GGUF"),
        ([], "no weights"),
    ],
)
def test_a_repository_without_safetensors(hub: dict[str, Any], tmp_path: Path, files: list[str], part: str) -> None:
    hub.update(snapshot=tmp_path, files=files)
    with pytest.raises(CheckpointError, match=part):
        open_checkpoint("owner/name")


# --- names and shapes of tensors ---


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "base_model.model.", "_orig_mod.module."])
def test_names_with_a_wrapper_in_front(copied: Path, plain: Path, prefix: str) -> None:
    save(copied, {prefix + name: tensor for name, tensor in weights(copied).items()})
    checkpoint = open_checkpoint(str(copied))
    assert f"began with {prefix}" in "; ".join(checkpoint.notes)
    for name, tensor in open_checkpoint(str(plain)).tensors.items():
        assert torch.equal(checkpoint.tensors[name].read(), tensor.read())


@pytest.mark.parametrize(
    ("rename", "parts"),
    [
        (lambda name: name.replace("o_proj", "o_proj.base_layer"), ("an adapter (LoRA)", "merge_and_unload()")),
        (lambda name: name.removeprefix("model."), ("without its head", "AutoModelForCausalLM")),
        (lambda name: "other." + name, ("has no tensor model.embed_tokens.weight", "9 others")),
    ],
)
def test_other_names_are_refused(copied: Path, rename: Callable[[str], str], parts: tuple[str, ...]) -> None:
    save(copied, {rename(name): tensor for name, tensor in weights(copied).items()})
    refused(copied, *parts)


def test_query_key_and_value_apart_in_a_phi3(copied: Path, plain: Path, tmp_path: Path) -> None:
    tensors: dict[str, Tensor] = {}
    for name, tensor in weights(copied).items():
        rows = {"qkv_proj": [128, 64, 64], "gate_up_proj": [320, 320]}
        kind = next((kind for kind in rows if kind in name), None)
        names = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
        if kind is None:
            tensors[name] = tensor
            continue
        parts = zip(names[kind], torch.split(tensor, rows[kind]), strict=True)
        tensors |= {name.replace(kind, part): some for part, some in parts}
    save(copied, tensors)
    manifest = export(copied, tmp_path / "out", scheme="fp32")
    assert any("they were joined" in note for note in manifest.notes)
    assert ours(tmp_path / "out", IDS) == theirs(plain, IDS)
    result = command("check", str(tmp_path / "out"), "--against", str(copied))
    assert result.exit_code == 0, result.output


def test_old_llama_checkpoints_have_a_table_of_frequencies(copied: Path) -> None:
    save(copied, weights(copied) | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(16)})
    open_checkpoint(str(copied))


# --- quantised leftovers ---

BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True}
DOWN = "model.layers.0.mlp.down_proj"


@pytest.mark.parametrize("settings", [BNB, {"quant_method": "gptq", "bits": 8}, {"bits": 4}])
def test_float_weights_whose_config_says_that_they_are_quantised(copied: Path, settings: dict[str, Any]) -> None:
    edit(copied / "config.json", quantization_config=settings)
    assert "all of them are floats" in notes(copied)


def packed(kind: str) -> dict[str, Tensor]:
    """down_proj as a program stores it that quantises."""
    return {
        "bitsandbytes": {
            f"{DOWN}.weight": torch.zeros(128 * 320 // 2, 1, dtype=torch.uint8),
            f"{DOWN}.weight.absmax": torch.zeros(640, dtype=torch.uint8),
        },
        "gptq": {
            f"{DOWN}.qweight": torch.zeros(40, 128, dtype=torch.int32),
            f"{DOWN}.qzeros": torch.zeros(10, 16, dtype=torch.int32),
            f"{DOWN}.scales": torch.zeros(10, 128),
        },
        "fp8": {
            f"{DOWN}.weight": torch.zeros(128, 320).to(torch.float8_e4m3fn),
            f"{DOWN}.weight_scale": torch.ones(1),
        },
        "int8": {f"{DOWN}.weight": torch.zeros(128, 320, dtype=torch.int8)},
    }[kind]


@pytest.mark.parametrize(
    ("kind", "settings", "parts"),
    [
        ("bitsandbytes", None, ("by bitsandbytes (4 bits)", "absmax", "merge it into the 16-bit model")),
        ("bitsandbytes", BNB, ("quantised by bitsandbytes",)),
        ("gptq", None, ("by GPTQ or AWQ", "must have the quantization_config")),
        ("fp8", None, ("8-bit floats", "dequantised")),
        ("fp8", {"quant_method": "fp8"}, ("quantised by fp8",)),
        ("int8", None, ("is int8",)),
    ],
)
def test_packed_weights_are_refused_by_their_maker(
    copied: Path, kind: str, settings: dict[str, Any] | None, parts: tuple[str, ...]
) -> None:
    tensors = weights(copied)
    del tensors[f"{DOWN}.weight"]
    save(copied, tensors | packed(kind))
    edit(copied / "config.json", quantization_config=settings)
    refused(copied, *parts)


# --- config.json ---

LEFT_BEHIND: dict[str, Any] = {
    "unsloth_fixed": True,
    "unsloth_version": "2025.3.1",
    "_attn_implementation_autoset": True,
    "pretraining_tp": 1,
    "use_bfloat16": False,
    "tokenizer_class": "LlamaTokenizer",
    "model_max_length": 4096,
    "id2label": {"0": "LABEL_0"},
    "output_attentions": False,
    "is_encoder_decoder": False,
    "temperature": 0.7,
}


@pytest.mark.parametrize("key", LEFT_BEHIND)
def test_keys_that_trainers_leave_behind_are_noted(copied: Path, key: str) -> None:
    edit(copied / "config.json", **{key: LEFT_BEHIND[key]})
    assert f"config.json: {key} was not used" in notes(copied)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"pretraining_tp": 2}, ("pretraining_tp is 2", "only 1")),
        ({"use_bfloat16": True}, ("use_bfloat16 is True",)),
        ({"attention_sinks": 4}, ("'attention_sinks'", "remove it if your trainer wrote it")),
        ({"num_hidden_layers": 10**30}, ("num_hidden_layers", "at most")),
        ({"num_hidden_layers": 10**6}, ("num_hidden_layers is 1000000", "only 9 tensors")),
        ({"hidden_size": 10**12}, ("hidden_size", "at most")),
        ({"vocab_size": 10**30}, ("vocab_size", "at most")),
        ({"max_position_embeddings": 10**12}, ("max_position_embeddings", "at most")),
        ({"rope_theta": 10**400}, ("rope_theta",)),
        ({"rms_norm_eps": 10**400}, ("rms_norm_eps",)),
    ],
)
def test_keys_that_would_change_the_model(copied: Path, changes: dict[str, Any], parts: tuple[str, ...]) -> None:
    edit(copied / "config.json", **changes)
    refused(copied, *parts)


@pytest.mark.parametrize("key", ["rms_norm_eps", "sliding_window", "tie_word_embeddings", "num_key_value_heads"])
def test_keys_that_a_trainer_leaves_out(copied: Path, key: str) -> None:
    """As transformers takes their default; where that is another model, the shapes say so."""
    edit(copied / "config.json", **{key: None})
    if key == "num_key_value_heads":
        refused(copied, "qkv_proj", "config.json says")
    else:
        assert not notes(copied)


# --- safetensors headers ---


def with_header(folder: Path, change: Callable[[dict[str, Any]], object], tail: bytes = b"") -> None:
    """model.safetensors with another header."""
    path = folder / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    changed = change(header)
    text = json.dumps(header if changed is None else changed).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :] + tail)


def entry(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda header: header["model.norm.weight"].update(changes)


def overlapping(header: dict[str, Any]) -> None:
    start, end = header["model.norm.weight"]["data_offsets"]
    header["model.norm.weight"]["data_offsets"] = [start - 4, end - 4]


def shifted(header: dict[str, Any]) -> None:
    for name, each in header.items():
        if name != "__metadata__":
            each["data_offsets"] = [offset - 64 for offset in each["data_offsets"]]


HEADERS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a list": (lambda header: [1], "its header is a list"),
    "a text": (lambda header: "x", "its header is a str"),
    "a number": (lambda header: header.update({"model.norm.weight": 5}), "has no dtype, shape and data_offsets"),
    "nothing": (lambda header: header.update({"model.norm.weight": None}), "has no dtype"),
    "no dtype": (lambda header: header["model.norm.weight"].pop("dtype"), "has no dtype"),
    "dtype": (entry(dtype=["F32"]), "has no dtype"),
    "another dtype": (entry(dtype="F4"), "has dtype F4; allowed: BF16"),
    "no shape": (entry(shape=None), "has no dtype"),
    "shape": (entry(shape=["a"]), "has no dtype"),
    "a size that is no whole number": (entry(shape=[128.0]), "has no dtype"),
    "a negative size": (entry(shape=[-128]), "has no dtype"),
    "one offset": (entry(data_offsets=[0]), "has no dtype"),
    "offsets": (entry(data_offsets=["0", "512"]), "has no dtype"),
    "offsets of another length": (entry(data_offsets=[0, 4]), "has 4 bytes where F32 [128] has 512"),
    "negative offsets": (shifted, "has no dtype"),
    "overlapping": (overlapping, "where the tensor before it ends"),
}


@pytest.mark.parametrize("fault", HEADERS)
def test_a_header_that_is_none(copied: Path, fault: str) -> None:
    change, part = HEADERS[fault]
    with_header(copied, lambda header: change(header) if fault.startswith("a ") else (change(header), None)[1])
    refused(copied, "model.safetensors", part)


def test_bytes_behind_the_last_tensor(copied: Path) -> None:
    with_header(copied, lambda header: None, tail=b"more")
    refused(copied, "4 bytes behind its last tensor")


def test_a_tensor_that_a_header_has_twice(copied: Path) -> None:
    path = copied / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].rstrip()
    again = json.dumps({"model.norm.weight": json.loads(header)["model.norm.weight"]})[1:]
    text = header[:-1] + b", " + again.encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    refused(copied, "model.safetensors", "the key 'model.norm.weight' is given twice")


def test_a_header_that_is_too_long(copied: Path) -> None:
    path = copied / "model.safetensors"
    with path.open("r+b") as file:
        file.truncate(200_000_000)
        file.write((150_000_000).to_bytes(8, "little"))
    refused(copied, "not a safetensors file", "a header of 150000000 bytes")


# --- files of the tokenizer ---


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json", "generation_config.json"])
@pytest.mark.parametrize("content", ["{", "[]", '{"a": NaN}', "[" * 100_000, "\ud800".encode("utf-8", "surrogatepass")])
def test_a_file_that_is_no_object_is_not_sealed(copied: Path, name: str, content: str | bytes) -> None:
    (copied / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(copied, name)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", "tokenizer.json"])
@pytest.mark.parametrize("content", ["[" * 200_000, '{"a": ' * 70 + "1" + "}" * 70])
def test_a_file_that_is_nested_too_deep(copied: Path, name: str, content: str) -> None:
    (copied / name).write_text(content)
    refused(copied, name, "nested deeper than 64")


@pytest.mark.parametrize("name", ["special_tokens_map.json", "chat_template.jinja", "tokenizer.json"])
def test_a_link_that_leads_out_is_not_followed(copied: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_text('{"secret": 1}')
    (copied / name).unlink(missing_ok=True)
    (copied / name).symlink_to(tmp_path / "secret")
    refused(copied, name, "a link out of the checkpoint")


def test_links_of_the_hubs_cache_are_followed(plain: Path, tmp_path: Path) -> None:
    home = tmp_path / "models--a--b"
    blobs, snapshot = home / "blobs", home / "snapshots" / "0123"
    shutil.copytree(plain, blobs)
    snapshot.mkdir(parents=True)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(path)
    assert set(open_checkpoint(str(snapshot)).artifact_files) == {"tokenizer.json", "tokenizer_config.json"} | (
        {"generation_config.json"} if (plain / "generation_config.json").exists() else set()
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"decoder": {"type": "Other"}},
        {"normalizer": {"type": "Other"}},
        {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["x", "y"]]}},
    ],
)
def test_a_tokenizer_that_the_library_refuses(copied: Path, changes: dict[str, Any]) -> None:
    edit(copied / "tokenizer.json", **changes)
    refused(copied, "tokenizer.json", "cannot be loaded")


# --- weights that are no numbers ---


@pytest.mark.parametrize("scheme", ["int4-b32", "fp32"])
@pytest.mark.parametrize("tensor", ["model.norm.weight", f"{DOWN}.weight"])
def test_weights_that_are_not_finite_are_not_sealed(copied: Path, tmp_path: Path, scheme: str, tensor: str) -> None:
    tensors = weights(copied)
    tensors[tensor].view(-1)[3] = float("nan")
    save(copied, tensors)
    with pytest.raises(CheckpointError, match=f"{tensor}: holds weights that are not finite"):
        export(copied, tmp_path / "out", scheme=scheme)
    assert not (tmp_path / "out").exists()


def test_a_budget_finds_weights_that_are_not_finite(copied: Path, tmp_path: Path) -> None:
    tensors = weights(copied)
    tensors[f"{DOWN}.weight"].view(-1)[3] = float("nan")
    save(copied, tensors)
    with pytest.raises(CheckpointError, match=f"{DOWN}.weight: holds weights that are not finite"):
        export(copied, tmp_path / "out", bits_per_weight=7.5)
    assert list(tmp_path.glob("out*")) == []


@pytest.mark.parametrize("scheme", ["uint4-b64-e8-weighted", "uint4-b64-e8-gptq"])
@pytest.mark.parametrize("bits", [None, 7.5])
def test_activations_that_overflow_are_one_line(copied: Path, tmp_path: Path, scheme: str, bits: float | None) -> None:
    """A norm's weight with a broken exponent: finite itself, and its products are not."""
    tensors = {name: tensor.float() for name, tensor in weights(copied).items()}
    tensors["model.layers.0.input_layernorm.weight"][3] = 3e38
    save(copied, tensors)
    with pytest.raises(CheckpointError, match="not finite; is the checkpoint whole"):
        export(copied, tmp_path / "out", scheme=scheme, bits_per_weight=bits)
    assert list(tmp_path.glob("out*")) == []


def test_weights_beyond_the_targets_type_are_not_sealed(copied: Path, tmp_path: Path) -> None:
    tensors = weights(copied)
    tensors["model.norm.weight"][3] = 1e5
    save(copied, tensors)
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight: has values beyond float16"):
        export(copied, tmp_path / "out", target="windows-directml")


def test_weights_that_are_all_zero(copied: Path, tmp_path: Path) -> None:
    save(copied, {name: torch.zeros_like(tensor) for name, tensor in weights(copied).items()})
    assert export(copied, tmp_path / "out", scheme="int4-b32").loss.mean_squared_error == 0


def test_a_manifest_cannot_have_a_number_that_is_none(tiny_onnx: Path) -> None:
    manifest = open_artifact(tiny_onnx).manifest
    with pytest.raises(ValueError, match="Out of range float"):
        replace(manifest, loss=replace(manifest.loss, mean_kl=float("nan"))).to_json()


# --- what ends an answer ---

IM = ["<|im_start|>", "<|im_sep|>", "<|im_end|>"]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '<|im_sep|>' + m['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant<|im_sep|>{% endif %}"
)
# The first published Phi-4's: it opens the assistant's turn after every user's.
OPENING = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|im_start|>user<|im_sep|>' + m['content'] + "
    "'<|im_end|><|im_start|>assistant<|im_sep|>' }}{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{% endfor %}"
)


def with_tokens(folder: Path, texts: list[str], *, special: bool = True) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    flags = {"special": special, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [{"id": 760 + number, "content": text, **flags} for number, text in enumerate(texts)]
    edit(folder / "tokenizer.json", added_tokens=[*content["added_tokens"], *added])


@pytest.mark.parametrize("template", [CHATML, OPENING], ids=["ChatML", "the first Phi-4"])
@pytest.mark.parametrize("place", ["tokenizer_config.json", "chat_template.jinja"])
def test_the_template_says_what_ends_an_answer(copied: Path, template: str, place: str) -> None:
    with_tokens(copied, IM)
    edit(copied / "config.json", eos_token_id=755)
    edit(copied / "tokenizer_config.json", eos_token="<|endoftext|>", chat_template=None)
    if place == "chat_template.jinja":
        (copied / place).write_text(template)
    else:
        edit(copied / place, chat_template=template)
    checkpoint = open_checkpoint(str(copied))
    assert checkpoint.tokens.stop[0] == 755 and 762 in checkpoint.tokens.stop
    assert 760 not in checkpoint.tokens.stop
    assert not checkpoint.notes


def test_tokenizer_config_names_the_end_token(copied: Path) -> None:
    with_tokens(copied, IM)
    edit(copied / "tokenizer_config.json", eos_token={"content": "<|im_end|>"}, chat_template=None)
    assert 762 in open_checkpoint(str(copied)).tokens.stop


@pytest.mark.parametrize(
    ("template", "part"),
    [
        ("{% for m in messages %}{{ m['content'] }}\n{% endfor %}", "writes no token behind an answer"),
        ("{% if messages | length > 1 %}{{ raise_exception('one') }}{% endif %}x", "has no text for an answer"),
    ],
)
def test_a_template_that_ends_no_answer_is_noted(copied: Path, template: str, part: str) -> None:
    edit(copied / "tokenizer_config.json", chat_template=template)
    assert part in notes(copied)


@pytest.mark.parametrize(
    ("template", "part"),
    [
        ("{% for", "cannot be read"),
        ("{% unknown %}", "cannot be read"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ raise_exception('never') }}", "never"),
        (5, "chat_template is a int"),
        ([{"name": "default", "template": 5}], "chat_template is a int"),
        (["x", {"name": "other"}], None),
    ],
)
def test_a_template_that_cannot_be_used(copied: Path, template: Any, part: str | None) -> None:
    edit(copied / "tokenizer_config.json", chat_template=template)
    if part is None:
        assert open_checkpoint(str(copied)).chat.source is None
    else:
        refused(copied, "tokenizer_config.json", part)


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("manifest.json", "is an artifact, which is an export already; give the checkpoint that it was made from"),
        ("phi/config.json", "has no config.json, but phi has: give "),
        ("phi.Q4_K_M.gguf", "has no config.json, but phi.Q4_K_M.gguf, llama.cpp's weights (GGUF); give a checkpoint"),
        ("notes.txt", "has no config.json; give a checkpoint folder as the hub has it"),
    ],
)
def test_a_folder_that_is_no_checkpoint(tmp_path: Path, file: str, said: str) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).touch()
    refused(tmp_path, said)


def test_a_page_of_the_hub_is_no_id() -> None:
    with pytest.raises(CheckpointError, match=r"give its id, microsoft/Phi-3-mini-4k-instruct$"):
        open_checkpoint("https://huggingface.co/microsoft/Phi-3-mini-4k-instruct/tree/main")


def test_a_system_without_locks_exports(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows and macOS."""
    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.delattr(os, "posix_fadvise")
    assert export(plain, tmp_path / "out", scheme="fp32").format == "onnx"


@pytest.mark.parametrize(
    ("template", "part"),
    [
        ("{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}", "takes longer than 0.1 s"),
        ("{{ 'a' | center(10 ** 10) }}", "of more than 10000000 parts"),
        ("{% if messages | length > 1 %}{{ [1] * 10 ** 10 }}{% endif %}a question", "of more than 10000000 parts"),
    ],
)
def test_a_template_that_takes_too_much(
    copied: Path, monkeypatch: pytest.MonkeyPatch, template: str, part: str
) -> None:
    monkeypatch.setattr("export.template.allowance.RENDER_S", 0.1)
    edit(copied / "tokenizer_config.json", chat_template=template)
    refused(copied, "chat template cannot be used", part)


def test_a_tokenizer_that_splits_with_a_look_ahead_is_noted(copied: Path, tmp_path: Path) -> None:
    """Phi-4-mini's does; an ExecuTorch runner may lack what it needs."""
    splitter = {"type": "Split", "pattern": {"Regex": r"\s+(?!\S)|\s+"}, "behavior": "Isolated", "invert": False}
    content = json.loads((copied / "tokenizer.json").read_text())["pre_tokenizer"]
    content["pretokenizers"][0] = splitter
    edit(copied / "tokenizer.json", pre_tokenizer=content)
    for format, expected in (("executorch", True), ("onnx", False)):
        manifest = export(copied, tmp_path / format, scheme="int4-b32", format=format)
        assert any("SUPPORT_REGEX_LOOKAHEAD=ON" in note for note in manifest.notes) == expected
