"""GGUF: what was calibrated is stored, llama.cpp computes what transformers does, and makes the same ids of text.

llama.cpp is that of xllamacpp, called as the engine calls it.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from click.testing import CliRunner
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from ci.gpu.questions import twenty_questions
from ci.real_model import Form
from export.artifact import open_artifact
from export.errors import OptionError
from export.job import resolve
from export.pipeline import export_model
from export.plan import weight_bytes
from export.request import ExportRequest
from export.texts import HELD_OUT
from export.to_gguf.vocabulary import CL100K, O200K
from export.weights.layout_file import read_layout
from export.weights.methods.blocks import LEVELS, pack_blocks
from export.weights.methods.gptq import Moments, feedback_of, quantise_rows_with_feedback
from export.weights.methods.quantize import quantise_rows
from export.weights.scratch import Scratch
from export.weights.slots import BlockType
from phi_edge.main import main
from runtimes.api import GenerateRequest, TokenEvent
from runtimes.engines.llama_library import last_errors, load_llama
from runtimes.registry import ENGINES, open_runtime

TINY = Path(__file__).parent.parent / "export" / "tiny"
HOME = ["Turn off the lamp in the kitchen.", "What is 17 plus 26?", "How many grams are 7 kilograms?", "Hello"]
TEXTS = [
    "Hello, world!  It's 12345 o'clock;\n\n  don't WAIT\t-- naïve café, 東京で 3.14 🙂",
    " leading and trailing ",
    "def f(x):\n    return x ** 2  # they'LL\r\n",
    "",
    "a\u2581b 'tis SchönHeit d'Été 1 22 333 4444",
]


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
@pytest.mark.parametrize("method", ["data-free", "weighted", "gptq"])
def test_a_block_holds_what_was_calibrated(kind: BlockType, method: str) -> None:
    """ggml's own library reads back, bit for bit, the weights that the pass computed with; however small or large."""
    gguf = pytest.importorskip("gguf")
    torch.manual_seed(0)
    weight = torch.randn(64, 96) * torch.logspace(-9, 4, 64)[:, None] + torch.linspace(-1, 1, 64)[:, None]
    weight[3] = 0
    weight[5] *= 1e-9
    inputs = torch.randn(200, 96) * torch.logspace(-2, 1, 96)
    moments = Moments(96)
    moments.add(inputs)
    bits, scratch = int(kind[1]), Scratch()
    if method == "gptq":
        rows = quantise_rows_with_feedback(
            weight, feedback_of(moments), bits=bits, block_size=32, scale_dtype=torch.float16, scratch=scratch,
            levels=LEVELS[kind],
        )  # fmt: skip
    else:
        importance = moments.mean_squares() if method == "weighted" else None
        rows = quantise_rows(
            weight, bits=bits, block_size=32, scale_dtype=torch.float16, scratch=scratch, levels=LEVELS[kind],
            importance=importance,
        )  # fmt: skip
    stored = pack_blocks(rows, kind).numpy()
    assert stored.shape == (64, 3 * gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][1])
    read = gguf.dequantize(stored, gguf.GGMLQuantizationType[kind])
    assert np.array_equal(read, rows.dequantised.numpy())


@pytest.fixture(scope="session")
def tiny_as(made_once: Callable[..., Path]) -> Callable[[str], Path]:
    """tiny_as(scheme): the tiny model as a GGUF artifact."""

    def make(scheme: str) -> Path:
        request = ExportRequest(checkpoint="tiny", out=Path(), format="gguf", scheme=scheme, context_tokens=256)
        return made_once(f"tiny-gguf-{scheme}", lambda out: export_model(dataclasses.replace(request, out=out)))

    return make


