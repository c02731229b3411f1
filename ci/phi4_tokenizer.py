"""A tokenizer for Phi-4-mini from public parts: o200k_base's ranks, the published control tokens and chat format.

It is not Microsoft's file, which may differ. The ranks come out of js-tiktoken, from the npm registry.

    python ci/phi4_tokenizer.py FOLDER    -> FOLDER/tokenizer.json, FOLDER/tokenizer_config.json; 10 s, needs npm
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from runtimes.system.cache_folder import cache_folder

PACKAGE = "js-tiktoken@1.0.21"
RANKS = "package/dist/ranks/o200k_base.js"
# How o200k_base splits text, as OpenAI writes it. js-tiktoken spells the cases of `(?i:...)` out; that means the same,
# but onnxruntime-genai 0.18 knows this form alone, and splits by another rule, or fails, where it sees the other.
_WORD = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
PATTERN = (
    rf"{_WORD}*[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]+{_ENDING}|{_WORD}+[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]*{_ENDING}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CONTROL = {
    "<|endoftext|>": 199999,
    "<|endofprompt|>": 200018,
    "<|assistant|>": 200019,
    "<|end|>": 200020,
    "<|user|>": 200021,
    "<|system|>": 200022,
    "<|tool|>": 200023,
    "<|/tool|>": 200024,
    "<|tool_call|>": 200025,
    "<|/tool_call|>": 200026,
    "<|tool_response|>": 200027,
    "<|tag|>": 200028,
}
TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"
)


def missing() -> str | None:
    """Why it cannot be built here."""
    return None if shutil.which("npm") else "needs npm: run ci/install_system.sh"


def build_tokenizer() -> Path:
    """Built once, and kept in PHI_EDGE_CACHE (~/.cache/phi-edge)."""
    cache = cache_folder() / "phi-4-mini"
    if not (cache / "tokenizer_config.json").is_file():
        write_tokenizer(cache)
    return cache


def write_tokenizer(folder: Path) -> None:
    """Byte-level BPE with o200k's splitting and ranks. tokenizer_config.json is written last."""
    from tokenizers import AddedToken
    from transformers.convert_slow_tokenizer import TikTokenConverter

    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        ranks = Path(work) / "o200k_base.tiktoken"
        ranks.write_text(rank_lines(read_ranks(Path(work))), encoding="ascii")
        tokenizer = TikTokenConverter(vocab_file=str(ranks), pattern=PATTERN).converted()
    for text, id in CONTROL.items():
        # Ids go up by one: what the control tokens leave out is filled with names that no template uses.
        while (next_id := tokenizer.get_vocab_size()) < id:
            tokenizer.add_special_tokens([AddedToken(f"<|unused_{next_id}|>", special=True, normalized=False)])
        tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False)])
        assert tokenizer.token_to_id(text) == id, (text, tokenizer.token_to_id(text))
    part = folder / "tokenizer.json.part"
    tokenizer.save(str(part))
    part.replace(folder / "tokenizer.json")
    config = {"chat_template": TEMPLATE, "eos_token": "<|endoftext|>", "tokenizer_class": "GPT2Tokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def read_ranks(work: Path) -> str:
    """o200k_base's ranks as the package packs them."""
    subprocess.run(["npm", "pack", PACKAGE, "--silent"], cwd=work, check=True, capture_output=True, timeout=120)
    with tarfile.open(next(work.glob("*.tgz"))) as archive:
        file = archive.extractfile(RANKS)
        assert file is not None
        content = json.loads(file.read().decode().removeprefix("export default ").rstrip().rstrip(";"))
    return str(content["bpe_ranks"])


def rank_lines(packed: str) -> str:
    """Lines of `! FIRST_RANK token token ...` -> lines of `token rank`, tokens in base64."""
    lines: list[str] = []
    for line in packed.splitlines():
        _, first, *tokens = line.split(" ")
        lines += [f"{token} {rank}" for rank, token in enumerate(tokens, int(first))]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    write_tokenizer(Path(sys.argv[1]))
