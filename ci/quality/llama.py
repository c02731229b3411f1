"""llama.cpp: a GGUF file written by its own quantiser's rules and functions, and run by its own engine.

The library is the one in PyPI's xllamacpp. It was built for AVX2 alone: good for figures of quality, not for those of
speed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ci.quality.engine import Logits
from runtimes.engines.llama_library import load_llama

PACKAGE = "xllamacpp==2026.10.11549"
Kind = Literal["Q4_0", "Q4_K_M"]
CONTEXT_TOKENS = 512  # llama.cpp's default, which stays as it is
SUPER_BLOCK = 256
# Where a K type's blocks of 256 do not divide a row.
FALLBACK = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}


def load_library() -> Any:
    """llama.cpp out of xllamacpp, which is on the path (ci.quality.packages)."""
    library = load_llama()
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *([ctypes.c_int64] * 3), ctypes.c_void_p
    ]  # fmt: skip
    return library


class Llama:
    """A GGUF file in llama.cpp, with the settings it has by itself but for the threads."""

    def __init__(self, file: Path, vocab_size: int, threads: int) -> None:
        self._library, self._vocab_size = load_library(), vocab_size
        model = self._library.llama_model_load_from_file(str(file).encode(), self._library.llama_model_default_params())
        if not model:
            raise ValueError(f"llama.cpp cannot load {file}")
        self._context = self._library.llama_init_from_model(model, self._library.llama_context_default_params())
        if not self._context:
            raise ValueError(f"llama.cpp makes no context for {file}")
        self._library.llama_set_n_threads(self._context, threads, threads)

    def logits(self, ids: Sequence[int], first: int) -> Iterator[Logits]:
        """See Engine.logits."""
        batch = self._library.llama_batch_init(CONTEXT_TOKENS, 0, 1)
        batch.n_tokens = len(ids)
        for position, token in enumerate(ids):
            batch.token[position], batch.pos[position] = token, position
            batch.n_seq_id[position], batch.seq_id[position][0] = 1, 0
            batch.logits[position] = position >= first - 1
        self._library.llama_memory_clear(self._library.llama_get_memory(self._context), True)
        if status := self._library.llama_decode(self._context, batch):
            raise ValueError(f"llama.cpp's llama_decode failed with status {status}")
        rows = len(ids) - first + 1
        found = np.ctypeslib.as_array(self._library.llama_get_logits(self._context), (rows, self._vocab_size))
        yield from found.copy()


def quantise(checkpoint: Path, file: Path, kind: Kind) -> int:
    """Write a Phi-3 checkpoint with a tied head as GGUF; the bytes of its tensors.

    The file has no tokenizer: it is given ids.
    """
    import gguf
    import torch
    from safetensors.torch import load_file

    from export.checkpoint.open import open_checkpoint

    config = open_checkpoint(str(checkpoint)).config_content
    weights = load_file(checkpoint / "model.safetensors")
    library, layers, stored = load_library(), int(config["num_hidden_layers"]), 0
    writer = gguf.GGUFWriter(file, "phi3")
    write_facts(writer, config)
    for name, weight in weights.items():
        values = np.ascontiguousarray(weight.to(torch.float32).numpy())
        to = gguf_name(name)
        if values.ndim == 1:
            writer.add_tensor(to, values)
            stored += values.nbytes
            continue
        type_name = tensor_type(to, values.shape[1], layers, kind)
        codes = quantise_tensor(library, values, gguf.GGMLQuantizationType[type_name])
        writer.add_tensor(to, codes, raw_dtype=gguf.GGMLQuantizationType[type_name])
        stored += codes.nbytes
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stored


def write_facts(writer: Any, config: Any) -> None:
    """What llama.cpp must know of a Phi-3 beside its weights."""
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_rope_scaling_orig_ctx_len(config["original_max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_sliding_window(config["sliding_window"] or 0)
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(config["vocab_size"])


def gguf_name(name: str) -> str:
    """transformers' name of a Phi-3's tensor -> llama.cpp's."""
    replaced = {
        "model.embed_tokens.": "token_embd.",
        "model.norm.": "output_norm.",
        "model.layers.": "blk.",
        "self_attn.qkv_proj": "attn_qkv",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "post_attention_layernorm": "ffn_norm",
        "input_layernorm": "attn_norm",
    }
    for old, new in replaced.items():
        name = name.replace(old, new)
    return name


def tensor_type(name: str, columns: int, layers: int, kind: Kind) -> str:
    """The type that llama-quantize gives a tensor of a Phi-3 with a tied head, without an importance matrix.

    These are the rules of llama_tensor_get_type in llama.cpp's src/llama-quant.cpp.
    """
    usual = {"Q4_0": "Q4_0", "Q4_K_M": "Q4_K"}[kind]
    if name == "token_embd.weight":
        usual = "Q6_K"
    elif kind == "Q4_K_M" and name.endswith("attn_qkv.weight"):
        usual = "Q5_K"
    elif kind == "Q4_K_M" and name.endswith("ffn_down.weight"):
        layer = int(name.split(".")[1])
        more = layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2
        usual = "Q6_K" if more else "Q4_K"
    return FALLBACK.get(usual, usual) if columns % SUPER_BLOCK else usual


def quantise_tensor(library: Any, values: NDArray[np.float32], quantisation: Any) -> NDArray[np.uint8]:
    """llama.cpp's codes [rows, bytes of a row]."""
    import gguf

    rows, columns = values.shape
    block, size = gguf.GGML_QUANT_SIZES[quantisation]
    codes = np.empty((rows, columns // block * size), np.uint8)
    library.ggml_quantize_chunk(int(quantisation), values.ctypes.data, codes.ctypes.data, 0, rows, columns, None)
    return codes
