"""Android devices end to end: the real adb client, a fake adbd, and arm64 programs under qemu behind its shell."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner

from devices.drivers.adb import AdbDevice, AdbDriver
from devices.drivers.adb_conditions import parse_conditions
from devices.drivers.driver import Loading
from devices.errors import DeviceError
from devices.measure.bench import Plan, measure
from devices.measure.measurement import DeviceFacts, read_measurement
from devices.measure.metrics import METRICS, summarize
from devices.measure.validity import problems
from devices.transports.adb.devices import Client
from devices.transports.timeouts import DEFAULT_TIMEOUTS, Timeouts
from export.artifact import Artifact, open_artifact, verify
from fakes.adbd import FakeAdbd
from fakes.android import AndroidSoftware, llama_main_row
from fakes.lab_file import lab_file
from fakes.near_ties import CLOSE_LOGITS, partings, questions
from fakes.odd_text import odd_texts
from fakes.phone import BATTERY, THERMAL, FakePhone
from phi_edge.main import main
from runtimes import open_runtime
from runtimes.api import Message
from runtimes.errors import DeviceBusyError, DiskFullError, EngineError, RequestError, TransportError, UnsupportedError
from runtimes.loop.tokens import NewToken, TokenRequest, TokensDone, TokenSource
from runtimes.registry import open_tokens, text_runtime
from runtimes.text.tokenizer import Tokenizer

pytestmark = pytest.mark.emulated
# An unplugged phone is waited for: the others come back, however busy this machine is.
WAITS = {"unplug": Timeouts(connect_s=1.0)}


@pytest.fixture
def device(phone: FakeAdbd, adb: Client, android: AndroidSoftware) -> AdbDevice:
    return AdbDevice(
        transport="adb",
        serial=f"127.0.0.1:{phone.port}",
        server=adb.server,
        folder=str(phone.phone.folder / "data local/tmp"),
        program=str(android.folder / "agent-arm64"),
        libraries=android.libraries,
        prefix=android.prefix,
    )


@contextlib.contextmanager
def opened(device: AdbDevice, artifact: Artifact, timeouts: Timeouts = DEFAULT_TIMEOUTS) -> Iterator[TokenSource]:
    """Staged and loaded; closed afterwards."""
    with contextlib.closing(AdbDriver("phone", device, timeouts)) as driver:
        driver.stage(artifact, lambda what: None)
        source = driver.open(artifact, Loading(threads=2, wait_s=100)).source
        with contextlib.closing(source):
            yield source


def ids_of(source: TokenSource, request: TokenRequest) -> list[int]:
    return [record.id for record in source.stream(request) if isinstance(record, NewToken)]


def test_greedy_tokens_are_those_of_this_machine(
    device: AdbDevice, tiny_onnx: Path, record_testsuite_property: Callable[[str, object], None]
) -> None:
    artifact, here = open_artifact(tiny_onnx), open_runtime(tiny_onnx)
    with opened(device, artifact) as source:
        there = text_runtime(artifact, source)
        parted = partings(artifact, here, there, questions(50), max_new_tokens=16)
    here.close()
    record_testsuite_property("parted", parted)
    assert all(each.gap <= CLOSE_LOGITS for each in parted) and len(parted) <= 2, parted


def test_bench_on_the_phone(device: AdbDevice, tiny_onnx: Path) -> None:
    with contextlib.closing(AdbDriver("phone", device)) as driver:
        plan = Plan(prompt_tokens=16, generate_tokens=8, repetitions=2, warmups=1, threads=2)
        facts = DeviceFacts(name="phone", transport="adb")
        measured = measure(open_artifact(tiny_onnx), facts, driver, plan, lambda done, what: None)
    assert problems(measured) == []
    assert measured.repetitions[0].run.memory.peak_bytes and measured.repetitions[0].load_mode == "mmap"
    assert measured.versions == {"onnxruntime": "1.32.0"}
    before = measured.before
    assert (before.battery_share, before.battery_charging, before.thermal_status) == (0.87, True, 0)
    assert before.temperature_c == {"CPU0": 31.5, "skin": 30.25, "battery": 29.1}
    assert before.cpu_model == "Fake Phone 1 FK1000"
    assert before.boot_id == measured.after.boot_id
    assert before.governor is None and before.frequency_hz is None  # this phone does not report them


def test_score_on_the_phone(device: AdbDevice, tiny_onnx: Path, tmp_path: Path) -> None:
    """The C agent's figures are this machine's, but for what the two processors round differently."""
    (tmp_path / "lab.toml").write_text(lab_file("phone", dataclasses.asdict(device)), encoding="utf-8")
    (tmp_path / "text.txt").write_text("Turn off the lamp in the kitchen. Is the lamp on? " * 20, encoding="utf-8")
    (tmp_path / "questions.jsonl").write_text('{"question": "Is the lamp on?", "answers": ["no"]}\n', encoding="utf-8")
    words = ["score", str(tiny_onnx), "--text", str(tmp_path / "text.txt"), "--json", "-"]
    words += ["--questions", str(tmp_path / "questions.jsonl")]
    scores = []
    for where in ([], ["--device", "phone", "--lab", str(tmp_path / "lab.toml")]):
        done = CliRunner().invoke(main, [*words, *where])
        assert done.exit_code == 0, done.output
        scores.append(json.loads(done.stdout))
    here, there = scores
    assert there["device"] == {"name": "phone", "transport": "adb"}
    assert there["perplexity"]["value"] == pytest.approx(here["perplexity"]["value"], rel=1e-3)
    assert there["text"] == here["text"]


def test_staging_is_done_once_and_resumed(device: AdbDevice, phone: FakeAdbd, tiny_onnx: Path) -> None:
    artifact = open_artifact(tiny_onnx)
    said: list[str] = []
    with contextlib.closing(AdbDriver("phone", device)) as driver:
        driver.stage(artifact, said.append)
        assert any("libonnxruntime.so" in what for what in said)
        said.clear()
        driver.stage(artifact, said.append)
        assert said == []
        staged = Path(device.folder) / "artifacts" / artifact.manifest.digest()
        (staged / "manifest.json").unlink()
        (staged / "model.onnx.data").rename(staged / "model.onnx.data.part")
        with (staged / "model.onnx.data.part").open("r+b") as file:
            file.truncate(200_000)
        driver.stage(artifact, said.append)
    assert [what.split(" (")[0] for what in said] == ["pushing model.onnx.data", "pushing manifest.json"]
    for name in artifact.manifest.files:
        assert (staged / name).read_bytes() == (artifact.folder / name).read_bytes()


@pytest.mark.parametrize("fault", ["cable", "server", "reboot"])
def test_faults_in_a_push(device: AdbDevice, phone: FakeAdbd, adb: Client, tiny_onnx: Path, fault: str) -> None:
    """It goes on by itself once the phone is back."""

    def pull_for_a_second() -> None:
        phone.unplug()
        threading.Timer(1.0, phone.plug).start()

    acts: dict[str, Callable[[], object]] = {
        "cable": pull_for_a_second,
        "server": lambda: kill_server(adb),
        "reboot": phone.reboot,
    }
    artifact, said = open_artifact(tiny_onnx), list[str]()
    part = Path(device.folder) / "artifacts" / artifact.manifest.digest() / "model.onnx.data.part"

    def wait() -> None:
        until_s = time.monotonic() + 60
        while time.monotonic() < until_s and (not part.exists() or part.stat().st_size < 100_000):
            time.sleep(0.0005)
        acts[fault]()

    watcher = threading.Thread(target=wait)
    phone.slow_s = 0.005  # a block: a phone's file system takes longer than this machine's
    watcher.start()
    with contextlib.closing(AdbDriver("phone", device)) as driver:
        driver.stage(artifact, said.append)
    watcher.join()
    assert any(what.endswith("continuing") for what in said), said
    verify(open_artifact(part.parent))
    assert not list(part.parent.glob("*.part*"))


def kill_server(adb: Client) -> None:
    command = ["adb", "-P", (adb.server or "").rpartition(":")[2], "kill-server"]
    subprocess.run(command, check=True, capture_output=True, timeout=30)


def test_two_clients_that_push_at_once_leave_a_whole_artifact(
    device: AdbDevice, phone: FakeAdbd, tiny_onnx: Path
) -> None:
    """Each finishes or gets an error; a file that has its final name is complete either way."""
    artifact, failed = open_artifact(tiny_onnx), list[str]()

    def push() -> None:
        with contextlib.closing(AdbDriver("phone", device)) as driver:
            try:
                driver.stage(artifact, lambda what: None)
            except TransportError as error:
                failed.append(str(error))

    clients = [threading.Thread(target=push) for _ in range(2)]
    for client in clients:
        client.start()
    for client in clients:
        client.join(120)
    assert all("arrives damaged" in message for message in failed), failed
    with opened(device, artifact) as source:  # the next client finds it complete, or completes it
        assert len(ids_of(source, TokenRequest(ids=[5], max_new_tokens=2))) == 2
    verify(open_artifact(Path(device.folder) / "artifacts" / artifact.manifest.digest()))


def test_a_full_disk(device: AdbDevice, phone: FakeAdbd, tiny_onnx: Path) -> None:
    phone.phone.free_bytes = 2_000_000
    with contextlib.closing(AdbDriver("phone", device)) as driver, pytest.raises(DiskFullError, match="No space left"):
        driver.stage(open_artifact(tiny_onnx), lambda what: None)
    assert not list(Path(device.folder).rglob("manifest.json"))


@pytest.mark.parametrize("fault", ["unplug", "reboot", "kill", "server"])
def test_faults_in_the_middle_of_an_answer(
    device: AdbDevice, phone: FakeAdbd, adb: Client, tiny_onnx: Path, fault: str
) -> None:
    artifact = open_artifact(tiny_onnx)
    acts: dict[str, tuple[Callable[[], object], str]] = {
        "unplug": (phone.unplug, "cannot be reached any more"),
        "reboot": (phone.reboot, "restarted in between"),
        "kill": (phone.phone.kill_all, "the agent was ended there"),
        "server": (lambda: kill_server(adb), "the connection was cut"),
    }
    act, reason = acts[fault]
    with opened(device, artifact, WAITS.get(fault, DEFAULT_TIMEOUTS)) as source:
        stream = source.stream(TokenRequest(ids=[5, 6, 7], max_new_tokens=400))
        next(stream)
        act()
        with pytest.raises(TransportError, match=reason):
            list(stream)
        with pytest.raises(TransportError):
            list(source.stream(TokenRequest(ids=[5], max_new_tokens=1)))
    if fault == "unplug":
        phone.plug()
    with opened(device, artifact) as source:
        assert len(ids_of(source, TokenRequest(ids=[5], max_new_tokens=2))) == 2


def test_a_phone_that_falls_silent_in_an_answer_is_reported(
    device: AdbDevice, phone: FakeAdbd, tiny_onnx: Path
) -> None:
    """The wire does not report it; the deadlines end the wait."""
    timeouts, artifact = Timeouts(end_s=0.5, diagnose_s=0.5), open_artifact(tiny_onnx)
    with contextlib.closing(AdbDriver("phone", device, timeouts)) as driver:
        driver.stage(artifact, lambda what: None)
        source = driver.open(artifact, Loading(threads=2, hold=True, wait_s=8, total_s=8)).source
        stream = source.stream(TokenRequest(ids=[5, 6, 7], max_new_tokens=400))
        phone.frozen = True
        with pytest.raises(
            TransportError, match=r"was stopped after .* of generating without a result.*cannot be reached"
        ):
            list(stream)


def test_two_clients_at_once(device: AdbDevice, tiny_onnx: Path) -> None:
    artifact = open_artifact(tiny_onnx)
    with opened(device, artifact) as first:
        with pytest.raises(DeviceBusyError, match="another agent holds "), opened(device, artifact):
            pass
        stream = first.stream(TokenRequest(ids=[5], max_new_tokens=4))
        next(stream)
        with pytest.raises(RequestError, match="another request is running"):
            list(first.stream(TokenRequest(ids=[6], max_new_tokens=1)))
        assert len(list(stream)) == 4


def test_a_missing_library(device: AdbDevice, tiny_onnx: Path) -> None:
    lacking = dataclasses.replace(device, libraries=device.libraries[:1])
    with (
        pytest.raises(EngineError, match=r"libonnxruntime-genai\.so cannot be loaded"),
        opened(lacking, open_artifact(tiny_onnx)),
    ):
        pass


def test_a_cancel_in_the_middle(device: AdbDevice, tiny_onnx: Path) -> None:
    with opened(device, open_artifact(tiny_onnx)) as source:
        stream = source.stream(TokenRequest(ids=[5, 6, 7], max_new_tokens=400))
        next(stream)
        source.cancel()
        *tokens, done = stream
        assert isinstance(done, TokensDone) and done.finish == "cancelled"
        assert len(tokens) < 300


def test_what_lab_toml_lacks_is_reported(device: AdbDevice, tiny_onnx: Path, tiny_executorch: Path) -> None:
    artifact = open_artifact(tiny_onnx)
    for changed, message in (
        (dataclasses.replace(device, program=None), "lab.toml has no program; build the native agent"),
        (dataclasses.replace(device, program="/nowhere/agent"), "/nowhere/agent is not a file"),
        (dataclasses.replace(device, libraries=()), "lab.toml has no libraries"),
        (dataclasses.replace(device, runner="llama_main"), "its runner llama_main runs the format executorch"),
    ):
        with contextlib.closing(AdbDriver("phone", changed)) as driver, pytest.raises(DeviceError, match=message):
            driver.stage(artifact, lambda what: None)


def test_doctor_looks_at_the_phone(device: AdbDevice, phone: FakeAdbd) -> None:
    with contextlib.closing(AdbDriver("phone", device)) as driver:
        found = {finding.what: finding for finding in driver.examine()}
    assert {name for name, finding in found.items() if finding.state == "wrong"} == set()
    assert found["battery"].seen == "87%, charging"
    assert found["processor"].seen == "arm64-v8a" and "memory" in found
    with contextlib.closing(AdbDriver("phone", dataclasses.replace(device, program=sys.executable))) as driver:
        (program,) = (each for each in driver.examine() if each.what == Path(sys.executable).name)
    assert program.state == "wrong" and "not for arm64-v8a (ELF machine 62)" in program.seen
    phone.unplug()
    gone = dataclasses.replace(device, serial="nobody")
    findings = list(AdbDriver("phone", gone, Timeouts(connect_s=0.5)).examine())
    assert findings[-1].what == "reachable" and "does not see device nobody" in findings[-1].seen
    assert all(finding.fix for finding in findings if finding.state != "ok")


def test_doctor_finds_a_folder_from_which_nothing_runs(device: AdbDevice, phone: FakeAdbd) -> None:
    """As /sdcard, which takes files and leaves them without their executable bit."""
    chmod = phone.phone.folder / "bin" / "chmod"
    chmod.write_text("#!/bin/sh\n")
    chmod.chmod(0o755)
    with contextlib.closing(AdbDriver("phone", device)) as driver:
        (found,) = (finding for finding in driver.examine() if finding.what == "folder")
    assert found.state == "wrong" and found.seen.endswith("is a place where no program runs")
    assert not (Path(device.folder) / ".probe").exists()


def test_conditions_that_a_phone_does_not_tell_are_absent() -> None:
    seen = parse_conditions("\n@phi-edge boot\n\n@phi-edge battery\nCan't find service: battery\n", datetime.now(UTC))
    told = {name for name, value in dataclasses.asdict(seen).items() if value is not None}
    assert told == {"at", "system"}
    full = parse_conditions(f"\n@phi-edge battery\n{BATTERY}\n@phi-edge thermal\n{THERMAL}", datetime.now(UTC))
    assert full.temperature_c is not None and set(full.temperature_c) == {"CPU0", "skin", "battery"}


@pytest.fixture
def runner(phone: FakeAdbd, adb: Client, llama_main: Path) -> AdbDevice:
    return AdbDevice(
        transport="adb",
        serial=f"127.0.0.1:{phone.port}",
        server=adb.server,
        folder=str(phone.phone.folder / "data"),
        runner="llama_main",
        program=str(llama_main),
    )


def test_llama_main_says_what_our_engine_says(runner: AdbDevice, tiny_executorch: Path) -> None:
    artifact = open_artifact(tiny_executorch)
    tokenizer = Tokenizer(artifact.folder)
    here = open_tokens(artifact)
    with opened(runner, artifact) as there:
        for question in questions(50):
            ids = tokenizer.encode_chat([Message("user", question)])
            request = TokenRequest(ids=ids, max_new_tokens=16, stop_ids=artifact.manifest.tokens.stop)
            *tokens, done = there.stream(request)
            assert isinstance(done, TokensDone) and done.error is None
            assert [token.id for token in tokens if isinstance(token, NewToken)] == ids_of(here, request)
            assert {token.at_s for token in tokens if isinstance(token, NewToken)} <= {None}
    here.close()


@pytest.mark.parametrize("warmups", ["0", "1"])
def test_bench_reads_llama_mains_own_figures(
    phone: FakeAdbd, adb: Client, llama_main: Path, tiny_executorch: Path, tmp_path: Path, warmups: str
) -> None:
    lab, out = tmp_path / "lab.toml", tmp_path / "m.json"
    lab.write_text(llama_main_row(llama_main, phone, adb))
    words = ["--device", "phone", "--lab", str(lab), "--reps", "2", "--warmup", warmups]
    words += ["--prompt-tokens", "100", "--generate-tokens", "20", "--out", str(out)]
    done = CliRunner().invoke(main, ["bench", str(tiny_executorch), *words])
    assert done.exit_code == 0, done.output
    measured = read_measurement(out)
    assert not problems(measured)
    for repetition in measured.repetitions:
        run = repetition.run
        assert (run.prompt_tokens, run.completion_tokens, len(run.token_at_s)) == (100, 20, 0)
        assert repetition.open_s is not None and repetition.load_s is None
        assert run.first_token_s is not None and run.last_token_s is not None and run.total_s is not None
        assert 0 < run.first_token_s < run.last_token_s <= run.total_s
    known = {name for name, metric in METRICS.items() if summarize(metric, measured) is not None}
    assert {"ttft_s", "prefill_tokens_per_s", "decode_tokens_per_s", "artifact_bytes"} == known
    shown = CliRunner().invoke(main, ["report", str(out)])
    assert shown.exit_code == 0 and "Time to first token" in shown.stdout
    refused = CliRunner().invoke(main, ["bench", str(tiny_executorch), *words, "--warmup", "2", "--out", str(out)])
    assert refused.exit_code == 2
    assert "the device's runner warms up once at most" in refused.output


def runner_that(device: AdbDevice, folder: Path, does: str) -> AdbDevice:
    """With a shell script in llama_main's place."""
    program = folder / "llama_main"
    program.write_text(f"#!/bin/sh\n{does}\n")
    return dataclasses.replace(device, program=str(program))


