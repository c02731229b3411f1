"""`phi-edge bench` at its boundary: the command line, the agent's process, the measurement file."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from devices.measure.measurement import Measurement, read_measurement
from devices.measure.metrics import METRICS, summarize
from devices.measure.validity import problems
from fakes.agent import fake_agent
from phi_edge.main import main
from runtimes.api import MemoryUse
from runtimes.engines.fake import fake_artifact

FAKE = fake_agent(0.001)[1:]
READY = """
import json, sys
def say(**fields):
    print(json.dumps(fields), flush=True)
say(event="ready", protocol=1, agent="a test's", context_tokens=512, vocab_size=262, capabilities=["hold", "cancel"])
"""
NEVER_THE_SAME = (
    READY
    + """
import os
request = json.loads(sys.stdin.readline())
count, number = request["max_new_tokens"], request["request"]
for token in range(count):
    say(event="token", request=number, id=os.getpid() % 262, at_s=0.1 * token + 0.1)
usage = {"prompt": len(request["ids"]), "reused": 0, "prefilled": len(request["ids"]), "completion": count}
say(event="done", request=number, finish="length", usage=usage)
"""
)
# Reports a different number for every figure that a process may report of itself.
EVERY_FIGURE = NEVER_THE_SAME.replace(
    "usage=usage)",
    f"usage=usage, memory={ {field.name: 1000 + n for n, field in enumerate(dataclasses.fields(MemoryUse))} })",
)
NOISY = """
import os, sys, runtimes.engines.fake as fake
forward = fake.FakeEngine.forward
def noisy(*arguments, **named):
    os.write(1, b"a line of an engine's library\\n")
    return forward(*arguments, **named)
