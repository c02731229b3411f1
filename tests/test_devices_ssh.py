"""The emulated Raspberry Pi as a lab device: staged, run, benched, examined; and every fault ends in an answer."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from ci.emulated_pi import NAME, EmulatedPi
from devices.driver import Driver
from devices.drivers import find_device, open_device_runtime, open_driver
from devices.errors import DeviceError
from devices.measurement import read_measurement
from devices.ssh_driver import SshDriver
from devices.validity import doubts, problems
from export import artifact as artifacts
from export.artifact import Artifact, open_artifact
from phi_edge import main
from runtimes import DoneEvent, GenerateRequest, Runtime, TokenEvent, open_runtime
from runtimes.errors import DeviceBusyError, EngineError, TransportError
from runtimes.fake import fake_artifact
from runtimes.registry import ENGINES
from runtimes.tokenizer import Tokenizer

pytestmark = pytest.mark.emulated
HELD_OUT = Path(__file__).parent.parent / "export/tiny/held_out.jsonl"
PROMPTS = 50
CLOSE_LOGITS = 0.05  # of two logits whose order may differ between x86 and ARM kernels


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def open_pi(emulated_pi: EmulatedPi, tiny_onnx: Path, said: list[str]) -> Iterator[Callable[[], Runtime]]:
    opened: list[Runtime] = []

    def begin() -> Runtime:
        lab = emulated_pi.lab
        opened.append(open_device_runtime(tiny_onnx, NAME, lab=lab, threads=None, say=said.append, deadline_s=120))
        return opened[-1]

    yield begin
    for runtime in opened:
        runtime.close()


@pytest.fixture
def driver(emulated_pi: EmulatedPi) -> Iterator[Driver]:
    with contextlib.closing(open_driver(NAME, find_device(NAME, emulated_pi.lab))) as opened:
        yield opened


def ids(runtime: Runtime, prompt: str, count: int = 24) -> list[int]:
    request = GenerateRequest(prompt=prompt, max_new_tokens=count)
    return [event.id for event in runtime.generate(request) if isinstance(event, TokenEvent)]


def prompts() -> list[str]:
    """Held-out questions."""
    rows = [json.loads(line) for line in HELD_OUT.read_text(encoding="utf-8").splitlines()]
    every = len(rows) // PROMPTS  # from all its categories
    return [str(row["question"]) for row in rows[::every]][:PROMPTS]


def test_greedy_tokens_are_those_of_this_machine(open_pi: Callable[[], Runtime], tiny_onnx: Path) -> None:
    pi, here, chosen = open_pi(), open_runtime(tiny_onnx), prompts()
    assert len(chosen) == PROMPTS
    differing = {prompt: pair for prompt in chosen if (pair := (ids(pi, prompt), ids(here, prompt)))[0] != pair[1]}
    here.close()
    unexplained = {
        prompt: gap for prompt, pair in differing.items() if (gap := logit_gap(tiny_onnx, prompt, *pair)) > CLOSE_LOGITS
    }
    assert not unexplained, f"{len(differing)} of {PROMPTS} prompts differ; by more than a near tie: {unexplained}"


def logit_gap(folder: Path, prompt: str, one: list[int], other: list[int]) -> float:
    """How far apart this machine's logits of the two first differing tokens are."""
    place = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    artifact = open_artifact(folder)
    engine = ENGINES[artifact.manifest.format](artifact, None)
    start = Tokenizer(folder).encode_prompt(prompt)
    logits = np.array(engine.forward([*start, *one[:place]], 0, long=False))
    engine.close()
    stops = list(artifact.manifest.tokens.stop)
    # Where one answer ended, the other's token stands against the likeliest stop id.
    rivals = [
        answer[place] if place < len(answer) else max(stops, key=lambda id: logits[id]) for answer in (one, other)
    ]
    return float(abs(logits[rivals[0]] - logits[rivals[1]]))