@functools.lru_cache(1)
def float_model(checkpoint: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()


def reference(ids: Sequence[int], checkpoint: Path = TINY) -> npt.NDArray[np.float32]:
    """transformers' float logits after each id."""
    with torch.inference_mode():
        logits = float_model(checkpoint)(torch.tensor([list(ids)]), use_cache=False).logits
    result: npt.NDArray[np.float32] = logits[0].numpy()
    return result


def greedy(folder: Path, ids: Sequence[int], count: int) -> list[int]:
    runtime = open_runtime(folder)
    request = GenerateRequest(token_ids=ids, max_new_tokens=count, ignore_stop_ids=True)
    found = [event.id for event in runtime.generate(request) if isinstance(event, TokenEvent)]
    runtime.close()
    return found


def compare_tokens(folder: Path, checkpoint: Path, texts: Sequence[str], count: int) -> None:
    """Each text is followed by the tokens that transformers would choose after what was chosen before."""
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    for text in texts:
        ids = tokenizer.encode(text).ids
        chosen = greedy(folder, ids, count)
        expected = reference([*ids, *chosen], checkpoint).argmax(axis=-1)[len(ids) - 1 : -1]
        assert chosen == expected.tolist(), text


def test_in_float_llama_cpp_gives_transformers_tokens(tiny_as: Callable[[str], Path]) -> None:
    held_out = (TINY / "held_out.txt").read_text(encoding="utf-8").split("\n\n")
    compare_tokens(tiny_as("fp32"), TINY, [*HOME, *(part[:60] for part in held_out[:16])], 16)


@pytest.mark.real
def test_in_float_llama_cpp_gives_a_real_models_tokens(real_checkpoint: Callable[[Form], Path], tmp_path: Path) -> None:
    checkpoint, out = real_checkpoint("phi3"), tmp_path / "out"
    export_model(ExportRequest(checkpoint=str(checkpoint), out=out, format="gguf", scheme="fp32", context_tokens=64))
    compare_tokens(out, checkpoint, twenty_questions()[::4], 12)


@pytest.mark.parametrize("scheme", ["fp32", "bf16", "fp16", "int4-b32", "uint4-b32-e8-gptq"])
def test_check_against_the_checkpoint(tiny_as: Callable[[str], Path], scheme: str) -> None:
    done = CliRunner().invoke(main, ["check", str(tiny_as(scheme)), "--against", "tiny"])
    assert done.exit_code == 0, done.output


def test_four_bits_lose_what_the_manifest_says(tiny_as: Callable[[str], Path]) -> None:
    """The KL through llama.cpp on other text of the same kind; the engine's 8-bit activations come on top."""
    artifact = open_artifact(tiny_as("uint4-b32-e8-gptq"))
    text = (TINY / "held_out.txt").read_text(encoding="utf-8")
    ids = Tokenizer.from_file(str(TINY / "tokenizer.json")).encode(text).ids[:240]
    engine = ENGINES["gguf"](artifact, None)
    ours = np.stack([engine.forward([id], place).copy() for place, id in enumerate(ids)])
    engine.close()
    theirs = reference(ids)
    ours_log, theirs_log = (part - np.logaddexp.reduce(part, axis=-1, keepdims=True) for part in (ours, theirs))
    kl = float((np.exp(theirs_log) * (theirs_log - ours_log)).sum(axis=-1).mean())
    assert kl < 2 * artifact.manifest.loss.mean_kl


def test_the_plan_knows_the_size(tiny_as: Callable[[str], Path]) -> None:
    artifact = open_artifact(tiny_as("int4-b32"))
    job = resolve(ExportRequest(checkpoint="tiny", out=Path(), format="gguf", scheme="int4-b32"))
    assert 0 <= artifact.manifest.files["model.gguf"].bytes - weight_bytes(job) < 10_000


def test_two_of_them_side_by_side(tiny_as: Callable[[str], Path]) -> None:
    done = CliRunner().invoke(main, ["diff", str(tiny_as("int4-b32")), str(tiny_as("fp32"))])
    assert done.exit_code == 0, done.output
    assert "general.file_type: 2 -> 0" in done.output
    assert "lm_head.weight: 4 bits, blocks of 32 -> float32" in done.output


def test_a_budget_stores_some_matrices_in_more_bits(tmp_path: Path) -> None:
    request = ExportRequest(
        checkpoint="tiny",
        out=tmp_path / "out",
        format="gguf",
        scheme="int4-b32",
        bits_per_weight=5.5,
        context_tokens=64,
    )
    artifact = export_model(request)
    kinds = {slot.block_type for tensor in read_layout(artifact) for slot in tensor.slots.values()}
    assert kinds >= {"Q4_0", "Q8_0"}
    assert len(greedy(artifact.folder, [1, 5, 9], 4)) == 4


def test_long_rope_on_both_sides_of_its_switch(random_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    factors = {"short_factor": [1.0 + n / 16 for n in range(12)], "long_factor": [1.0 + n * 4 for n in range(12)]}
    checkpoint = random_checkpoint(
        max_position_embeddings=2048,
        original_max_position_embeddings=256,
        sliding_window=None,
        tie_word_embeddings=True,
        rope_parameters={
            "rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 0.75,
            "original_max_position_embeddings": 256, **factors,
        },
    )  # fmt: skip
    out = tmp_path / "out"
    request = ExportRequest(checkpoint=str(checkpoint), out=out, format="gguf", scheme="fp32", context_tokens=320)
    artifact = export_model(request)
    assert any("long factors" in note for note in artifact.manifest.notes)
    done = CliRunner().invoke(main, ["check", str(out), "--against", str(checkpoint)])
    assert done.exit_code == 0, done.output


def bytes_of(splitter: Any, *, stays: bool = False) -> Tokenizer:
    """A byte-level tokenizer that splits text so."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=stays))
    tokenizer.pre_tokenizer, tokenizer.decoder = splitter, decoders.ByteLevel()
    trained(tokenizer, pre_tokenizers.ByteLevel.alphabet())
    return tokenizer


def by_pattern(pattern: str) -> Any:
    steps = [
        pre_tokenizers.Split(Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    return pre_tokenizers.Sequence(steps)


def pieces(*, prefix: bool) -> Tokenizer:
    """SentencePiece's kind, as the tokenizers of Phi-3-mini and medium are."""
    names = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    replace = normalizers.Replace(" ", "\u2581")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), replace] if prefix else [replace])
    trained(tokenizer, [], ["<unk>", *names])
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] not in names]
    for token in content["added_tokens"]:
        token["rstrip"] = prefix and token["content"] not in ("<unk>", "<s>", "<|endoftext|>")
    return Tokenizer.from_str(json.dumps(content))


