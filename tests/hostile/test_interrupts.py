"""Ctrl-C in the middle of the work: exit code 130, one line, nothing half-written, and no process left behind."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fakes.agent import fake_agent
from fakes.lab_file import lab_file
from fakes.measurement import fake_measurement
from phi_edge.main import main
from runtimes.engines.fake import fake_artifact

BENCH = "--device desk --lab lab.toml --prompt-tokens 9 --generate-tokens 4 --reps 2"
PLAN = 'artifacts = ["art"]\ndevices = ["desk"]\nready_s = 0\n[[workload]]\nprompt_tokens = 9\ngenerate_tokens = 4\n'
# What is typed -> where it is when Ctrl-C comes, and what is there afterwards, so that the same command goes on.
MOMENTS: dict[str, tuple[str, list[str]]] = {
    "export tiny out --scheme fp32 --quiet": ("export.pipeline.fill_weights", []),
    "export tiny out --scheme fp32 --quiet --context 64": ("phi_edge.proof.subprocess.Popen.communicate", ["out.part"]),
    f"bench art --out m2.json {BENCH}": ("devices.measure.bench._run", []),
    f"bench art art2 --out-dir new {BENCH}": ("devices.measure.bench.assemble", ["new"]),
    f"bench art --against art2 --out m2.json {BENCH}": ("devices.measure.bench._run", []),
    "score real --tokens 64 --json s.json": ("phi_edge.score.scoring.ask", []),
    "lab run plan.toml --out-dir night --lab lab.toml": ("phi_edge.verbs.lab_run.write_text", ["night"]),
    "report m.json --html r.html": ("devices.report.page.to_html", []),
    "bundle real app --for android": ("runtimes.bundle.write.copy_model", []),
    "serve real": ("phi_edge.verbs.serve.open_runtime", []),
}


def press(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """Ctrl-C when this function, of a module or of a class, is called."""
    names, parts = place.split("."), list[str]()
    owner: Any = None
    while owner is None:
        parts.insert(0, names.pop())
        try:
            owner = importlib.import_module(".".join(names))
        except ImportError:
            continue
    for part in parts[:-1]:
        owner = getattr(owner, part)
    work = getattr(owner, parts[-1])

    def pressed(*arguments: Any, **options: Any) -> Any:
        monkeypatch.undo()
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.5)
        return work(*arguments, **options)

    monkeypatch.setattr(owner, parts[-1], pressed)


def children() -> set[str]:
    """The ids of what this process has started and what still runs."""
    found = set()
    for pid in " ".join(path.read_text() for path in Path("/proc/self/task").glob("*/children")).split():
        with contextlib.suppress(OSError):  # it has just ended
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                found.add(pid)
    return found


@pytest.mark.parametrize("words", MOMENTS, ids=lambda words: words[:30])
def test_ctrl_c_in_the_middle_of_the_work(
    words: str, tiny_onnx_short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("art", "art2"):
        fake_artifact(tmp_path / name)
    (tmp_path / "real").symlink_to(tiny_onnx_short)
    (tmp_path / "lab.toml").write_text(lab_file("desk", {"agent": fake_agent()}))
    (tmp_path / "plan.toml").write_text(PLAN)
    (tmp_path / "m.json").write_text(fake_measurement().to_json())
    before, running = {path.name for path in tmp_path.iterdir()}, children()
    place, kept = MOMENTS[words]
    press(monkeypatch, place)
    with contextlib.chdir(tmp_path):
        done = CliRunner().invoke(main, words.split())
    assert done.exit_code == 130, done.output
    assert done.stderr.splitlines()[-1] == "Interrupted" and "Traceback" not in done.stderr
    assert sorted({path.name for path in tmp_path.iterdir()} - before) == kept
    assert not [path for path in tmp_path.rglob(".phi-edge*") if path.name != ".phi-edge-export"]
    assert not children() - running
