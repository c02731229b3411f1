"""Phi-3-small's float module: its mask against a count by hand, its rows and its activation against plain loops."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from ci.variants import VARIANTS, make_checkpoint
from export.errors import CheckpointError
from export.models import phi3small
from export.models.phi3small import MLP, Attention, Phi3Small, attend_at_once, read_config, tensor_shapes
from phi_edge import main


def config(**changes: Any) -> phi3small.Phi3SmallConfig:
    small = {"hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 2, "ff_intermediate_size": 96}
    small |= {"num_hidden_layers": 2, "vocab_size": 128}
    return read_config(dict(VARIANTS["phi-3-small-8k"]) | small | changes)


def test_the_sparse_mask() -> None:
    asked = config(blocksparse_block_size=4, blocksparse_num_local_blocks=2, blocksparse_vert_stride=3)
    mask = asked.visible(0, 40, 40)
    for head in range(8):
        for query in range(40):
            for key in range(40):
                block, own = key // 4, query // 4
                local = own - block < 2
                kept = (block + head + 1) % 3 == 0  # a step of one block from head to head
                assert bool(mask[head, query, key]) == (key <= query and (local or kept))
    assert torch.equal(asked.visible(30, 5, 35), mask[:, 30:35, :35])


def test_the_published_pattern_is_dense_up_to_its_local_blocks() -> None:
    mask = config().visible(0, 1200, 1200)
    whole = torch.ones(1200, 1200).tril().bool()
    assert bool((mask[:, :1024] == whole[:1024]).all())
    assert not bool((mask[:, 1024:] == whole[1024:]).all())
    assert [config(num_hidden_layers=4).is_sparse(layer) for layer in range(4)] == [True, False, True, False]


def test_rows_go_by_group() -> None:
    module = Attention(config())
    hidden = torch.randn(1, 3, 64)
    query, key, value = module.project(hidden)
    rows = module.query_key_value(hidden)[0, 0].reshape(2, 6, 8)  # group, four queries and key and value, head_dim
    for group in range(2):
        assert torch.equal(query[0, 0, 4 * group : 4 * group + 4], rows[group, :4])
        assert torch.equal(key[0, 0, group], rows[group, 4]) and torch.equal(value[0, 0, group], rows[group, 5])


def test_gegelu_is_interleaved_and_bounded() -> None:
    module = MLP(config(gegelu_limit=0.5))
    hidden = torch.randn(1, 1, 64) * 4
    up = module.up_proj(hidden)[0, 0].tolist()
    expected = []
    for gate, linear in zip(up[0::2], up[1::2], strict=True):
        gate, linear = min(gate, 0.5), max(-0.5, min(linear, 0.5))
        expected.append(gate / (1 + math.exp(-1.702 * gate)) * (linear + 1))
    assert torch.allclose(module(hidden), module.down_proj(torch.tensor([[expected]])), atol=1e-5)


def test_dummy_tokens_are_never_chosen() -> None:
    asked = config(dummy_token_indices=[3, 127])
    torch.manual_seed(0)
    module = Phi3Small(asked).eval()
    assert {name: tuple(value.shape) for name, value in module.state_dict().items()} == tensor_shapes(asked)
    with torch.no_grad():
        logits = module(torch.arange(20)[None], attend_at_once(asked, 20))
    assert logits.shape == (1, 20, 128)
    assert bool((logits[..., [3, 127]] == torch.finfo(torch.float32).min).all())


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"rope_scaling": {"type": "su"}}, "rope_scaling"),
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


def test_an_export_is_refused(tmp_path: Path) -> None:
    folder = make_checkpoint("phi-3-mini-4k", tmp_path / "checkpoint", num_hidden_layers=1)
    (folder / "config.json").write_text(json.dumps(VARIANTS["phi-3-small-8k"]))
    result = CliRunner().invoke(main, ["export", str(folder), str(tmp_path / "out"), "--quiet"])
    assert result.exit_code == 2 and "'phi3small'; known: phi3" in result.stderr
