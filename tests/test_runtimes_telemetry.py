"""Nothing that we start reports to anybody: no file outside what was asked for, no name looked up.

ONNX Runtime's official builds write a device id when they are imported and look a server up about ten seconds later.
The control imports the library plainly. Where it does neither (another build, another version), nothing can be seen.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-P", "-m", "phi_edge"]
CONTROL = "import onnxruntime, sys; print('ready', flush=True); sys.stdin.read()"
# An opened artifact that has answered and stays open, as in a conversation.
OPEN = """
import sys
from phi_edge import GenerateRequest, open_runtime
runtime = open_runtime(sys.argv[1])
list(runtime.generate(GenerateRequest(prompt="Once", max_new_tokens=2)))
print("ready", flush=True)
sys.stdin.read()
"""
LOOKED_UP = re.compile(r"resolv\.conf|sin6?_port=htons\(53\)|events\.data\.microsoft")


def environment(home: Path) -> Mapping[str, str]:
    """The user's, without what this suite sets, in a home of its own."""
    kept = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    return kept | {"HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache"), "TMPDIR": str(home)}


def written(home: Path) -> list[str]:
    return sorted(str(path.relative_to(home)) for path in home.rglob("*") if path.is_file())


def start(home: Path, *words: object, trace: Path | None = None) -> subprocess.Popen[str]:
    """A program that says `ready` and then waits; with `trace`, its look-ups go there."""
    home.mkdir()
    tracer = ["strace", "-f", "-qq", "-e", "trace=openat,connect,sendto,sendmmsg", "-o", str(trace)] if trace else []
    return subprocess.Popen(
        [*tracer, *map(str, words)],
        env=environment(home),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
    )


def await_ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"


@pytest.fixture(scope="module")
def control_writes(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skips where an onnxruntime left alone writes nothing: then the absence of files shows nothing."""
    home = tmp_path_factory.mktemp("control") / "home"
    with start(home, sys.executable, "-c", CONTROL) as process:
        await_ready(process)
        process.communicate("")
    if not written(home):
        pytest.skip("this onnxruntime reports nothing, even when left alone")


@pytest.mark.usefixtures("control_writes")
@pytest.mark.parametrize(
    "words",
    [
        lambda artifact, out: ["run", artifact, "Once", "--max-new-tokens", "2"],
        lambda artifact, out: ["run", artifact, "Once", "--max-new-tokens", "2", "--device", "local"],
        lambda artifact, out: [
            "bench", artifact, "--out", out / "m.json", "--reps", "1", "--prompt-tokens", "4", "--generate-tokens", "2",
        ],
        lambda artifact, out: ["score", artifact, "--tokens", "0"],
        lambda artifact, out: ["export", "tiny", out / "again", "--dry-run"],
        lambda artifact, out: ["doctor"],
    ],
    ids=["run", "agent", "bench", "score", "export", "doctor"],
)  # fmt: skip
def test_a_verb_writes_nothing_into_the_home(
    words: Callable[[Path, Path], list[object]], tiny_onnx_short: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    command = [*COMMAND, *map(str, words(tiny_onnx_short, tmp_path))]
    done = subprocess.run(
        command, env=environment(home), capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path
    )
    assert done.returncode in (0, 1), done.stderr  # doctor may find something wrong
    assert written(home) == []


@pytest.mark.usefixtures("control_writes")
def test_an_open_model_looks_no_name_up(tiny_onnx_short: Path, tmp_path: Path) -> None:
    """As long as it takes the control, which started later, to look one up."""
    if shutil.which("strace") is None or subprocess.run(["strace", "-qq", "true"], capture_output=True).returncode:
        pytest.skip("needs strace, and a system that allows it: run ci/install_system.sh")
    ours, theirs = tmp_path / "ours.txt", tmp_path / "control.txt"
    with start(tmp_path / "home", sys.executable, "-c", OPEN, tiny_onnx_short, trace=ours) as subject:
        await_ready(subject)
        with start(tmp_path / "control", sys.executable, "-c", CONTROL, trace=theirs) as control:
            await_ready(control)
            until_s = time.monotonic() + 60
            while not (seen := LOOKED_UP.search(theirs.read_text())) and time.monotonic() < until_s:
                time.sleep(0.25)
            control.communicate("")
        subject.communicate("")
    if not seen:
        pytest.skip("this onnxruntime looks no name up, even when left alone")
    assert LOOKED_UP.findall(ours.read_text()) == []
    assert written(tmp_path / "home") == []


@pytest.mark.parametrize(
    "file",
    [
        "runtimes/native/engine.c",
        "runtimes/bundle/templates/raspberry-pi/phi-edge@.service.j2",
        "runtimes/bundle/templates/windows/PhiEdge.cs.j2",
        "runtimes/bundle/templates/android/OnnxPhi.kt.j2",
        "devices/checks/board.py",
    ],
)
def test_what_does_not_go_through_our_engines_sets_it_too(file: str) -> None:
    assert "ORT_DISABLE_TELEMETRY" in (ROOT / file).read_text(encoding="utf-8")


def test_every_import_of_the_library_comes_after_the_switch() -> None:
    importing = re.compile(r"^( +)import onnxruntime(_genai)?$", re.MULTILINE)
    for path in [*(ROOT / "runtimes").rglob("*.py"), *(ROOT / "export").rglob("*.py"), *(ROOT / "ci").rglob("*.py")]:
        text = path.read_text(encoding="utf-8")
        if (found := importing.search(text)) is not None:
            assert re.search(r"switch_telemetry_off\(\)|ORT_DISABLE_TELEMETRY", text[: found.start()]), path