def trained(tokenizer: Tokenizer, alphabet: list[str], first: Sequence[str] = ()) -> None:
    special = [*first, "<s>", "</s>", "<|endoftext|>", "<|user|>", "<|end|>", "<|assistant|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=766, show_progress=False, special_tokens=special, initial_alphabet=alphabet, limit_alphabet=300
    )
    tokenizer.train_from_iterator([*TEXTS, (TINY / "held_out.txt").read_text(encoding="utf-8")] * 3, trainer)


TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "gpt-2": lambda: bytes_of(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "smollm": lambda: bytes_of(
        pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    ),
    "llama-bpe": lambda: bytes_of(by_pattern(CL100K), stays=True),
    "dbrx": lambda: bytes_of(by_pattern(CL100K)),
    "gpt-4o": lambda: bytes_of(by_pattern(O200K)),
    "Phi-3's pieces": lambda: pieces(prefix=True),
    "pieces without a space before": lambda: pieces(prefix=False),
}


def llama_ids(file: Path, texts: Sequence[str]) -> list[list[int]]:
    """llama.cpp's own tokens of each text."""
    library = load_llama()
    model = library.llama_model_load_from_file(str(file).encode(), library.llama_model_default_params())
    assert model, last_errors()
    vocabulary, room, found = library.llama_model_get_vocab(model), (ctypes.c_int32 * 1000)(), []
    for text in texts:
        data = text.encode()
        count = library.llama_tokenize(vocabulary, data, len(data), room, len(room), True, True)
        assert count >= 0
        found.append(room[:count])
    library.llama_model_free(model)
    return found


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_llama_cpp_makes_the_same_tokens_of_a_text(
    kind: str, random_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    tokenizer = TOKENIZERS[kind]()
    eos = tokenizer.token_to_id("<|endoftext|>")
    checkpoint = random_checkpoint(num_hidden_layers=1, hidden_size=32, intermediate_size=32, eos_token_id=eos)
    # By a name with Phi-3 in it llama.cpp drops white space behind special tokens, whatever the tokenizer does.
    checkpoint = checkpoint.rename(tmp_path / "my-Phi-3")
    tokenizer.save(str(checkpoint / "tokenizer.json"))
    (checkpoint / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
    artifact = export_model(
        ExportRequest(checkpoint=str(checkpoint), out=tmp_path / "out", format="gguf", scheme="fp32")
    )
    assert artifact.manifest.notes == ()
    texts = [*TEXTS, *(f"<|user|>\n{text}<|end|>\n<|assistant|>\n" for text in TEXTS)]
    expected = [tokenizer.encode(text).ids for text in texts]
    assert llama_ids(artifact.path("model.gguf"), texts) == expected


@pytest.mark.shared
@pytest.mark.parametrize("model", ["mini-4k", "phi-3.5-mini", "medium-4k"])
def test_the_published_tokenizers(model: str, random_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    published = TINY.parents[2] / "shared" / "phi3" / model
    if not published.is_dir():
        pytest.skip(f"needs {published}")
    checkpoint = random_checkpoint(num_hidden_layers=1, hidden_size=32, intermediate_size=32, vocab_size=32064)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(published / name, checkpoint / name)
    artifact = export_model(
        ExportRequest(checkpoint=str(checkpoint), out=tmp_path / "out", format="gguf", scheme="fp32")
    )
    tokenizer = Tokenizer.from_file(str(published / "tokenizer.json"))
    texts = [
        *TEXTS,
        *(f"<|user|>\n{text}<|end|>\n<|assistant|>\n" for text in TEXTS),
        HELD_OUT.read_text("utf-8")[:1500],
    ]
    assert llama_ids(artifact.path("model.gguf"), texts) == [tokenizer.encode(text).ids for text in texts]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "blocks of another size": ({"scheme": "uint4-b64-e8-weighted"}, "use uint4-b32-e8-weighted"),
    "a context beyond the window": ({"context_tokens": 4096}, "llama.cpp cannot do; use 2047"),
    "an int8 cache": ({"kv_cache": "int8"}, "--cache-type-k"),
    "16 bits elsewhere": ({"format": "onnx", "scheme": "bf16"}, "scheme bf16 is for --format gguf"),
    "a target without it": ({"target": "windows-directml"}, "it has: onnx"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_a_gguf_file_cannot_be(what: str, tmp_path: Path) -> None:
    options, message = REFUSED[what]
    request = ExportRequest(checkpoint="tiny", out=tmp_path / "out", format="gguf")
    with pytest.raises(OptionError, match=re.escape(message)):
        export_model(dataclasses.replace(request, **options))
    assert not (tmp_path / "out").exists()


def test_without_a_llama_cpp_it_says_what_runs_the_file(
    tiny_as: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    load_llama.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    done = CliRunner().invoke(main, ["run", str(tiny_as("fp32")), "Hello"])
    load_llama.cache_clear()
    assert done.exit_code == 2
    assert "phi-edge[gguf]" in done.output and "llama-server" in done.output
