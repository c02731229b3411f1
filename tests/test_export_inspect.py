"""`phi-edge check` on what other tools exported, and `phi-edge diff`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper

from export.checkpoint.find import TINY
from phi_edge.main import main

LAYERS, HEADS, HEAD = 2, 2, 32
LONG_ROPE = {
    "rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]},
    "original_max_position_embeddings": 1024,
    "sliding_window": None,
}


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words], prog_name="phi-edge")


def attention(layer: int, window: int | None, **attributes: Any) -> onnx.NodeProto:
    names = ["qkv", "", "", f"past.{layer}.key", f"past.{layer}.value", "last", "total", "cos_cache", "sin_cache"]
    sliding = {} if window is None else {"local_window_size": window}
    given = {"num_heads": 4, "kv_num_heads": HEADS, "do_rotary": 1} | sliding | attributes
    return helper.make_node("GroupQueryAttention", names, [f"out.{layer}"], domain="com.microsoft", **given)


def table(name: str, rows: int) -> onnx.TensorProto:
    """A table whose numbers are in a data file that is not there: nobody may read it."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[rows, 16])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="absent.data")
    return tensor


def write_graph(path: Path, nodes: list[onnx.NodeProto], rows: int) -> None:
    keys = [
        helper.make_tensor_value_info(f"past.{layer}.key", TensorProto.FLOAT, [1, HEADS, None, HEAD])
        for layer in range(LAYERS)
    ]
    tables = [table(name, rows) for name in ("cos_cache", "sin_cache")]
    graph = helper.make_graph(nodes, "main", keys, [], initializer=tables)
    path.write_bytes(helper.make_model(graph).SerializeToString())


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """make(...): a folder as onnxruntime-genai's builder writes it, with the tiny model's tokenizer and config.json.

    The changes are those of its graph, of genai_config.json's parts and of config.json.
    """

    def folder(
        *,
        window: int | None = 2047,
        rows: int = 4096,
        extra: list[onnx.NodeProto] | None = None,
        model: dict[str, Any] | None = None,
        decoder: dict[str, Any] | None = None,
        search: dict[str, Any] | None = None,
        config: dict[str, Any] | None = None,
    ) -> Path:
        out = tmp_path / "genai"
        out.mkdir()
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(TINY / name, out / name)
        (out / "config.json").write_text(json.dumps(json.loads((TINY / "config.json").read_text()) | (config or {})))
        write_graph(out / "model.onnx", [attention(n, window) for n in range(LAYERS)] + (extra or []), rows)
        sizes = {"num_hidden_layers": LAYERS, "num_key_value_heads": HEADS, "head_size": HEAD}
        described = {"context_length": 4096} | (model or {})
        settings = {
            "model": {
                "eos_token_id": [758, 755, 756],
                "decoder": {"filename": "model.onnx"} | sizes | (decoder or {}),
            }
            | described,
            "search": {"max_length": described["context_length"], "past_present_share_buffer": True} | (search or {}),
        }
        (out / "genai_config.json").write_text(json.dumps(settings))
        return out

    return folder


def directml(**more: Any) -> dict[str, Any]:
    return {"decoder": {"session_options": {"provider_options": [{"dml": {}}]}}} | more


