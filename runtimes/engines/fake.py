"""An engine without a model, for tests of everything above an engine: it needs numpy only and answers in microseconds.

Its logits are a pure function of all ids up to the last, kept in a KV cache like a real one's, so a loop that mixes up
positions or sessions gets other tokens.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export import artifact as artifacts
from export.artifact import Artifact
from runtimes.engines.engine import EngineOpener
from runtimes.errors import EngineError
from runtimes.text.token_bytes import BYTE_CHARACTERS

if TYPE_CHECKING:
    from runtimes.engines.engine import Engine, Logits

# The fake's vocabulary: one token a byte, then Phi-3's control tokens.
CONTROL_TOKENS = ("<s>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
CONTROL_IDS = {name: 256 + number for number, name in enumerate(CONTROL_TOKENS)}
VOCAB_SIZE = 256 + len(CONTROL_TOKENS)
FAKE_ROWS = 8
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


class FakeEngine:
    """See Engine. With a script it generates the script and then `<|end|>`, whatever the prompt; without one, noise.

    The next id follows the longest beginning of the script with which the ids so far end.
    """

    def __init__(
        self,
        *,
        script: Sequence[int] | None = None,
        context_tokens: int = 512,
        vocab_size: int = VOCAB_SIZE,
        switch_tokens: int | None = None,
        max_forward_tokens: int | None = None,
        forward_s: float = 0.0,
        fail_at: int | None = None,
        continues: bool = True,
        resumes: int | None = None,
    ) -> None:
        """`forward_s` is how long each forward takes; `fail_at` the position at which one raises EngineError;
        `resumes` by how many tokens it can go back, other than to the beginning."""
        self.context_tokens = context_tokens
        self.vocab_size = vocab_size
        self.switch_tokens = switch_tokens
        self.max_forward_tokens = max_forward_tokens or context_tokens
        self.continues = continues
        self._resumes, self._end = resumes, 0
        self.most_rows = FAKE_ROWS
        self.accelerator = None
        self.calls: list[tuple[int, int]] = []  # (start, how many ids) of every forward
        self._script = None if script is None else list(script)
        self._forward_s = forward_s
        self._fail_at = fail_at
        # One entry a position: the id, and whether it was computed with the long rope factors.
        self._cache: list[tuple[int, bool]] = []

    def forward(self, ids: Sequence[int], start: int, *, long: bool = False) -> Logits:
        """See Engine.forward."""
        row: Logits = self.forward_rows(ids, start, 1, long=long)[0]
        return row

    def forward_rows(self, ids: Sequence[int], start: int, rows: int, *, long: bool = False) -> Logits:
        """See CheckingEngine.forward_rows."""
        import numpy as np

        end = start + len(ids)
        assert (
            0 < rows <= len(ids) <= self.max_forward_tokens and start <= len(self._cache) and end <= self.context_tokens
        )
        assert self.can_resume(start, self._end)
        self._end = max(self._end if start else 0, end)
        assert self.continues or start == 0 or (len(ids) == 1 and start == len(self._cache))
        if self._fail_at is not None and start <= self._fail_at < end:
            raise EngineError(f"the fake engine fails at position {self._fail_at}, as it was asked to")
        time.sleep(self._forward_s)
        self.calls.append((start, len(ids)))
        long = self.switch_tokens is not None and (long or end > self.switch_tokens)
        self._cache[start:] = [(id, long) for id in ids]
        return np.stack([self._logits(self._cache[: place + 1]) for place in range(end - rows, end)])

    def can_resume(self, start: int, end: int) -> bool:
        """See WindowEngine."""
        return self._resumes is None or start == 0 or end - start <= self._resumes

    def close(self) -> None:
        """Empty the cache."""
        self._cache = []

    def _logits(self, cache: list[tuple[int, bool]]) -> Logits:
        import numpy as np

        seed = zlib.crc32(repr(cache).encode())
        logits = np.random.Generator(np.random.PCG64(seed)).standard_normal(self.vocab_size, np.float32)
        if self._script is not None:
            logits[self._scripted([id for id, _ in cache])] += 100
        return logits

    def _scripted(self, ids: list[int]) -> int:
        assert self._script is not None
        for done in range(min(len(self._script), len(ids)), -1, -1):
            if ids[len(ids) - done :] == self._script[:done]:
                return CONTROL_IDS["<|end|>"] if done == len(self._script) else self._script[done]
        raise AssertionError("done = 0 always matches")


def fake_opener(script: str | None = None, *, forward_s: float = 0.0) -> EngineOpener:
    """For open_runtime's `engine`: a FakeEngine that generates this text."""

    def open_fake(artifact: Artifact, threads: int | None) -> Engine:
        return FakeEngine(
            script=None if script is None else list(script.encode()),
            context_tokens=artifact.manifest.context_tokens,
            vocab_size=artifact.manifest.model.vocab_size,
            switch_tokens=artifact.manifest.rope.switch_tokens,
            forward_s=forward_s,
        )

    return open_fake


