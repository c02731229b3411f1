"""What comes before the tensors in a GGUF file: the model's facts, its tokenizer, and an entry for each tensor."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.job import Job
from export.models.phi3 import Phi3Config
from export.scheme import Scheme
from export.to_gguf.vocabulary import Vocabulary

ALIGNMENT = 32  # of each tensor, and of the first
ARCHITECTURE = "phi3"
QUANTISATION_VERSION = 2  # of ggml's block types
MOST_STOPS = 3  # ids that a file can name


@dataclass(frozen=True)
class Stored:
    """A tensor as the file has it: transformers' name, shape in weights, ggml's type, bytes."""

    name: str
    shape: tuple[int, ...]
    type: str
    bytes: int


def write_metadata(job: Job, vocabulary: Vocabulary | None, tensors: Sequence[Stored]) -> bytes:
    """All of the file up to its first tensor."""
    import gguf
    import numpy as np

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.PHI3, job.model.layers)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "head.gguf"
        writer = gguf.GGUFWriter(file, ARCHITECTURE)
        add_facts(writer, job, vocabulary)
        add_rope(writer, job)
        add_tokenizer(writer, job, vocabulary)
        for tensor in tensors:
            name = names.get_name(tensor.name, try_suffixes=(".weight",)) or tensor.name
            kind = gguf.GGMLQuantizationType[tensor.type]
            writer.add_tensor_info(name, tensor.shape, np.dtype(np.float32), tensor.bytes, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        head = file.read_bytes()
    return head + bytes(-len(head) % ALIGNMENT)


def add_facts(writer: Any, job: Job, vocabulary: Vocabulary | None) -> None:
    """Name, sizes, and how the matrices are stored.

    The context is that of the export, beyond which llama.cpp's server does not go: llama.cpp reads a window and attends
    to all tokens nevertheless.
    """
    config, model = job.checkpoint.config, job.model
    assert isinstance(config, Phi3Config)  # phi3small is refused
    writer.add_type("model")
    writer.add_name(model_name(job.checkpoint.name, vocabulary))
    writer.add_file_type(file_type(job.scheme))
    if job.scheme.bits:
        writer.add_quantization_version(QUANTISATION_VERSION)
    writer.add_context_length(job.context_tokens)
    writer.add_embedding_length(model.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(model.layers)
    writer.add_head_count(model.heads)
    writer.add_head_count_kv(model.kv_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_sliding_window(config.sliding_window or 0)
    writer.add_vocab_size(model.vocab_size)


def add_rope(writer: Any, job: Job) -> None:
    """The rotation. The factors of long rope are tensors."""
    rope = job.checkpoint.config.rope
    writer.add_rope_dimension_count(rope.rotary_dim)
    writer.add_rope_freq_base(rope.theta)
    writer.add_rope_scaling_orig_ctx_len(rope.original_context_tokens)
    if rope.type == "longrope":
        writer.add_rope_scaling_attn_factors(rope.attention_factor)


def add_tokenizer(writer: Any, job: Job, vocabulary: Vocabulary | None) -> None:
    """The vocabulary, the ids that end an answer, and the chat template. Without a vocabulary llama.cpp takes ids."""
    if vocabulary is None:
        writer.add_tokenizer_model("no_vocab")
        return
    writer.add_tokenizer_model(vocabulary.kind)
    writer.add_tokenizer_pre(vocabulary.splitting)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    writer.add_add_space_prefix(vocabulary.space_prefix)
    writer.add_add_bos_token(vocabulary.begins_with_bos)
    writer.add_add_eos_token(False)
    tokens, chat = job.checkpoint.tokens, job.checkpoint.chat
    # llama.cpp ends an answer at each of these three, and at the ids of some texts that it knows.
    for add, id in zip((writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id), tokens.stop,
                       strict=False):  # fmt: skip
        add(id)
    for add, marked in ((writer.add_bos_token_id, tokens.bos), (writer.add_pad_token_id, tokens.pad),
                        (writer.add_unk_token_id, vocabulary.unknown)):  # fmt: skip
        if marked is not None:
            add(marked)
    if chat.source is not None:
        writer.add_chat_template(chat.source)


def file_type(scheme: Scheme) -> int:
    """llama.cpp's number for how most matrices are stored; it prints its name."""
    import gguf

    if scheme.linear is None:
        floats = {"float32": "ALL_F32", "float16": "MOSTLY_F16", "bfloat16": "MOSTLY_BF16"}
        return int(gguf.LlamaFileType[floats[scheme.float_type]])
    return int(gguf.LlamaFileType.MOSTLY_Q4_0 if scheme.linear.symmetric else gguf.LlamaFileType.MOSTLY_Q4_1)


def model_name(source: str, vocabulary: Vocabulary | None) -> str:
    """The checkpoint's name. A file cannot say that white space behind its special tokens is dropped: llama.cpp drops
    it where the name has `phi-3` or `phi3`. So these are in the name exactly where the tokenizer does the same."""
    name = source.rpartition("/")[2] or source
    drops = vocabulary is not None and vocabulary.drops_space and vocabulary.can_drop_space
    if drops and not has_phi3(name):
        return f"{name} (special tokens of Phi-3)"
    if not drops and has_phi3(name):
        return name.replace("-3", " 3").replace("i3", "i 3").replace("I3", "I 3")
    return name


def has_phi3(name: str) -> bool:
    """Whether llama.cpp treats the special tokens of a model of this name as Phi-3's."""
    return "phi-3" in name.lower() or "phi3" in name.lower()