def test_nothing_is_wrong(make: Callable[..., Path]) -> None:
    result = run("check", make())
    assert result.exit_code == 0, result.output
    assert "a folder of onnxruntime-genai, without a manifest" in result.stdout
    assert result.stdout.endswith("0 known to be wrong, 0 that the files do not show\n")


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"window": None}, ["wrong: sliding window: no window in 2 of 2 attention nodes", "a window of 2047"]),
        ({"window": 1024}, ["wrong: sliding window: a window of 1024 in 2", "stay within 1024 tokens"]),
        ({"config": {"sliding_window": None}}, ["wrong: sliding window: a window of 2047", "says no window"]),
        (
            {"window": -1, "decoder": {"sliding_window": {"window_size": 2047, "layers": [], "cache_slack": 16}}},
            ["wrong: sliding window", "wrong: KV cache", "some tokens beyond 2063", "stay within 2047"],
        ),
        ({"window": -1, "config": LONG_ROPE}, ["wrong: long rope: the graph has one table", "up to 1024 tokens"]),
        ({"model": {"eos_token_id": 755}}, ["wrong: stop ids", "without <|end|> (758)", "add 758 there"]),
        ({"model": {"eos_token_id": [758, 755, 756, 99]}}, ["wrong: stop ids", "has 99, an ordinary token"]),
        ({"model": {"eos_token_id": None}}, ["wrong: stop ids: genai_config.json's eos_token_id has none"]),
        ({"search": {"max_length": 1 << 24}}, ["wrong: memory: search.max_length 16777216 reserves 16 GiB"]),
        (directml(), ["wrong: operators: GroupQueryAttention with do_rotary (2 nodes)"]),
        (directml(search={"past_present_share_buffer": False}), ["wrong: KV cache", "set it to true"]),
        (
            directml(extra=[helper.make_node("GatherBlockQuantized", ["w", "ids"], ["h"], domain="com.microsoft")]),
            ["GatherBlockQuantized (1 nodes)", "--target windows-directml"],
        ),
        ({"model": {"context_length": -1}}, ["settings: genai_config.json has model.context_length -1", "above 0"]),
        ({"model": {"vocab_size": "many"}}, ["settings: genai_config.json has model.vocab_size 'many'"]),
        ({"model": {"vocab_size": 32064}}, ["model.vocab_size 32064; config.json has 768 tokens; write 768 there"]),
        ({"decoder": {"filename": "/home/me/model.onnx"}}, ["right on one computer only; write model.onnx there"]),
        ({"decoder": {"filename": "C:\\me\\model.onnx"}}, ["right on one computer only; write model.onnx there"]),
        ({"decoder": {"filename": "decoder.onnx"}}, ["filename 'decoder.onnx'; the folder has no such file"]),
        ({"decoder": {"filename": ["model.onnx"]}}, ["it names the graph; write model.onnx there"]),
        ({"decoder": {"num_hidden_layers": 32}}, ["num_hidden_layers 32; the graph has 2 layers; write 2 there"]),
        ({"decoder": {"num_key_value_heads": 8}}, ["num_key_value_heads 8; the graph has 2 heads"]),
        ({"search": {"max_length": 8192}}, ["search.max_length 8192; the model's context has 4096 tokens"]),
    ],
    ids=lambda value: value[0][:40] if isinstance(value, list) else "",
)
def test_a_known_fault(make: Callable[..., Path], changes: dict[str, Any], parts: list[str]) -> None:
    result = run("check", make(**changes))
    assert result.exit_code == 1, result.output
    for part in parts:
        assert part in result.stdout


@pytest.mark.parametrize(
    "changes",
    [
        {"window": -1, "model": {"context_length": 2047}},
        {"window": -1, "config": LONG_ROPE, "rows": 4096 + 1024},
        {"window": -1, "config": LONG_ROPE, "model": {"context_length": 1024}},
        {"decoder": {"filename": None, "pipeline": [{"decoder": {"filename": "model.onnx"}}]}},
        {
            "window": -1,
            "config": LONG_ROPE,
            "extra": [helper.make_node("If", ["long"], ["cos_cache", "sin_cache"])],
        },
    ],
    ids=["within the window", "two tables in one", "within the short factors", "a pipeline", "an If"],
)
def test_no_fault(make: Callable[..., Path], changes: dict[str, Any]) -> None:
    result = run("check", make(**changes))
    assert result.exit_code == 0, result.output


def test_the_checkpoint_s_config_is_used_where_the_folder_has_none(make: Callable[..., Path]) -> None:
    folder = make(window=None)
    (folder / "config.json").unlink()
    alone, against = run("check", folder), run("check", folder, "--against", "tiny")
    assert (alone.exit_code, against.exit_code) == (0, 1)
    assert "give --against CHECKPOINT" in alone.stdout
    assert "config.json says a window of 2047" in against.stdout


def test_no_chat_template_and_a_report(make: Callable[..., Path], tmp_path: Path) -> None:
    folder = make()
    (folder / "tokenizer_config.json").write_text("{}")
    assert "wrong: chat template" in run("check", folder, "--json", tmp_path / "r.json").stdout
    (finding,) = json.loads((tmp_path / "r.json").read_text())
    assert (finding["state"], finding["what"]) == ("wrong", "chat template")


