"""onnxruntime-genai as an Engine: the way to DirectML, and the same on the CPU. Sampling and sessions stay ours.

Its Generator can sample; here it is only given the ids that came. Where the device can go on from a cached prefix (the
CPU can), ids are appended and the generator is rewound. DirectML cannot: a prompt goes in whole, into a new generator,
and a token follows by giving it all the probability and letting the generator choose it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from export.artifact import ADAPTER_SUFFIX, Artifact
from runtimes.engines.engine import adapter_names
from runtimes.errors import EngineError
from runtimes.system.telemetry import switch_telemetry_off

if TYPE_CHECKING:
    from runtimes.engines.engine import Engine, Logits

CONFIG = "genai_config.json"


def open_genai(artifact: Artifact, threads: int | None) -> Engine:
    """Load an ONNX artifact on the CPU. Raises EngineError."""
    return load_genai(artifact, threads, provider=None, options={})


def load_genai(
    artifact: Artifact,
    threads: int | None,
    *,
    provider: str | None,
    options: Mapping[str, str],
    accelerator: str | None = None,
) -> GenaiEngine:
    """Load on an execution provider with its options; None is the CPU. `accelerator` names what the provider computes
    on, for messages. Raises EngineError."""
    switch_telemetry_off()
    try:
        import onnxruntime_genai
    except ImportError as error:
        raise EngineError(
            f"onnxruntime-genai cannot be imported ({error}); docs/windows.md lists what to install"
        ) from error
    if CONFIG not in artifact.manifest.files:
        raise EngineError(
            f"{artifact.folder}: has no {CONFIG}, which genai needs; export it again without --lengths-as-inputs"
        )
    try:
        config = onnxruntime_genai.Config(str(artifact.folder))
        config.clear_providers()
        if provider is not None:
            config.append_provider(provider)
            for name, value in options.items():
                config.set_provider_option(provider, name, value)
        # The loop decides when to stop. The generator needs an id to stop at, so it gets one that hardly ever comes. (A
        # list would be added to the one in the file.)
        stop = rare_id(artifact)
        changes: dict[str, Any] = {"model": {"eos_token_id": stop}}
        if threads is not None:
            changes["model"]["decoder"] = {"session_options": {"intra_op_num_threads": threads}}
        config.overlay(json.dumps(changes))
        model = onnxruntime_genai.Model(config)
    except Exception as error:  # the bindings raise nothing narrower
        raise EngineError(f"onnxruntime-genai cannot load {artifact.folder}: {error}") from error
    continues = provider is None and artifact.manifest.rope.switch_tokens is None
    adapters = onnxruntime_genai.Adapters(model)
    for name in adapter_names(artifact):
        try:
            adapters.load(str(artifact.path(name + ADAPTER_SUFFIX)), name)
        except RuntimeError as error:
            raise EngineError(f"onnxruntime-genai cannot load the adapter {name}: {error}") from error

    def generator(adapter: str | None) -> Any:
        parameters = onnxruntime_genai.GeneratorParams(model)
        parameters.set_search_options(max_length=artifact.manifest.context_tokens, do_sample=False)
        made = onnxruntime_genai.Generator(model, parameters)
        if adapter is not None:
            made.set_active_adapter(adapters, adapter)
        return made

    return GenaiEngine(artifact, generator, continues=continues, stop=stop, accelerator=accelerator)


def rare_id(artifact: Artifact) -> int:
    """The padding id, or the last of the vocabulary."""
    pad = artifact.manifest.tokens.pad
    return artifact.manifest.model.vocab_size - 1 if pad is None or pad in artifact.manifest.tokens.stop else pad


class GenaiEngine:
    """See Engine. `generator` makes a fresh one of genai's with an adapter, which takes no more ids once it has chosen
    `stop`."""

    def __init__(
        self,
        artifact: Artifact,
        generator: Callable[[str | None], Any],
        *,
        continues: bool,
        stop: int,
        accelerator: str | None = None,
    ) -> None:
        self.accelerator = accelerator
        self.context_tokens = artifact.manifest.context_tokens
        self.vocab_size = artifact.manifest.model.vocab_size
        self.switch_tokens = artifact.manifest.rope.switch_tokens
        self.max_forward_tokens = self.context_tokens
        self._kept_tokens = artifact.manifest.memory.kept_tokens
        self.continues = continues
        self.adapters = adapter_names(artifact)
        self._adapter: str | None = None
        self._make, self._stop = generator, stop
        self._generator: Any = None
        self._ids: list[int] = []  # what the generator contains, where ids cannot be appended

    def forward(self, ids: Sequence[int], start: int, *, long: bool = False) -> Logits:
        """See Engine.forward."""
        import numpy as np

        try:
            if self.continues:
                self._go_to(start)
                self._generator.append_tokens(np.array(ids, np.int32))
            else:
                self._give(ids, start)
            logits: Logits = np.asarray(self._generator.get_logits(), np.float32).reshape(-1)[-self.vocab_size :]
        except (RuntimeError, MemoryError, ValueError) as error:
            raise EngineError(f"onnxruntime-genai failed at position {start}: {error}") from error
        return logits

    def can_resume(self, start: int, end: int) -> bool:
        """See WindowEngine: genai does not rewind a cache that keeps only a window, once that is full."""
        return start in (0, end) or self._kept_tokens is None or end <= self._kept_tokens

    def use_adapter(self, name: str | None) -> None:
        """See AdaptableEngine."""
        self._generator, self._adapter, self._ids = None, name, []

    def close(self) -> None:
        """Free the generator, and with the last reference the model."""
        self._generator = None
        self._make = _closed

    def _go_to(self, start: int) -> None:
        """Forget what comes after. Genai does not rewind a cache that keeps only a window and is full, not even to its
        beginning: a new generator takes its place."""
        filled = self._generator.token_count() if self._generator is not None else 0
        if start == 0 and self._kept_tokens is not None and filled > self._kept_tokens:
            self._generator, filled = None, 0  # its KV cache is freed before the next one takes its own
        if self._generator is None:
            self._generator = self._make(self._adapter)
        if start < filled:
            self._generator.rewind_to(start)

    def _give(self, ids: Sequence[int], start: int) -> None:
        """A whole prompt to a new generator; or one token more, which gets all the probability and is chosen."""
        import numpy as np

        if start and (len(ids) != 1 or start != len(self._ids)):
            raise EngineError(
                f"{len(ids)} tokens at position {start}: this device goes on by one token from {len(self._ids)}, "
                "or starts again at 0"
            )
        self._ids[start:] = ids
        # One token beyond long rope's switch, genai would compute the sequence anew and choose the next token itself.
        rewinds = self.switch_tokens is not None and start == self.switch_tokens + 1
        if start and ids[0] != self._stop and not rewinds:
            wanted = np.full((1, 1, self.vocab_size), -1e9, np.float32)
            wanted[0, 0, ids[0]] = 1e9
            self._generator.set_logits(wanted)
            self._generator.generate_next_token()
            if self._generator.token_count() != len(self._ids) or self._generator.get_next_tokens()[0] != ids[0]:
                raise EngineError(f"onnxruntime-genai did not take token {ids[0]} at position {start}")
            return
        self._generator = None  # its KV cache is freed before the next one takes its own
        self._generator = self._make(self._adapter)
        self._generator.append_tokens(np.array(self._ids, np.int32))


def _closed(_: str | None) -> Any:
    raise EngineError("this engine is closed")
