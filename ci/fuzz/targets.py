"""What `make fuzz` gives its inputs to in Python: each boundary at which foreign bytes are read. tests/hostile has the
sound inputs, puts the bytes in their place and says what must be true of every outcome."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from click.testing import CliRunner
from hostile import artifacts, checkpoints, devices, results
from hostile.trial import listing, result_fault

from ci.fuzz.documents import Form, as_bytes, as_json_lines, as_json_text, as_toml_text
from ci.fuzz.talk import BODIES, command_seeds, said_seeds, try_body, try_command, try_said
from export.artifact import MANIFEST
from fakes.measurement import fake_measurement
from fakes.score import fake_score
from phi_edge.main import main
from runtimes.engines.fake import CHAT_TEMPLATE

Outcome = Callable[[bytes, Path], str | None]  # the input and a fresh folder, the current one; what is wrong, or None
Place = Callable[[Path, bytes], Sequence[str]]  # writes the input into the folder; the words after `phi-edge`


@dataclass(frozen=True)
class Target:
    """One boundary. `seeds` are sound inputs; `form` makes others of them."""

    seeds: Callable[[], Sequence[bytes]]
    outcome: Outcome
    form: Form = as_json_text


def by_command(place: Place) -> Outcome:
    """The command line over a file of these bytes."""

    def outcome(data: bytes, folder: Path) -> str | None:
        words = place(folder, data)
        known = listing(folder) | {"app"}
        return result_fault(CliRunner().invoke(main, list(words), prog_name="phi-edge"), known, folder)

    return outcome


def _manifest(folder: Path, data: bytes) -> Sequence[str]:
    words = artifacts.with_manifest(folder, data)
    return random.Random(data).choice([words, artifacts.ASK, ["bundle", "a", "app", "--for", "android"]])


def _template(folder: Path, data: bytes) -> Sequence[str]:
    return artifacts.with_template(folder, data.decode("utf-8", "replace"))


def _result(name: str, folder: Path, data: bytes) -> Sequence[str]:
    results.with_file(folder, name, data)
    verbs = {"m.json": results.VERBS, "s.json": [[*results.VERBS[0], "s.json"]], "b.toml": [results.VERBS[2]]}
    return random.Random(data).choice(verbs[name])


def _artifact_file(name: str) -> Target:
    return Target(
        lambda: [artifacts.sound_file(name)], by_command(lambda folder, data: artifacts.with_file(folder, name, data))
    )


TARGETS: dict[str, Target] = {
    "manifest": Target(lambda: [artifacts.sound_file(MANIFEST)], by_command(_manifest)),
    "config": Target(
        lambda: [checkpoints.sound_file("config.json")],
        by_command(lambda folder, data: checkpoints.with_file(folder, "config.json", data)),
    ),
    "header": Target(lambda: [checkpoints.sound_header()], by_command(checkpoints.with_header)),
    "tokenizer": _artifact_file("tokenizer.json"),
    "template": Target(
        lambda: [CHAT_TEMPLATE.encode(), *(part.encode("utf-8", "replace") for part in artifacts.FRAGMENTS)],
        by_command(_template),
        as_bytes,
    ),
    "measurement": Target(lambda: [fake_measurement().to_json().encode()], by_command(partial(_result, "m.json"))),
    "score": Target(
        lambda: [fake_score(fake_measurement()).to_json().encode()], by_command(partial(_result, "s.json"))
    ),
    "budget": Target(lambda: [results.as_toml(results.BUDGETS)], by_command(partial(_result, "b.toml")), as_toml_text),
    "lab": Target(lambda: [devices.sound_lab()], by_command(devices.with_lab), as_toml_text),
    "said": Target(said_seeds, try_said, as_json_lines),
    "command": Target(command_seeds, try_command),
    "body": Target(lambda: BODIES, try_body),
}