def test_prompts_that_a_shell_would_mangle_reach_the_model(open_pi: Callable[[], Runtime], tiny_onnx: Path) -> None:
    pi, here, chance = open_pi(), open_runtime(tiny_onnx), random.Random(6)
    odd = [
        "'",
        '"',
        "$HOME",
        "`id`",
        "$(reboot)",
        "\\",
        "\n",
        "\r",
        "\0",
        "\t",
        ";",
        "|",
        "&&",
        ">x",
        "é",
        "😀",
        "{}",
        "the light",
    ]
    for _ in range(12):
        text = "".join(chance.choices(odd, k=12))
        request = GenerateRequest(prompt=text, max_new_tokens=3, ignore_stop_ids=True)
        (*seen, pi_done), (*expected, done) = pi.generate(request), here.generate(request)
        assert isinstance(pi_done, DoneEvent) and isinstance(done, DoneEvent) and pi_done.usage == done.usage
        pair = (
            [event.id for event in seen if isinstance(event, TokenEvent)],
            [event.id for event in expected if isinstance(event, TokenEvent)],
        )
        # Text that the model was never taught leaves near ties, which the two processors' kernels may break apart.
        assert pair[0] == pair[1] or logit_gap(tiny_onnx, text, *pair) <= CLOSE_LOGITS, (text, pair)
    here.close()


def test_run_and_bench_take_its_name(emulated_pi: EmulatedPi, tiny_onnx: Path, tmp_path: Path) -> None:
    lab = ["--device", NAME, "--lab", str(emulated_pi.lab)]
    ran = CliRunner().invoke(main, ["run", str(tiny_onnx), "Turn on the light", "--max-new-tokens", "4", *lab])
    assert ran.exit_code == 0, ran.output
    out = tmp_path / "m.json"
    words = ["bench", str(tiny_onnx), *lab, "--prompt-tokens", "8", "--generate-tokens", "6", "--reps", "2"]
    benched = CliRunner().invoke(main, [*words, "--out", str(out)])
    assert benched.exit_code == 0, benched.output
    measurement = read_measurement(out)
    assert problems(measurement) == []
    assert measurement.device.transport == "ssh"
    before, repetition = measurement.before, measurement.repetitions[0]
    assert "aarch64" in before.system and before.cpu_model == "Raspberry Pi 5 Model B Rev 1.0"
    assert before.governor == "ondemand" and before.throttled == 0
    assert before.swap_devices == {"/dev/zram0": 2_147_483_648}
    assert before.temperature_c is not None and before.temperature_c["vcgencmd"] == 51.2
    assert before.memory_total_bytes == 8_255_488 * 1024
    assert repetition.load_s is not None and 0 < (repetition.open_s or 0) < repetition.load_s
    assert repetition.run.memory.peak_bytes and repetition.run.memory.anonymous_bytes
    assert repetition.run.memory.file_bytes is not None and repetition.run.memory.swap_bytes is not None
    assert "onnxruntime" in measurement.versions


def test_throttling_in_between_makes_a_measurement_doubtful(
    emulated_pi: EmulatedPi, tiny_onnx: Path, tmp_path: Path
) -> None:
    firmware, out = emulated_pi.pi / "throttled", tmp_path / "m.json"
    firmware.write_text("0x50005\n")
    try:
        words = ["bench", str(tiny_onnx), "--device", NAME, "--lab", str(emulated_pi.lab), "--reps", "1"]
        small = ["--prompt-tokens", "4", "--generate-tokens", "3", "--warmup", "0", "--out", str(out)]
        assert CliRunner().invoke(main, [*words, *small]).exit_code == 0
        examined = CliRunner().invoke(main, ["doctor", NAME, "--lab", str(emulated_pi.lab)])
    finally:
        firmware.write_text("0x0\n")
    held_back = [doubt for doubt in doubts(read_measurement(out)) if "held it back" in doubt]
    assert any("under-voltage" in doubt for doubt in held_back) and any("throttled" in doubt for doubt in held_back)
    assert examined.exit_code == 1
    assert "WRONG    throttling: now: under-voltage (use the official power supply" in examined.output


def test_doctor_finds_a_healthy_board(emulated_pi: EmulatedPi) -> None:
    result = CliRunner().invoke(main, ["doctor", NAME, "--lab", str(emulated_pi.lab)])
    assert result.exit_code == 0, result.output
    for line in (
        "reachable: ssh pi5",
        "3.11.2",
        "aarch64, glibc 2.36",
        "onnxruntime: 1.32.0",
        "zram",
        "none since its",
    ):
        assert line in result.output


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"host": "nobody.invalid"}, "WRONG    reachable"),
        ({"python": "/no/such/python3"}, "WRONG    python: the device has no working /no/such/python3"),
        ({"python": "/usr/bin/python3"}, "onnxruntime"),
        ({"cache": "/proc/nowhere"}, "WRONG    cache"),
    ],
)
def test_doctor_says_what_is_wrong(emulated_pi: EmulatedPi, tmp_path: Path, changes: dict[str, str], said: str) -> None:
    lab = tmp_path / "lab.toml"
    lab.write_text(emulated_pi.row(**changes))
    result = CliRunner().invoke(main, ["doctor", NAME, "--lab", str(lab)])
    assert result.exit_code == 1, result.output
    assert said in result.output and "-> " in result.output


