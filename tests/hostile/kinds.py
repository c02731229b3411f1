"""Every kind of hostile input: how many are tried in CI, and what they are made from."""

from __future__ import annotations

from hostile import artifacts, checkpoints, devices, results, words
from hostile.trial import Kind

KINDS: dict[str, Kind] = {
    "manifest": Kind("manifests: `check`, `run`, `bundle`", 350, artifacts.sound, artifacts.manifest),
    "files": Kind("files that changed after the export: `check`", 60, artifacts.sound, artifacts.file),
    "tokenizer": Kind("tokenizers in an artifact: `run`", 200, artifacts.sound_run, artifacts.tokenizer),
    "template": Kind("chat templates: `run`", 150, artifacts.sound_run, artifacts.template),
    "config": Kind("config.json of a checkpoint: `export`", 250, checkpoints.sound, checkpoints.config),
    "header": Kind("safetensors files: `export`", 200, checkpoints.sound, checkpoints.header),
    "index": Kind("indexes of shards: `export`", 60, checkpoints.sound, checkpoints.index),
    "source": Kind("tokenizers in a checkpoint: `export`", 120, checkpoints.sound, checkpoints.tokenizer),
    "measurement": Kind("measurements: `report`, `gate`", 300, results.sound, results.measurement),
    "score": Kind("scores: `report`", 100, results.sound, results.score),
    "budget": Kind("budgets: `gate`", 120, results.sound, results.budget),
    "lab": Kind("lab files: `doctor`", 150, words.sound, devices.lab),
    "agent": Kind("lines of an agent: `run --device`", 150, devices.sound_agent, devices.agent),
    "words": Kind("command lines", 150, words.sound, words.command_line),
}
# Not through the command line: one process, or none, for all.
REQUEST_LINES = 200  # lines to the Python agent
REQUESTS = 200  # GenerateRequest, in Python


def total() -> int:
    """Inputs tried in CI."""
    return sum(kind.count for kind in KINDS.values()) + REQUEST_LINES + REQUESTS