def fake_artifact(
    folder: Path,
    *,
    context_tokens: int = 512,
    switch_tokens: int | None = None,
    chat_template: str | None = CHAT_TEMPLATE,
) -> Artifact:
    """Write a whole, sealed artifact around the fake's tokenizer, without a model. The folder must not exist.

    Open it with an explicit engine: `open_runtime(fake_artifact(folder), engine=fake_opener("Hello"))`.
    """
    folder.mkdir(parents=True)
    config = {"bos_token": "<s>", "eos_token": "<|endoftext|>", "chat_template": chat_template}
    for name, content in (("tokenizer.json", _tokenizer()), ("tokenizer_config.json", config)):
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return artifacts.seal(folder, _manifest(folder, context_tokens, switch_tokens))


def _tokenizer() -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": id, "content": name} | flags for name, id in CONTROL_IDS.items()],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "unk_token": None,
            "vocab": {character: value for value, character in enumerate(BYTE_CHARACTERS)},
            "merges": [],
        },
    }


def _manifest(folder: Path, context_tokens: int, switch_tokens: int | None) -> artifacts.Manifest:
    return artifacts.Manifest(
        schema=artifacts.SCHEMA,
        format="onnx",
        target="cpu",
        created_at="2026-01-01T00:00:00Z",
        source=artifacts.Source(name="fake", revision=None, model_type="phi3", files={}),
        model=artifacts.Model(
            layers=1, hidden_size=8, heads=2, kv_heads=1, head_dim=4, vocab_size=VOCAB_SIZE, parameters=0
        ),
        scheme=artifacts.AppliedScheme(
            name="fp32",
            bits=None,
            block_size=None,
            symmetric=True,
            method="data-free",
            head_bits=None,
            exceptions={},
            embedding_bits=None,
            activations="float32",
            kept_wider=(),
        ),
        engine={"name": "fake"},
        coverage={},
        context_tokens=context_tokens,
        window_tokens=None,
        rope=artifacts.Rope(
            type="default" if switch_tokens is None else "longrope",
            theta=10000.0,
            rotary_dim=4,
            switch_tokens=switch_tokens,
            attention_factor=1.0,
        ),
        tokens=artifacts.Tokens(
            bos=CONTROL_IDS["<s>"],
            pad=CONTROL_IDS["<|endoftext|>"],
            stop=(CONTROL_IDS["<|endoftext|>"], CONTROL_IDS["<|end|>"]),
        ),
        memory=artifacts.Memory(
            weights_bytes=0,
            resident_weights_bytes=0,
            engine_bytes=0,
            kv_bytes_per_token=32,
            total_bytes_per_context={str(context_tokens): 32 * context_tokens},
        ),
        loss=artifacts.NO_LOSS,
        tools={},
        files=artifacts.describe_files(folder, ["tokenizer.json", "tokenizer_config.json"]),
    )
