"""Android devices end to end: the real adb client, a fake adbd, and arm64 programs under qemu behind its shell."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ci.emulated_android import AndroidSoftware
from devices.adb_conditions import parse_conditions
from devices.adb_driver import AdbDriver
from devices.bench import Plan, measure
from devices.errors import DeviceError
from devices.fake_adbd import FakeAdbd
from devices.fake_phone import BATTERY, THERMAL, FakePhone
from devices.lab import AdbDevice
from devices.measurement import DeviceFacts
from devices.validity import problems
from export.artifact import Artifact, open_artifact
from runtimes.adb_devices import Client
from runtimes.api import Message
from runtimes.errors import DeviceBusyError, EngineError, RequestError, TransportError, UnsupportedError
from runtimes.registry import open_tokens
from runtimes.tokenizer import Tokenizer
from runtimes.tokens import NewToken, TokenRequest, TokensDone, TokenSource

TINY = Path(__file__).parent.parent / "export" / "tiny"
pytestmark = pytest.mark.emulated


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
def opened(device: AdbDevice, artifact: Artifact, *, hold: bool = False) -> Iterator[TokenSource]:
    """Staged and loaded; closed afterwards."""
    with contextlib.closing(AdbDriver("phone", device)) as driver:
        driver.stage(artifact, lambda what: None)
        source = driver.open(artifact, threads=2, hold=hold, cold=False, deadline_s=100).source
        with contextlib.closing(source):
            yield source


def ids_of(source: TokenSource, request: TokenRequest) -> list[int]:
    return [record.id for record in source.stream(request) if isinstance(record, NewToken)]


def test_greedy_tokens_are_those_of_this_machine(device: AdbDevice, tiny_onnx: Path) -> None:
    """50 held-out prompts. Where they part, the two best logits must be closer than the kernels' rounding."""
    artifact = open_artifact(tiny_onnx)
    tokenizer = Tokenizer(artifact.folder)
    prompts = [json.loads(line)["question"] for line in (TINY / "held_out.jsonl").read_text().splitlines()[:50]]
    here = open_tokens(artifact)
    parted = []
    with opened(device, artifact) as there:
        for prompt in prompts:
            ids = tokenizer.encode_chat([Message("user", prompt)])
            request = TokenRequest(ids=ids, max_new_tokens=16, stop_ids=artifact.manifest.tokens.stop)
            ours, theirs = ids_of(here, request), ids_of(there, request)
            if ours != theirs:
                same = next(
                    n for n, pair in enumerate(zip([*ours, -1], [*theirs, -1], strict=False)) if pair[0] != pair[1]
                )
                logits = here._engine.forward([*ids, *ours[:same]], 0)
                best = sorted(logits)[-2:]
                parted.append(float(best[1] - best[0]))
                here.forget()
    here.close()
    assert all(gap < 0.1 for gap in parted), parted
    assert len(parted) <= 2, parted


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
    assert before.governor is None and before.frequency_hz is None  # this phone does not tell


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
            file.truncate(10_000)
        driver.stage(artifact, said.append)
    assert [what.split(" (")[0] for what in said] == ["pushing model.onnx.data", "pushing manifest.json"]
    for name in artifact.manifest.files:
        assert (staged / name).read_bytes() == (artifact.folder / name).read_bytes()


def test_a_cable_pulled_in_staging(device: AdbDevice, phone: FakeAdbd, tiny_onnx: Path) -> None:
    artifact = open_artifact(tiny_onnx)
    phone.unplug_after_bytes(3_000_000)
    threading.Timer(3.0, phone.plug).start()
    with opened(device, artifact) as source:  # pushed on once the cable was back
        assert len(ids_of(source, TokenRequest(ids=[5], max_new_tokens=2))) == 2


def test_a_full_disk(device: AdbDevice, phone: FakeAdbd, tiny_onnx: Path) -> None:
    phone.phone.free_bytes = 2_000_000
    with contextlib.closing(AdbDriver("phone", device)) as driver, pytest.raises(TransportError, match="No space left"):
        driver.stage(open_artifact(tiny_onnx), lambda what: None)
    assert not list(Path(device.folder).rglob("manifest.json"))


