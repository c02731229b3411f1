"""What the model's makers suggest for sampling: generation_config.json, which travels with an artifact."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from export.artifact import Artifact
from export.strict import read_json
from runtimes.api import GenerateRequest
from runtimes.errors import EngineError

FILE = "generation_config.json"
_PENALTY = "repetition_penalty"
_DRAWING = ("temperature", "top_k", "top_p", "min_p")  # of no effect without do_sample
# Keys that do not change which token is chosen, or that an artifact's manifest has.
_OTHER = {
    "_from_model_config", "bos_token_id", "cache_implementation", "do_sample", "eos_token_id", "max_length",
    "max_new_tokens", "pad_token_id", "transformers_version", "use_cache",
}  # fmt: skip


@dataclass(frozen=True)
class Suggested:
    """`request` has the suggested sampling and our defaults for all else; `unsupported` are the keys that we cannot
    follow."""

    request: GenerateRequest = field(default_factory=GenerateRequest)
    unsupported: tuple[str, ...] = ()

    def __str__(self) -> str:
        """`temperature 0.6, top_p 0.9`, or nothing."""
        plain = GenerateRequest()
        names = (*_DRAWING, _PENALTY)
        given = ((name, getattr(self.request, name)) for name in names)
        return ", ".join(f"{name} {value:g}" for name, value in given if value != getattr(plain, name))


NOTHING_SUGGESTED = Suggested()


def suggested_sampling(artifact: Artifact) -> Suggested:
    """Raises EngineError where the file cannot be understood."""
    if FILE not in artifact.manifest.files:
        return NOTHING_SUGGESTED
    content = read_json(artifact.path(FILE), EngineError, "export it again")
    try:
        number = {name: float(content[name]) for name in (*_DRAWING, _PENALTY) if content.get(name) is not None}
        request = GenerateRequest(repetition_penalty=number.get(_PENALTY, 1.0))
        if content.get("do_sample"):
            request = dataclasses.replace(
                request,
                temperature=number.get("temperature", 1.0),
                top_k=int(number.get("top_k", 0)) or None,  # 0 means all tokens
                top_p=number.get("top_p"),
                min_p=number.get("min_p"),
            )
    except (AttributeError, OverflowError, TypeError, ValueError) as error:
        raise EngineError(f"{artifact.folder / FILE}: cannot be understood ({error}); export it again") from error
    known = {*_DRAWING, *_OTHER, _PENALTY}
    unsupported = tuple(key for key, value in content.items() if key not in known and value not in (None, False, 0, 1))
    return Suggested(request, unsupported)
