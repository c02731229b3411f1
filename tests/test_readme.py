"""The README's commands work as they are written: its Android block, word for word, over the fake phone.

The model hub is a fake, too: it serves the tiny model by the name that the README has.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from devices.transports.adb.devices import Client
from fakes.adbd import FakeAdbd
from fakes.android import connection
from fakes.hub import FakeHub
from fakes.lab_file import lab_file

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(containing: str) -> list[list[str]]:
    """The words of each command in the console block that has this text."""
    blocks = re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    (found,) = (each for each in blocks if containing in each)
    return [shlex.split(line.removeprefix("$ "), comments=True) for line in found.splitlines()]


# The native agent's command line, before the Python agent: what it answers is tested in test_devices_adb.py.
AGENT = """#!/bin/sh
artifact=$1
shift
while [ "$1" != "" ]; do
  case $1 in --libraries) shift 2 ;; *) break ;; esac
done
PYTHONPATH={root} exec {python} -P -m runtimes.agent "$artifact" "$@"
"""


def lab(folder: Path, phone: FakeAdbd, adb: Client) -> str:
    """lab.toml with the one device that the README names."""
    program = folder / "phi-edge-agent"
    program.write_text(AGENT.format(root=ROOT, python=sys.executable))
    libraries = [folder / "libonnxruntime.so", folder / "libonnxruntime-genai.so"]
    for library in libraries:
        library.touch()
    software = {"program": str(program), "libraries": list(map(str, libraries))}
    return lab_file("phone", connection(phone, adb) | software)


@pytest.mark.emulated
def test_the_android_block_works_word_for_word(phone: FakeAdbd, adb: Client, tmp_path: Path) -> None:
    (tmp_path / "lab.toml").write_text(lab(tmp_path, phone, adb))
    commands = block("phi3-android")
    assert [words[:2] for words in commands] == [
        ["phi-edge", verb] for verb in ("export", "doctor", "run", "bench", "report", "bundle")
    ]
    tiny = {words[2]: ROOT / "export" / "tiny" for words in commands if words[1] == "export"}
    with FakeHub(tiny) as hub:
        environment = os.environ | hub.environment(tmp_path / "hf")
        for words in commands:
            command = [str(Path(sys.executable).parent / words[0]), *words[1:]]
            done = subprocess.run(
                command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=500, check=False
            )
            # A fake phone may be too warm, too full or too empty for doctor.
            assert done.returncode == 0 or words[1] == "doctor", (words, done.stderr)
    assert (tmp_path / "phone.html").is_file() and (tmp_path / "app" / "model").is_dir()


def test_every_command_of_the_readme_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verbs and options exist, and take what is written. Nothing is run."""
    import click

    from phi_edge.main import main

    monkeypatch.chdir(tmp_path)
    lines = [line for each in re.findall(r"```console\n(.*?)```", README, re.DOTALL) for line in each.splitlines()]
    seen = 0
    for line in lines:
        words = shlex.split(line.removeprefix("$ "), comments=True)
        if words[:1] == ["phi-edge"]:
            command = main.get_command(click.Context(main), words[1])
            assert command is not None, line
            command.make_context(words[1], words[2:], parent=click.Context(main, **main.context_settings))
            seen += 1
    assert seen > 10