@pytest.mark.parametrize("fault", ["unplug", "reboot", "kill", "server"])
def test_faults_in_an_answer_of_llama_main(
    runner: AdbDevice, phone: FakeAdbd, adb: Client, tiny_executorch: Path, tmp_path: Path, fault: str
) -> None:
    acts: dict[str, tuple[Callable[[], object], str]] = {
        "unplug": (phone.unplug, "llama_main was lost: the device cannot be reached any more"),
        "reboot": (phone.reboot, "llama_main was lost: the device was restarted in between"),
        "kill": (phone.phone.kill_all, "llama_main failed on the device, or the connection was cut"),
        "server": (lambda: kill_server(adb), "llama_main failed on the device, or the connection was cut"),
    }
    (act, reason), artifact = acts[fault], open_artifact(tiny_executorch)
    endless = runner_that(runner, tmp_path, f"echo half an answer; : >'{tmp_path}/began'; sleep 100")

    def in_the_answer() -> None:
        while not (tmp_path / "began").exists():
            time.sleep(0.01)
        act()

    with opened(endless, artifact, WAITS.get(fault, DEFAULT_TIMEOUTS)) as source:
        saboteur = threading.Thread(target=in_the_answer)
        saboteur.start()
        with pytest.raises(TransportError, match=reason):
            list(source.stream(TokenRequest(ids=[5, 6, 7], max_new_tokens=500)))
        saboteur.join()
    if fault == "unplug":
        phone.plug()
    with opened(runner, artifact) as source:
        assert len(ids_of(source, TokenRequest(ids=[5], max_new_tokens=2))) == 2


