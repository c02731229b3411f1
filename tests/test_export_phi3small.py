"""Phi-3-small: its mask against a count by hand, its rows and activation against plain loops; then exports of it.

The small checkpoint has everything: both kinds of layers, a pattern that moves from head to head and leaves blocks out
early, grouped heads, biases, dummy tokens, a tied head, and long rope with an attention factor for each set.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from ci.variants import VARIANTS, make_checkpoint
from export.artifact import Artifact, Format, verify
from export.checkpoint.byte_ranks import RANKS
from export.checkpoint.open import open_checkpoint
from export.errors import CheckpointError
from export.models.layers import QKV
from export.models.masks import BlockPattern
from export.models.phi3small import MLP, Phi3SmallConfig, read_config
from export.pipeline import Progress, export_model
from export.request import AdapterChoice, ExportRequest
from export.verify.conformance import examine
from export.verify.reference import open_reference
from export.weights.dequantize import read_weights
from phi_edge.main import main
from runtimes.api import Message
from runtimes.subject import open_subject
from runtimes.text.tokenizer import Tokenizer

SMALL: dict[str, Any] = {
    "hidden_size": 128,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "ff_intermediate_size": 96,
}
SMALL |= {"num_hidden_layers": 2}
# Sparse from 16 tokens on, long from 48 on.
EARLY: dict[str, Any] = {"blocksparse_block_size": 8, "blocksparse_num_local_blocks": 2, "blocksparse_vert_stride": 3}
SCALING = {
    "type": "su",
    "short_factor": [1.0 + i / 8 for i in range(8)],
    "long_factor": [1.0 + 2.0 * i for i in range(8)],
    "short_mscale": 1.1,
    "long_mscale": 1.3,
    "original_max_position_embeddings": 48,
}
LONG: dict[str, Any] = {"max_position_embeddings": 128, "original_max_position_embeddings": 48, "rope_scaling": SCALING}
CONTEXT = 88
IDS = np.random.default_rng(0).integers(8, 400, 40).tolist()


def config(**changes: Any) -> Phi3SmallConfig:
    return read_config(dict(VARIANTS["phi-3-small-8k"]) | SMALL | {"vocab_size": 128} | changes)


@pytest.mark.parametrize("homo", [False, True])
def test_the_sparse_mask(homo: bool) -> None:
    blocks = config(**EARLY | {"blocksparse_block_size": 4, "blocksparse_homo_head_pattern": homo}).blocks
    mask = blocks.visible(8, 0, 40, 40)
    starts, lists = blocks.layouts(8, 37)
    for head in range(8):
        layout = head % len(starts)
        for query in range(40):
            row = lists[layout, starts[layout, query // 4] : starts[layout, query // 4 + 1]].tolist()
            for key in range(40):
                block, own = key // 4, query // 4
                local = own - block < 2
                kept = (block + (0 if homo else head) + 1) % 3 == 0  # a step of one block from head to head
                assert bool(mask[head, query, key]) == (key <= query and (local or kept))
                assert (block in row) == (block <= own and (local or kept))
    assert torch.equal(blocks.visible(8, 30, 5, 35), mask[:, 30:35, :35])


def test_the_published_pattern_is_dense_up_to_its_local_blocks() -> None:
    blocks = config().blocks
    assert blocks == BlockPattern(size=64, local=16, stride=8, step=1) and blocks.dense_tokens == 1024
    mask = blocks.visible(8, 0, 1200, 1200)
    whole = torch.ones(1200, 1200).tril().bool()
    assert bool((mask[:, :1024] == whole[:1024]).all())
    assert not bool((mask[:, 1024:] == whole[1024:]).all())
    kinds = [config(num_hidden_layers=4).attention(layer).blocks for layer in range(4)]
    assert kinds == [blocks, blocks.dense(), blocks, blocks.dense()]
    assert torch.equal(blocks.dense().visible(8, 0, 1200, 1200)[5], whole)
    starts, _ = blocks.layouts(32, 8192)
    assert starts.shape == (8, 129)


def test_rows_go_by_group() -> None:
    qkv = torch.arange(2.0 * 6 * 16)[None, None]
    arranged = QKV(1, 8, 2, 16, grouped=True).arrange(qkv).reshape(1, 1, 12, 16)
    query, key, value = torch.split(arranged, [8, 2, 2], dim=2)
    rows = qkv[0, 0].reshape(2, 6, 16)  # group, four queries and key and value, head_dim
    for group in range(2):
        assert torch.equal(query[0, 0, 4 * group : 4 * group + 4], rows[group, :4])
        assert torch.equal(key[0, 0, group], rows[group, 4]) and torch.equal(value[0, 0, group], rows[group, 5])


def test_gegelu_is_interleaved_and_bounded() -> None:
    module = MLP(config(gegelu_limit=0.5))
    hidden = torch.randn(1, 1, 128) * 4
    up = torch.nn.functional.linear(hidden, module.up_proj.weight, module.up_proj.bias)[0, 0].tolist()
    expected = []
    for gate, linear in zip(up[0::2], up[1::2], strict=True):
        gate, linear = min(gate, 0.5), max(-0.5, min(linear, 0.5))
        expected.append(gate / (1 + math.exp(-1.702 * gate)) * (linear + 1))
    assert torch.allclose(module(hidden), module.down_proj(torch.tensor([[expected]])), atol=1e-5)


def test_published_long_rope() -> None:
    rope = read_config(VARIANTS["phi-3-small-128k"]).rope
    assert (rope.theta, rope.rotary_dim, rope.original_context_tokens) == (1e6, 128, 8192)
    ours, theirs = rope.tables(2, long=True), rope.tables(2)
    scaling = VARIANTS["phi-3-small-128k"]["rope_scaling"]
    assert ours[0][0] == pytest.approx(scaling["long_mscale"]) and theirs[0][0] == pytest.approx(
        scaling["short_mscale"]
    )
    frequency = 1 / (scaling["long_factor"][5] * 1e6 ** (10 / 128))
    assert ours[1][1, 5] == pytest.approx(scaling["long_mscale"] * math.sin(frequency))


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"rope_scaling": {"type": "yarn"}}, "yarn"),
        ({"rope_scaling": {"type": "su"}}, "original_max_position_embeddings"),
        ({"rope_scaling": SCALING | {"long_factor": [1.0]}}, "long_factor has 1 numbers; this model needs 8"),
        ({"dummy_token_indices": [5, 1000]}, "dummy_token_indices"),
        ({"num_key_value_heads": 3}, "divide"),
        ({"attention_sinks": 1}, "attention_sinks"),
        ({"mup_use_scaling": None}, "mup_use_scaling"),
        ({"rope_position_scale": 2.0}, "rope_position_scale"),
        ({"gegelu_limit": "twenty"}, "gegelu_limit"),
    ],
)
def test_config_is_read_strictly(change: dict[str, Any], part: str) -> None:
    with pytest.raises(CheckpointError, match=part):
        config(**change)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phi3small") / "checkpoint"
    return make_checkpoint("phi-3-small-8k", folder, **SMALL, **EARLY, **LONG, dummy_token_indices=[7, 500])


def exported(checkpoint: Path, out: Path, format: Format, scheme: str) -> Artifact:
    return export_model(
        ExportRequest(checkpoint=str(checkpoint), out=out, format=format, scheme=scheme, context_tokens=CONTEXT)
    )


@pytest.mark.parametrize(("format", "scheme"), [("onnx", "fp32"), ("onnx", "int4-b32"), ("executorch", "fp32")])
def test_an_export_computes_what_the_float_module_does(
    checkpoint: Path, format: Format, scheme: str, tmp_path: Path
) -> None:
    artifact = exported(checkpoint, tmp_path / "out", format, scheme)
    report = examine(artifact, str(checkpoint), open_subject)
    assert report.failures == []
    assert {1, 15, 16, 17, 33, 47, 48, 49, CONTEXT} == {case.length for case in report.cases}
    assert [decode.boundary for decode in report.decodes] == [16, 48]
    assert artifact.manifest.rope.switch_tokens == 48
    if scheme == "fp32":
        assert report.max_difference < 1e-4 and all(decode.gap is None for decode in report.decodes)
    else:
        assert 0 < artifact.manifest.loss.mean_kl < 0.1
        assert artifact.manifest.scheme.kept_wider == ("*norm.weight", "*.bias")


@pytest.mark.parametrize("format", ["onnx", "executorch"])
def test_int4_rows_are_where_the_checkpoint_has_them(checkpoint: Path, format: Format, tmp_path: Path) -> None:
    """ExecuTorch's with one layer: each piece that it lowers, twice here, takes seconds."""
    if format == "executorch":
        changes = SMALL | EARLY | LONG | {"num_hidden_layers": 1}
        checkpoint = make_checkpoint("phi-3-small-8k", tmp_path / "checkpoint", **changes)
    artifact = exported(checkpoint, tmp_path / "out", format, "int4-b32")
    opened = open_checkpoint(str(checkpoint))
    weights, tensors = read_weights(artifact), opened.tensors
    subject = open_subject(artifact)
    logits = subject.forward(IDS, 0)
    expected = open_reference(opened, weights).logits(IDS, [len(IDS)])[0]
    subject.close()
    live = expected > torch.finfo(torch.float32).min
    assert np.abs(logits - expected)[live].max() < 0.5 * expected[live].std()
    for name, tensor in tensors.items():
        assert (weights[name] - tensor.read()).norm() <= 0.15 * tensor.read().norm(), name