@pytest.mark.parametrize("fault", ["unplug", "reboot", "kill", "server"])
def test_faults_in_the_middle_of_an_answer(
    device: AdbDevice, phone: FakeAdbd, adb: Client, tiny_onnx: Path, fault: str
) -> None:
    import subprocess

    artifact = open_artifact(tiny_onnx)
    server = ["adb", "-P", (adb.server or "").rpartition(":")[2], "kill-server"]
    acts: dict[str, tuple[Callable[[], object], str]] = {
        "unplug": (phone.unplug, "cannot be reached any more"),
        "reboot": (phone.reboot, "restarted in between"),
        "kill": (phone.phone.kill_all, "the agent was ended there"),
        "server": (lambda: subprocess.run(server, check=True, capture_output=True), "the connection was cut"),
    }
    act, reason = acts[fault]
    with opened(device, artifact) as source:
        stream = source.stream(TokenRequest(ids=[5, 6, 7], max_new_tokens=400))
        next(stream)
        began_s = time.monotonic()
        act()
        with pytest.raises(TransportError, match=reason):
            list(stream)
        assert time.monotonic() - began_s < 60
        with pytest.raises(TransportError):
            list(source.stream(TokenRequest(ids=[5], max_new_tokens=1)))
    if fault == "unplug":
        phone.plug()
    with opened(device, artifact) as source:
        assert len(ids_of(source, TokenRequest(ids=[5], max_new_tokens=2))) == 2


def test_two_clients_at_once(device: AdbDevice, tiny_onnx: Path) -> None:
    artifact = open_artifact(tiny_onnx)
    with opened(device, artifact) as first:
        with pytest.raises(DeviceBusyError, match="another process holds this device"), opened(device, artifact):
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


def test_what_lab_toml_lacks_is_told(device: AdbDevice, tiny_onnx: Path, tiny_executorch: Path) -> None:
    artifact = open_artifact(tiny_onnx)
    for changed, message in (
        (dataclasses.replace(device, program=None), "lab.toml has no program; build the native agent"),
        (dataclasses.replace(device, program="/nowhere/agent"), "/nowhere/agent is no file"),
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
    assert found["processor"].seen == "arm64-v8a"
    phone.unplug()
    gone = dataclasses.replace(device, serial="nobody")
    findings = list(AdbDriver("phone", gone).examine())
    assert findings[-1].what == "reachable" and "does not see device nobody" in findings[-1].seen
    assert all(finding.mend for finding in findings if finding.state != "ok")


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
        for line in (TINY / "held_out.jsonl").read_text().splitlines()[:10]:
            ids = tokenizer.encode_chat([Message("user", json.loads(line)["question"])])
            request = TokenRequest(ids=ids, max_new_tokens=24, stop_ids=artifact.manifest.tokens.stop)
            *tokens, done = there.stream(request)
            assert isinstance(done, TokensDone) and done.error is None
            assert [token.id for token in tokens if isinstance(token, NewToken)] == ids_of(here, request)
            assert {token.at_s for token in tokens if isinstance(token, NewToken)} <= {None}
    here.close()


def test_llama_main_refuses_what_it_cannot(runner: AdbDevice, tiny_executorch: Path) -> None:
    artifact = open_artifact(tiny_executorch)
    with opened(runner, artifact) as source:
        for request, message in (
            (TokenRequest(ids=[5], max_new_tokens=1, session="a"), "leave session out"),
            (TokenRequest(ids=[5], max_new_tokens=1, stop_ids=[7]), "leave stop_ids out"),
        ):
            with pytest.raises(UnsupportedError, match=message):
                source.stream(request)


def test_bench_needs_the_agent(runner: AdbDevice, tiny_executorch: Path) -> None:
    with (
        contextlib.closing(AdbDriver("phone", runner)) as driver,
        pytest.raises((UnsupportedError, DeviceError), match=r"use the agent|measure with the agent"),
    ):
        plan = Plan(prompt_tokens=4, generate_tokens=4, repetitions=1)
        facts = DeviceFacts(name="phone", transport="adb")
        measure(open_artifact(tiny_executorch), facts, driver, plan, lambda done, what: None)


def test_the_fake_phone_keeps_to_its_folder(tmp_path: Path) -> None:
    phone = FakePhone(tmp_path / "phone")
    assert phone.service(b"reverse:forward") is None
