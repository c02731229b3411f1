"""Ollama's Modelfile: the chat template in the language of Go's text/template, and what ends an answer.

Only templates that are plain sequences of turns can be written so (runtimes/bundle/values.py tries them): Phi-3's,
ChatML and Llama's are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from export.artifact import Artifact
from runtimes.bundle.values import Turns, read_turns, stop_texts
from runtimes.errors import RequestError


def ollama_values(artifact: Artifact) -> Mapping[str, Any]:
    """What the sources for Ollama have beside the others'. Raises RequestError and UnsupportedError."""
    if artifact.manifest.engine.get("tokenizer") is None:
        raise RequestError(
            "llama.cpp has no tokenizer that splits text like this model's, so Ollama cannot use it; use phi-edge run"
        )
    turns = read_turns(artifact)
    if turns is None:
        raise RequestError("this artifact has no chat template, which Ollama needs; add one to the checkpoint")
    stops = sorted(stop_texts(artifact))
    for text in stops:
        if '"' in text or not text.isprintable():
            raise RequestError(f"{text!r} ends an answer and cannot be written in a Modelfile; write it by hand")
    return {"go_template": go_template(turns), "stops": stops}


def go_template(turns: Turns) -> str:
    """The turns of `.Messages`. The first may be a system's; then users and answers alternate."""
    first = f"{{{{ if eq $i 0 }}}}{_text(turns.open_user)}"
    if turns.open_system is not None and turns.system_to_user is not None:
        first += f"{{{{ else if eq $i 1 }}}}{_text(turns.system_to_user)}"
    user = f"{first}{{{{ else }}}}{_text(turns.to_next_user)}{{{{ end }}}}{{{{ .Content }}}}{_text(turns.to_answer)}"
    message = f'{{{{ if eq .Role "user" }}}}{user}{{{{ else if eq .Role "assistant" }}}}{{{{ .Content }}}}'
    if turns.open_system is not None:
        message += f'{{{{ else if eq .Role "system" }}}}{_text(turns.open_system)}{{{{ .Content }}}}'
    return f"{{{{ range $i, $_ := .Messages }}}}{message}{{{{ end }}}}{{{{ end }}}}"


def _text(text: str) -> str:
    """A text as it is, or as a string of Go where the template's or the Modelfile's own marks are in it."""
    if "{{" in text or '"' in text or text.startswith("}"):
        return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}"
    return text
