"""Hub ids: what can be judged is judged, and a dry run answered, before the weights are downloaded."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from huggingface_hub import constants, snapshot_download

from fakes.hub import FakeHub, take_for_real
from phi_edge.main import main

TINY = Path(__file__).parents[1] / "export" / "tiny"
ID = "microsoft/Phi-3-mini-4k-instruct"
WEIGHTS = TINY / "model.safetensors"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub that huggingface_hub takes for the real one, with an empty cache; the folder of the test is the current."""
    with FakeHub({ID: TINY}) as served:
        monkeypatch.chdir(tmp_path)
        take_for_real(served, monkeypatch, tmp_path / "hf")
        yield served


def export(*words: str) -> Result:
    return CliRunner().invoke(main, ["export", *words])


def weights_sent(hub: FakeHub) -> bool:
    """More of them than a header."""
    return hub.sent.get(WEIGHTS.name, 0) > 200_000


def test_a_dry_run_fetches_no_weights_and_plans_what_a_local_folder_would(hub: FakeHub, tmp_path: Path) -> None:
    def figures(text: str) -> list[str]:
        return [line for line in text.splitlines()[1:] if "time" not in line]

    remote = export(ID, "out", "--dry-run")
    assert (remote.exit_code, remote.stderr) == (0, "")
    assert remote.stdout.startswith(f"{ID} as onnx for cpu")
    assert not weights_sent(hub)
    assert figures(remote.stdout) == figures(export("tiny", "out", "--dry-run").stdout)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["out", "--context", "1000000"], "--context 1000000: this model has a context of 2 to 4096 tokens"),
        (["out", "--context", "4096", "--target", "windows-directml"], "this model's attention slides after 2047"),
        (["out", "--activations", "float16"], "--activations float16: target cpu has float32"),
        (["out", "--scheme", "int4-b128"], "128"),
        (["out", "--lengths-as-inputs"], "--lengths-as-inputs is for windows-directml"),
        (["full"], "full: is not empty; give a new folder"),
        (["full", "--dry-run"], "full: is not empty; give a new folder"),
    ],
    ids=" ".join,
)
def test_an_option_is_refused_before_the_download(hub: FakeHub, tmp_path: Path, words: list[str], message: str) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    done = export(ID, *words)
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr.splitlines()[-1]
    assert not weights_sent(hub)


def test_a_refusal_of_the_checkpoint_names_the_id(hub: FakeHub, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    for file in (WEIGHTS, *TINY.glob("*.json")):
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "config.json").write_text('{"model_type": "bert"}')
    hub.repositories["someone/odd"] = folder
    done = export("someone/odd", "out")
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1].startswith("Error: someone/odd: model_type is 'bert'; known: phi3, ")


@pytest.mark.parametrize(
    ("id", "message"),
    [
        ("microsoft/Phi-3-min-4k", "the hub has no such repository, or it is private: check the spelling"),
        (f"{ID}@v9", f"{ID} has no revision v9"),
    ],
)
def test_what_the_hub_has_not_is_one_line(hub: FakeHub, id: str, message: str) -> None:
    done = export(id, "out", "--quiet")
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert message in done.stderr


def test_an_export_of_another_program_is_called_one(hub: FakeHub, tmp_path: Path) -> None:
    hub.repositories["microsoft/Phi-3-mini-4k-instruct-onnx"] = tmp_path / "exported"
    (tmp_path / "exported").mkdir()
    for name in ("config.json", "model.onnx", "model.onnx.data"):
        (tmp_path / "exported" / name).write_text("{}")
    done = export("microsoft/Phi-3-mini-4k-instruct-onnx", "out", "--quiet")
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "no safetensors, but model.onnx: it is an export already; give the checkpoint" in done.stderr


def test_a_gated_repository_says_what_to_do(hub: FakeHub) -> None:
    hub.gated = True
    done = export(ID, "out", "--quiet")
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "accept terms first" in done.stderr


def test_a_process_downloads_once_and_needs_the_hub_no_more(hub: FakeHub, tmp_path: Path) -> None:
    """With nothing patched: the environment names the hub."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    command = [sys.executable, "-P", "-m", "phi_edge", "export", ID, "out", "--quiet", "--scheme", "fp32"]
    done = subprocess.run(
        command,
        env=environment | hub.environment(tmp_path),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert weights_sent(hub)


def test_what_is_in_the_cache_is_not_fetched_again(hub: FakeHub) -> None:
    snapshot_download(ID)
    hub.sent.clear()
    assert export(ID, "again", "--dry-run").exit_code == 0
    assert hub.sent == {}


@pytest.mark.parametrize("state", ["offline", "unreachable"])
def test_without_the_hub_its_cache_is_enough(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    snapshot_download(ID)
    if state == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    else:
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert export(ID, "again", "--dry-run").exit_code == 0


def test_a_cache_that_cannot_be_made_is_one_line(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "/proc/nowhere")
    done = export(ID, "out", "--quiet")
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1), done.output
    assert "/proc/nowhere" in done.stderr