def test_a_cable_pulled_in_a_push_is_resumed(
    emulated_pi: EmulatedPi, driver: Driver, tmp_path: Path, said: list[str]
) -> None:
    folder = tmp_path / "big"
    fake_artifact(folder)
    big = folder / "weights.bin"
    big.write_bytes(os.urandom(1 << 20) * 48)
    artifact = reseal(folder)
    remote = emulated_pi.cache / "artifacts" / artifact.manifest.digest() / "weights.bin.part"
    cut_at: list[int] = []

    def cut(what: str) -> None:
        said.append(what)
        if "weights.bin" in what and not cut_at:
            pid = os.fork()
            if pid == 0:
                until_s = time.monotonic() + 30
                while time.monotonic() < until_s and (not remote.exists() or remote.stat().st_size < 1 << 20):
                    pass
                emulated_pi.cut()
                os._exit(0)
            cut_at.append(pid)

    driver.stage(artifact, cut)
    os.waitpid(cut_at[0], 0)
    assert any(what.endswith("going on") for what in said), said
    staged = remote.with_name("weights.bin")
    assert staged.read_bytes() == big.read_bytes() and not remote.exists()
    assert (staged.parent / "manifest.json").exists()


def reseal(folder: Path) -> Artifact:
    """Take all files of the folder into its manifest."""
    manifest = open_artifact(folder).manifest
    names = sorted(path.name for path in folder.iterdir() if path.name != artifacts.MANIFEST)
    return artifacts.seal(folder, dataclasses.replace(manifest, files=artifacts.describe_files(folder, names)))


def test_a_damaged_part_is_pushed_anew(emulated_pi: EmulatedPi, driver: Driver, tmp_path: Path) -> None:
    folder = tmp_path / "odd names"
    fake_artifact(folder)
    for name in ("it's $HOME", "a\nb", '"`;'):
        (folder / name).write_bytes(os.urandom(1000))
    artifact = reseal(folder)
    remote = emulated_pi.cache / "artifacts" / artifact.manifest.digest()
    remote.mkdir(parents=True)
    (remote / "it's $HOME.part").write_bytes(b"of another file")
    driver.stage(artifact, print)
    for name, file in artifact.manifest.files.items():
        assert (remote / name).read_bytes() == (folder / name).read_bytes(), name
        assert (remote / name).stat().st_size == file.bytes
    assert not list(remote.glob("*.part"))


def test_an_artifact_that_the_memory_cannot_hold_is_refused_before_the_push(
    emulated_pi: EmulatedPi, driver: Driver, tmp_path: Path
) -> None:
    artifact = fake_artifact(tmp_path / "a")
    memory = dataclasses.replace(artifact.manifest.memory, weights_bytes=2_100_000_000, kv_bytes_per_token=393_216)
    artifact = artifacts.seal(
        artifact.folder, dataclasses.replace(artifact.manifest, memory=memory, context_tokens=131_072)
    )
    with pytest.raises(DeviceError, match=r"needs 53.6 GB .* has 8.5 GB.*; export it with --context \d+ or less"):
        driver.stage(artifact, print)
    assert not (emulated_pi.cache / "artifacts" / artifact.manifest.digest()).exists()


def test_a_cable_pulled_in_a_generation_is_told_and_a_new_start_works(
    emulated_pi: EmulatedPi, open_pi: Callable[[], Runtime]
) -> None:
    lost = open_pi()
    events = lost.generate(GenerateRequest(prompt="Turn on", max_new_tokens=400, ignore_stop_ids=True))
    next(events)
    emulated_pi.cut()
    begun = time.monotonic()
    with pytest.raises(
        TransportError, match="the agent ended while generating: the device is up and was not restarted"
    ):
        list(events)
    assert time.monotonic() - begun < 30
    with pytest.raises(TransportError, match="the agent ended while generating"):
        list(lost.generate(GenerateRequest(prompt="Turn on")))
    lost.close()
    wait_for_no_agent(emulated_pi)
    assert ids(open_pi(), "Turn on the light in the")