def test_a_llama_main_that_hangs_ends_at_its_deadline(runner: AdbDevice, tiny_executorch: Path, tmp_path: Path) -> None:
    with opened(runner_that(runner, tmp_path, "sleep 900"), open_artifact(tiny_executorch)) as source:
        (done,) = source.stream(TokenRequest(ids=[5], max_new_tokens=2, deadline_s=0.5))
        assert isinstance(done, TokensDone) and done.finish == "deadline"


@pytest.mark.parametrize(
    "said",
    [
        'CANNOT LINK EXECUTABLE: library "libc++_shared.so" not found',
        "E 00:00:00.1 executorch:re2_regex.cpp:26] Failed to compile regex: (?!...), error: invalid perl operator: (?!",
    ],
    ids=["a library", "a regex engine"],
)
def test_what_llama_main_lacks_is_reported(runner: AdbDevice, tiny_executorch: Path, tmp_path: Path, said: str) -> None:
    """Its own line is shown; of a tokenizer with a look-ahead the export says what the runner must be built with."""
    with (
        opened(runner_that(runner, tmp_path, f"echo '{said}' >&2; exit 1"), open_artifact(tiny_executorch)) as source,
        pytest.raises(TransportError, match=rf"(?s)llama_main failed .*{re.escape(said)}"),
    ):
        list(source.stream(TokenRequest(ids=[5], max_new_tokens=2)))