def test_an_olive_folder_and_attention_in_plain_operators(make: Callable[..., Path], tmp_path: Path) -> None:
    """Olive has the model in model/; optimum's graphs have no attention node, so their window cannot be read."""
    folder = make()
    write_graph(folder / "model.onnx", [helper.make_node("MatMul", ["a", "b"], ["c"])], 4096)
    (tmp_path / "olive").mkdir()
    folder.rename(tmp_path / "olive" / "model")
    result = run("check", tmp_path / "olive")
    assert result.exit_code == 0, result.output
    assert "unknown: sliding window" in result.stdout and "1 that the files do not show" in result.stdout


@pytest.mark.parametrize(("name", "says"), [("model.onnx", "is not an ONNX graph"), ("m.pte", "not an ExecuTorch")])
def test_a_damaged_model_is_one_line(make: Callable[..., Path], name: str, says: str) -> None:
    folder = make()
    (folder / name).write_bytes(b"\xff" * 300)
    result = run("check", folder / name)
    assert result.exit_code == 2 and says in result.stderr and result.stderr.count("\n") == 1, result.output


def test_a_program_without_its_manifest(tiny_executorch: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_executorch / "model.pte", tmp_path / "stock.pte")
    alone = run("check", tmp_path / "stock.pte", "--against", "tiny")
    assert alone.exit_code == 1, alone.output
    assert "an ExecuTorch program" in alone.stdout and "wrong: tokenizer: no tokenizer.json" in alone.stdout
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / name, tmp_path / name)
    whole = run("check", tmp_path, "--against", "tiny")
    assert whole.exit_code == 0, whole.output


def test_an_artifact_does_not_differ_from_itself(tiny_onnx: Path) -> None:
    result = run("diff", tiny_onnx, tiny_onnx, "--fail", "--run", "Turn off the lamp.", "--max-new-tokens", 4)
    assert (result.exit_code, result.stdout) == (0, "no differences\n"), result.output


def test_two_artifacts(tiny_onnx: Path, tiny_onnx_short: Path, tmp_path: Path) -> None:
    out = tmp_path / "d.json"
    result = run("diff", tiny_onnx, tiny_onnx_short, "--json", out)
    assert result.exit_code == 0, result.output
    assert "  context_tokens: 4096 -> 256\n" in result.stdout
    assert "  genai_config.json: search.max_length: 4096 -> 256\n" in result.stdout
    found = json.loads(out.read_text())
    assert {"manifest", "settings", "files"} <= {each["table"] for each in found}
    assert not [each for each in found if each["table"] == "precision"]
    assert run("diff", tiny_onnx, tiny_onnx_short, "--fail").exit_code == 1


def test_two_formats(tiny_onnx: Path, tiny_executorch: Path) -> None:
    found = json.loads(run("diff", tiny_onnx, tiny_executorch, "--json", "-").stdout)
    by_key = {each["key"]: each for each in found}
    assert (by_key["format"]["a"], by_key["format"]["b"]) == ("onnx", "executorch")
    projection = by_key["model.layers.0.self_attn.o_proj.weight"]
    assert (projection["a"], projection["b"]) == ("4 bits, blocks of 64, zero points", "4 bits, blocks of 32")
    assert (by_key["get_max_context_len"]["only"], by_key["get_max_context_len"]["b"]) == ("b", [2047])


def test_other_tools_folders_are_compared_too(make: Callable[..., Path], tmp_path: Path) -> None:
    before = make().rename(tmp_path / "before")
    after = make(window=1024)
    result = run("diff", before, after, "--json", "-")
    (change,) = [each for each in json.loads(result.stdout) if each["table"] == "graph"]
    assert change["key"] == "GroupQueryAttention.local_window_size"
    assert (change["a"], change["b"]) == ("2047 in 2", "1024 in 2")
    refused = run("diff", before, after, "--run", "hi")
    assert refused.exit_code == 2 and "another program exported it" in refused.stderr