class InterruptedAt(Progress):
    """Ctrl-C at a tensor."""

    def __init__(self, name: str) -> None:
        self.name = name

    def read(self, name: str, count: int) -> None:
        if name == self.name:
            raise KeyboardInterrupt


def test_an_interrupted_export_goes_on_with_the_same_bytes(checkpoint: Path, tmp_path: Path) -> None:
    undisturbed = exported(checkpoint, tmp_path / "undisturbed", "onnx", "int4-b32")
    request = ExportRequest(checkpoint=str(checkpoint), out=tmp_path / "out", scheme="int4-b32", context_tokens=CONTEXT)
    with pytest.raises(KeyboardInterrupt):
        export_model(request, InterruptedAt("model.layers.1.mlp.up_proj.bias"))  # its weight's rows are all split
    artifact = export_model(request)
    verify(artifact)
    assert artifact.manifest.digest() == undisturbed.manifest.digest()


def test_a_lora_bias_is_added(checkpoint: Path, tmp_path: Path) -> None:
    """PEFT's lora_bias: B has a bias, which counts as B does."""
    module, adapter = "model.layers.0.mlp.up_proj", tmp_path / "adapter"
    rows, columns = open_checkpoint(str(checkpoint)).tensors[f"{module}.weight"].shape
    torch.manual_seed(0)
    parts = {"A.weight": torch.randn(2, columns), "B.weight": torch.randn(rows, 2), "B.bias": torch.randn(rows)}
    adapter.mkdir()
    save_file(
        {f"base_model.model.{module}.lora_{end}": part for end, part in parts.items()},
        adapter / "adapter_model.safetensors",
    )
    content = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "lora_bias": True, "target_modules": ["up_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(content))
    plain = read_weights(exported(checkpoint, tmp_path / "plain", "onnx", "fp32"))
    request = ExportRequest(checkpoint=str(checkpoint), out=tmp_path / "out", scheme="fp32", context_tokens=CONTEXT)
    merged = read_weights(export_model(dataclasses.replace(request, adapters=(AdapterChoice(str(adapter), 0.5),))))
    added = {end: merged[f"{module}.{end}"] - plain[f"{module}.{end}"] for end in ("weight", "bias")}
    torch.testing.assert_close(added["bias"], 1.5 * parts["B.bias"])
    torch.testing.assert_close(added["weight"], 1.5 * parts["B.weight"] @ parts["A.weight"], atol=1e-4, rtol=1e-4)


GENAI = """
import json, sys, numpy, onnxruntime_genai as og
config = og.Config(sys.argv[1])
config.overlay(json.dumps({"model": {"eos_token_id": 767}}))  # a padding id, to see every token
model = og.Model(config)
params = og.GeneratorParams(model)
params.set_search_options(max_length=40, do_sample=False)
generator = og.Generator(model, params)
generator.append_tokens(numpy.array(json.load(sys.stdin), dtype=numpy.int32))
out = []
while not generator.is_done():
    generator.generate_next_token()
    out.append(int(generator.get_next_tokens()[0]))
print(json.dumps(out))
"""


def test_stock_genai_gives_our_tokens(checkpoint: Path, tmp_path: Path) -> None:
    """From before the first sparse block to beyond it; genai's own switch of factors is at 8192 for this model type."""
    artifact = exported(checkpoint, tmp_path / "out", "onnx", "fp32")
    command = [sys.executable, "-c", GENAI, str(artifact.folder)]
    result = subprocess.run(command, input=json.dumps(IDS[:12]), capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-2000:]
    subject = open_subject(artifact)
    ours = subject.decode(IDS[:12], 28)
    subject.close()
    assert json.loads(result.stdout) == ours and len(ours) == 28


def test_the_boundaries_matter(checkpoint: Path) -> None:
    """The float module without its sparse layers, or without the long factors, is another model than the suite's."""
    opened = open_checkpoint(str(checkpoint))
    weights = {name: tensor.read() for name, tensor in opened.tensors.items()}
    ids = np.random.default_rng(0).integers(8, 400, CONTEXT).tolist()
    exact = open_reference(opened, weights)
    assert isinstance(opened.config, Phi3SmallConfig)
    for change in (
        {"dense_attention_every_n_layers": 1},
        {"rope": dataclasses.replace(opened.config.rope, type="default")},
    ):
        other = open_reference(
            dataclasses.replace(opened, config=dataclasses.replace(opened.config, **change)), weights
        )
        assert np.abs(other.logits(ids, [CONTEXT]) - exact.logits(ids, [CONTEXT])).max() > 0.01
    assert exact.logits(ids, [CONTEXT])[0, [7, 500]].tolist() == [torch.finfo(torch.float32).min] * 2


@pytest.mark.parametrize("target", ["windows-directml", "web", "webgpu"])
def test_where_there_is_no_kernel_it_is_refused(checkpoint: Path, tmp_path: Path, target: str) -> None:
    arguments = ["export", str(checkpoint), str(tmp_path / "out"), "--target", target, "--quiet"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2 and "block-sparse attention" in result.stderr and result.stderr.count("\n") == 1


@pytest.fixture
def hub_checkpoint(tmp_path: Path) -> Path:
    """A checkpoint as the hub has it: a rank file, and no tokenizer.json."""
    narrow = SMALL | {"hidden_size": 32, "vocab_size": 100352, "bos_token_id": 100257, "eos_token_id": 100257}
    folder = make_checkpoint("phi-3-small-8k", tmp_path / "hub", **narrow)
    (folder / "tokenizer.json").unlink()
    tokens = [*(bytes([byte]) for byte in range(256)), b"he", b"hel", b"ll", b"llo", b"hello"]
    tokens += [f"\N{SNOWMAN}{number}".encode() for number in range(len(tokens), 100256)]
    lines = [f"{base64.b64encode(token).decode()} {rank}" for rank, token in enumerate(tokens)]
    (folder / RANKS).write_text("\n".join(lines) + "\n")
    published = {
        "chat_template": "<|user|>{{ messages[0]['content'] }}<|end|>",
        "auto_map": {"AutoTokenizer": ["x", None]},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(published))
    return folder


def test_a_rank_file_becomes_a_tokenizer(hub_checkpoint: Path, tmp_path: Path) -> None:
    artifact = exported(hub_checkpoint, tmp_path / "out", "onnx", "fp32")
    verify(artifact)
    manifest = artifact.manifest
    assert {"tokenizer.json", "tokenizer_config.json"} <= set(manifest.files) and RANKS not in manifest.files
    assert RANKS in manifest.source.files and "tokenizer.json" not in manifest.source.files
    assert list(manifest.tokens.stop) == [100257, 100266, 100263]
    tokenizer = Tokenizer(artifact.folder)
    # A word that is a token is that token; else its lowest pairs are merged first: he, hel, before ll.
    assert tokenizer.encode_prompt("hello") == [260] and tokenizer.encode_prompt("hell") == [257, ord("l")]
    chat = tokenizer.encode_chat([Message("user", "<|end|>hello")])
    assert [id for id in chat if id > 100255] == [100262, 100266] and chat[-2] == 260


@pytest.mark.parametrize(
    ("ranks", "message"), [("IQ== 0\nthis is not base64\n", "line 2"), ("IQ== 0\n", "has 1 tokens"), (None, RANKS)]
)
def test_a_broken_rank_file_is_one_line(hub_checkpoint: Path, ranks: str | None, message: str) -> None:
    (hub_checkpoint / RANKS).unlink()
    if ranks is not None:
        (hub_checkpoint / RANKS).write_text(ranks)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(str(hub_checkpoint))
