"""`phi-edge demo`: what it would run, and that it removes nothing that it did not make."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from devices.errors import DeviceError
from phi_edge.main import VERBS, main
from phi_edge.verbs import demo


def test_the_plan_is_made_of_our_own_verbs(tmp_path: Path) -> None:
    steps = demo.plan(tmp_path)
    assert {step.words[0] for step in steps} == {"export", "check", "run", "bench", "report"} <= set(VERBS)
    exported = {step.words[-1] for step in steps if step.words[0] == "export"}
    assert exported == {"cpu", "raspberry-pi", "android", "windows-directml", "webgpu", "web", "cuda"}
    assert steps[-1].command_line.startswith("phi-edge report ")


def test_a_strangers_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(DeviceError, match="was not made by a demo"):
        demo.make_room(tmp_path)
    assert (tmp_path / "thesis.tex").is_file()


def test_a_second_demo_removes_only_what_the_first_made(tmp_path: Path) -> None:
    out, other = tmp_path / "demo", tmp_path / "other"
    demo.make_room(out)
    other.mkdir()
    (other / "keep").touch()
    for made in (out / "cpu" / "model.onnx", out / "report.html", out / "notes.txt"):
        made.parent.mkdir(exist_ok=True)
        made.touch()
    (out / "android").symlink_to(other, target_is_directory=True)
    with pytest.raises(DeviceError, match="is a link"):
        demo.make_room(out)
    (out / "android").unlink()
    demo.make_room(out)
    assert sorted(path.name for path in out.iterdir()) == [demo.MARK, "notes.txt"]
    assert (other / "keep").is_file()


def test_a_step_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "plan", lambda out: [demo.Step("Fails", ["report", str(tmp_path / "no file.json")])])
    result = CliRunner().invoke(main, ["demo", "--out", str(tmp_path / "demo")])
    assert result.exit_code == 2
    assert f"Error: step 1 of 1 failed with exit code 2: phi-edge report '{tmp_path}/no file.json'" in result.stderr


def test_importing_the_room_imports_nothing_heavy() -> None:
    heavy = {"numpy", "matplotlib", "jinja2", "rich", "torch", "onnxruntime"}
    code = f"import sys, devices, phi_edge.verbs.bench, phi_edge.verbs.demo; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
