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


# What is tried by hand: kind -> the files of tests.
BY_HAND: dict[str, tuple[str, ...]] = {
    "checkpoints, as trainers leave them and damaged; the hub": (
        "test_export_checkpoints.py", "test_export_refusals.py", "test_export_hub.py",
    ),
    "LoRA adapters": ("test_export_lora_refusals.py",),
    "exports that no engine runs": ("test_export_proof.py",),
    "artifacts that lie, damaged models of each format": ("hostile/test_artifacts.py", "hostile/test_damage.py"),
    "JSON and TOML, measurements with impossible figures": ("hostile/test_files.py",),
    "tokenizers and chat templates": ("hostile/test_tokenizers.py", "hostile/test_templates.py"),
    "requests of Python callers": ("hostile/test_requests.py",),
    "clients of `phi-edge serve`": ("test_serve_http.py",),
    "devices: what their agents and shells say": ("hostile/test_evil_devices.py",),
    "lines to the agents": ("test_runtimes_protocol.py",),
    "places to write to, letters of any language, locales": (
        "hostile/test_outputs.py", "hostile/test_places.py", "hostile/test_locales.py",
    ),
    "Ctrl-C in the middle of each verb": ("hostile/test_interrupts.py",),
    "mistakes of a new user": ("test_first_use.py", "test_command_line.py"),
}  # fmt: skip


def total() -> int:
    """Inputs tried in CI."""
    return sum(kind.count for kind in KINDS.values()) + REQUEST_LINES + REQUESTS