fake.FakeEngine.forward = noisy
from runtimes.agent.server import main
sys.exit(main(sys.argv[1:], fake.fake_opener()))
"""


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return fake_artifact(tmp_path / "fake").folder


def bench(artifact: Path, agent: list[str], *options: str) -> tuple[Result, Path]:
    """Run bench with this Python and these arguments as the agent."""
    folder = artifact.parent
    command = json.dumps([sys.executable, *agent])  # a JSON list of strings is a TOML one too
    (folder / "lab.toml").write_text(f"[device.desk]\nagent = {command}\n")
    out = folder / "m.json"
    given = ["--device", "desk", "--lab", str(folder / "lab.toml"), "--out", str(out), *options]
    small = ["--generate-tokens", "5", "--reps", "2"]
    if "--prompt-tokens" not in options:
        small += ["--prompt-tokens", "9"]
    return CliRunner().invoke(main, ["bench", str(artifact), *small, *given]), out


def done(result: Result, out: Path) -> Measurement:
    assert result.exit_code == 0, result.output
    return read_measurement(out)


def failed(result: Result, out: Path) -> str:
    """The error of a bench that must have failed: exit 2, nothing written, no traceback."""
    assert result.exit_code == 2, result.output
    assert not out.exists() and not list(out.parent.glob(".m.json*"))
    assert "Traceback" not in result.stderr
    return result.stderr


def test_it_measures_what_was_asked(artifact: Path) -> None:
    measurement = done(*bench(artifact, FAKE, "--warmup", "2"))
    assert problems(measurement) == []
    assert len(measurement.repetitions) == 2
    for repetition in measurement.repetitions:
        assert len(repetition.warmups) == 2
        run = repetition.run
        assert (run.prompt_tokens, run.completion_tokens, len(run.token_ids)) == (9, 5, 5)
        assert list(run.token_at_s) == sorted(run.token_at_s)
        assert run.memory.peak_bytes is not None and run.memory.peak_bytes > 1_000_000
        assert 0 < (repetition.open_s or 0) < (repetition.load_s or 0)
    assert measurement.device.name == "desk"
    assert measurement.versions["python"]
    summary = summarize(METRICS["itl_p50_s"], measurement)
    assert summary is not None and 0.001 <= summary.value < 0.1


def test_every_repetition_is_a_fresh_process(artifact: Path) -> None:
    measurement = done(*bench(artifact, ["-c", NEVER_THE_SAME], "--warmup", "0"))
    first, second = (repetition.run.token_ids[0] for repetition in measurement.repetitions)
    assert first != second


def test_tokens_that_differ_are_flagged(artifact: Path) -> None:
    result, out = bench(artifact, ["-c", NEVER_THE_SAME], "--warmup", "0")
    assert any(problem.startswith("nondeterministic") for problem in problems(done(result, out)))
    assert "invalid: nondeterministic" in result.stderr


def test_what_the_agent_did_not_tell_is_none(artifact: Path) -> None:
    measurement = done(*bench(artifact, ["-c", NEVER_THE_SAME], "--warmup", "0"))
    for name in ("prefill_tokens_per_s", "peak_memory_bytes"):
        assert summarize(METRICS[name], measurement) is None


def test_every_figure_of_the_process_reaches_the_file(artifact: Path) -> None:
    """No layer between the process and the file names the figures: a new one is a field of MemoryUse, its reader, and
    its metric."""
    measurement = done(*bench(artifact, ["-c", EVERY_FIGURE], "--warmup", "0"))
    for repetition in measurement.repetitions:
        seen = dataclasses.asdict(repetition.run.memory)
        assert list(seen.values()) == list(range(1000, 1000 + len(seen)))


def test_a_library_that_prints_on_stdout_does_not_break_the_protocol(artifact: Path) -> None:
    assert problems(done(*bench(artifact, ["-c", NOISY]))) == []


def test_it_waits_until_the_device_is_ready_for_each_repetition(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("devices.measure.readiness.unready", lambda seen, limit: [])
    repetitions = done(*bench(artifact, FAKE, "--warmup", "0", "--ready-s", "0")).repetitions
    for repetition in repetitions:
        assert repetition.entered is not None and repetition.left is not None and repetition.waited_s is not None
    assert done(*bench(artifact, FAKE, "--warmup", "0")).repetitions[0].entered is None
    (artifact.parent / "m.json").unlink()
    monkeypatch.setattr("devices.measure.readiness.unready", lambda seen, limit: ["it is hot"])
    said = failed(*bench(artifact, FAKE, "--ready-s", "0"))
    assert "the device was not ready after 0 s: it is hot; it is given up after 3 such waits" in said


def test_an_agent_that_dies_is_reported_with_its_last_lines(artifact: Path) -> None:
    said = failed(*bench(artifact, ["-c", "import sys; sys.stderr.write('no such\\nlibrary\\n'); sys.exit(3)"]))
    assert said == "Error: the agent ended while loading the artifact (exit code 3)\n  no such\n  library\n"


def test_an_agent_that_is_killed_is_reported(artifact: Path) -> None:
    code = READY + "import os, signal\nsys.stdin.readline()\nos.kill(os.getpid(), signal.SIGKILL)"
    said = failed(*bench(artifact, ["-c", code]))
    assert "the agent ended while generating (killed by SIGKILL (out of memory?))" in said


@pytest.mark.parametrize("code", ["import time; time.sleep(900)", READY + "import time; time.sleep(900)"])
def test_an_agent_that_hangs_is_killed_at_its_deadline(artifact: Path, code: str) -> None:
    assert "allow it a longer deadline" in failed(*bench(artifact, ["-c", code], "--deadline-s", "1"))


def test_an_agent_that_does_not_end_is_killed_at_its_deadline(artifact: Path) -> None:
    said = failed(*bench(artifact, ["-c", NEVER_THE_SAME + "import time; time.sleep(900)"], "--warmup", "0",
                         "--deadline-s", "2"))  # fmt: skip
    assert "still running after its input had ended" in said


def test_an_agent_that_speaks_nonsense_is_refused(artifact: Path) -> None:
    assert "printed b'hello" in failed(*bench(artifact, ["-c", "print('hello')"]))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--device", "desk2"], "unknown device 'desk2'; known: desk, local"),
        (["--prompt-tokens", "510"], "more than the artifact's context of 512"),
        (["--out", "/nowhere/m.json"], "/nowhere/m.json: its folder does not exist"),
        (["--reps", "0"], "0 is not in the range 1<=x<=1000"),
    ],
)
def test_the_users_fault_is_one_line(artifact: Path, options: list[str], said: str) -> None:
    assert said in failed(*bench(artifact, FAKE, *options))


def test_no_artifact_is_the_users_fault(tmp_path: Path) -> None:
    assert "no such folder" in failed(*bench(tmp_path / "nothing", FAKE))


def test_an_artifact_that_cannot_be_opened_is_reported_in_one_line(artifact: Path) -> None:
    # The fake's artifact holds no model: the real engine says so, in the agent.
    said = failed(*bench(artifact, ["-m", "runtimes.agent"]))
    assert said.startswith("Error: ") and len(said.splitlines()) == 1


def test_a_killed_bench_leaves_nothing(artifact: Path) -> None:
    command = json.dumps(fake_agent(0.05))
    lab, out = artifact.parent / "lab.toml", artifact.parent / "m.json"
    lab.write_text(f"[device.slow]\nagent = {command}\n")
    words = ["bench", str(artifact), "--device", "slow", "--lab", str(lab), "--out", str(out)]
    process = subprocess.Popen([sys.executable, "-m", "phi_edge", *words])
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    until_s = time.monotonic() + 60
    while not children.read_text() and time.monotonic() < until_s:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert sorted(path.name for path in artifact.parent.iterdir()) == ["fake", "lab.toml"]


def check_real(folder: Path, out: Path) -> dict[str, Any]:
    words = ["bench", str(folder), "--prompt-tokens", "16", "--generate-tokens", "8", "--reps", "2", "--out", str(out)]
    result = CliRunner().invoke(main, words)
    measurement = done(result, out)
    assert problems(measurement) == []
    # Those with a figure are read from a score, not from a measurement.
    timed = {name: metric for name, metric in METRICS.items() if metric.figure is None}
    values = {name: summarize(metric, measurement) for name, metric in timed.items()}
    unmeasured = {name for name, summary in values.items() if summary is None}
    # On a file system that does not tell what is cached, no load is known to be cold.
    elsewhere = {"peak_committed_bytes", "peak_gpu_memory_bytes", "peak_gpu_shared_bytes", "cost_per_1000_answers_usd"}
    elsewhere.add("reference_share")  # this export was not run before it was sealed
    assert elsewhere <= unmeasured <= {"cold_load_s", "energy_per_token_j", *elsewhere}
    artifact_bytes = values["artifact_bytes"]
    assert artifact_bytes is not None and artifact_bytes.value == measurement.artifact.artifact_bytes
    return dict(measurement.versions)


def test_the_tiny_model_on_onnx_runtime(tiny_onnx: Path, tmp_path: Path) -> None:
    assert "onnxruntime" in check_real(tiny_onnx, tmp_path / "m.json")


def test_the_tiny_model_on_executorch(tiny_executorch: Path, tmp_path: Path) -> None:
    assert "executorch" in check_real(tiny_executorch, tmp_path / "m.json")