def wait_for_no_agent(emulated_pi: EmulatedPi) -> None:
    """The agent finds the end of its input, and frees the device."""
    until_s = time.monotonic() + 20
    while emulated_pi.agents() and time.monotonic() < until_s:
        time.sleep(0.1)
    assert not emulated_pi.agents()


def test_a_killed_agent_is_told(emulated_pi: EmulatedPi, open_pi: Callable[[], Runtime]) -> None:
    events = open_pi().generate(GenerateRequest(prompt="Turn on", max_new_tokens=400, ignore_stop_ids=True))
    next(events)
    (pid,) = emulated_pi.agents()
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(TransportError, match=r"the agent ended while generating: .* ended there \(out of memory"):
        list(events)


def test_a_restarted_device_is_told(emulated_pi: EmulatedPi, open_pi: Callable[[], Runtime]) -> None:
    boot_id = emulated_pi.pi / "root/proc/sys/kernel/random/boot_id"
    kept = boot_id.read_text()
    events = open_pi().generate(GenerateRequest(prompt="Turn on", max_new_tokens=400, ignore_stop_ids=True))
    next(events)
    try:
        emulated_pi.stop()
        boot_id.write_text("00000000-0000-4000-8000-000000000002\n")
        emulated_pi.start()
        with pytest.raises(TransportError, match="the device was restarted in between"):
            list(events)
    finally:
        boot_id.write_text(kept)


def test_a_dead_sshd_in_a_generation_is_told(emulated_pi: EmulatedPi, open_pi: Callable[[], Runtime]) -> None:
    events = open_pi().generate(GenerateRequest(prompt="Turn on", max_new_tokens=400, ignore_stop_ids=True))
    next(events)
    emulated_pi.stop()
    try:
        with pytest.raises(TransportError, match="the device cannot be reached any more"):
            list(events)
    finally:
        emulated_pi.start()


def test_two_clients_at_once_are_refused(emulated_pi: EmulatedPi, open_pi: Callable[[], Runtime]) -> None:
    first = open_pi()
    with pytest.raises(DeviceBusyError, match=r"the device is in use: another agent holds .*agent.lock .*pid"):
        open_pi()
    assert ids(first, "Turn on the light in the")
    first.close()
    assert ids(open_pi(), "Turn on the light in the")


def test_a_missing_library_is_told(emulated_pi: EmulatedPi, tiny_onnx: Path, tmp_path: Path) -> None:
    lab, cache = tmp_path / "lab.toml", tmp_path / "cache"
    bare = tmp_path / "bare-python"
    # The board's Python without its site folder: numpy and onnxruntime are not there.
    script = (emulated_pi.pi / "bin/python3").read_text().replace("$here/root/site", "/nowhere")
    bare.write_text(script.replace('here=$(dirname "$(dirname "$(readlink -f "$0")")")', f"here={emulated_pi.pi}"))
    bare.chmod(0o755)
    lab.write_text(emulated_pi.row(python=str(bare), cache=str(cache)))
    with pytest.raises(EngineError, match="pip install"):
        open_device_runtime(tiny_onnx, NAME, lab=lab, threads=None, say=print)


def test_a_disk_without_room_is_told_before_the_push(
    emulated_pi: EmulatedPi, driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a"
    fake_artifact(folder)
    with (folder / "weights.bin").open("wb") as sparse:
        sparse.truncate(1000)
    artifact = reseal(folder)
    monkeypatch.setattr("devices.staging.free_bytes", lambda host, folder: 5_000)
    with pytest.raises(DeviceError, match=r"0.00 GB free at .* remove old artifacts"):
        driver.stage(artifact, print)


def test_an_empty_wheelhouse_is_told(emulated_pi: EmulatedPi, tmp_path: Path) -> None:
    """Making the environment is tested on this machine: an emulated Pi cannot start a venv's interpreter by itself."""
    house = tmp_path / "wheels"
    house.mkdir()
    lab = tmp_path / "lab.toml"
    lab.write_text(emulated_pi.row(python="", wheelhouse=str(house), cache=str(tmp_path / "cache")))
    with contextlib.closing(open_driver(NAME, find_device(NAME, lab))) as driver:
        assert isinstance(driver, SshDriver)
        with pytest.raises(DeviceError, match="holds no wheel"):
            driver.stage(fake_artifact(tmp_path / "a"), print)
