"""Foundry Local's layout: a folder for onnxruntime-genai, with inference_model.json beside it.

Source: inference_model.json files in public repositories; Microsoft's own page ("Compile Hugging Face models to run on
Foundry Local") was not at hand. A model is a folder that has genai_config.json and an inference_model.json with a Name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from export.artifact import Artifact
from runtimes.bundle.values import Turns, read_turns
from runtimes.errors import RequestError

CONTENT = "{Content}"


def foundry_values(artifact: Artifact) -> Mapping[str, Any]:
    """What the sources for Foundry Local have beside the others'. Raises RequestError and UnsupportedError."""
    if artifact.find("genai_config.json") is None:
        raise RequestError(
            "Foundry Local runs what onnxruntime-genai does, and this artifact has no genai_config.json; export it "
            "without --lengths-as-inputs"
        )
    turns = read_turns(artifact)
    if turns is None:
        raise RequestError("this artifact has no chat template, which Foundry Local needs; add one to the checkpoint")
    if any("{" in each or "}" in each for each in (turns.open_user, turns.to_answer, turns.to_next_user)):
        raise RequestError(
            "this artifact's chat template has braces, which mark a place in Foundry Local's; write it by hand"
        )
    source = artifact.manifest.source.name.rpartition("/")[2]
    name = re.sub(r"[^A-Za-z0-9.]+", "-", f"{source}-{artifact.manifest.target}-{artifact.manifest.scheme.name}")
    content = {"Name": name, "PromptTemplate": prompt_template(turns)}
    return {"model_name": name, "inference_model": json.dumps(content, indent=2, ensure_ascii=False)}


def prompt_template(turns: Turns) -> dict[str, str]:
    """A template for each role, with the place of its content. `prompt` is a first question, ready for the answer."""
    templates = {}
    if turns.open_system is not None and (end := _before(turns.system_to_user, turns.open_user)) is not None:
        templates["system"] = turns.open_system + CONTENT + end
    end = _before(turns.to_next_user, turns.open_user)
    if end is not None and turns.to_answer.startswith(end):  # what ends an answer ends a question, too
        templates["user"] = turns.open_user + CONTENT + end
        templates["assistant"] = turns.to_answer.removeprefix(end) + CONTENT + end
    templates.setdefault("assistant", CONTENT)
    return templates | {"prompt": turns.open_user + CONTENT + turns.to_answer}


def _before(text: str | None, end: str) -> str | None:
    """What of a text comes before `end`; None where it does not end so."""
    return text.removesuffix(end) if text is not None and end and text.endswith(end) else None