def test_prompts_that_a_shell_would_mangle_reach_llama_main(runner: AdbDevice, tiny_executorch: Path) -> None:
    """Or are refused, where their text does not read back as their ids; a NUL among them."""
    artifact = open_artifact(tiny_executorch)
    tokenizer, here, answered = Tokenizer(artifact.folder), open_tokens(artifact), 0
    with opened(runner, artifact) as there:
        for text in ["a\0b", *odd_texts(11, seed=6, nul=True)]:
            request = TokenRequest(ids=tokenizer.encode_prompt(f"the light {text}"), max_new_tokens=2)
            try:
                *tokens, done = there.stream(request)
            except UnsupportedError as refusal:
                assert "takes text" in str(refusal)
                continue
            assert isinstance(done, TokensDone)
            if done.error is None:
                assert [each.id for each in tokens if isinstance(each, NewToken)] == ids_of(here, request), text
                answered += 1
            else:
                assert "its ids cannot be recovered from its text" in done.error
    here.close()
    assert answered >= 6


def test_llama_main_refuses_what_it_cannot(runner: AdbDevice, tiny_executorch: Path) -> None:
    artifact = open_artifact(tiny_executorch)
    with opened(runner, artifact) as source:
        for request, message in (
            (TokenRequest(ids=[5], max_new_tokens=1, session="a"), "leave session out"),
            (TokenRequest(ids=[5], max_new_tokens=1, stop_ids=[7]), "leave stop_ids out"),
        ):
            with pytest.raises(UnsupportedError, match=message):
                source.stream(request)


def test_the_fake_phone_keeps_to_its_folder(tmp_path: Path) -> None:
    phone = FakePhone(tmp_path / "phone")
    assert phone.service(b"localabstract:other") is None
