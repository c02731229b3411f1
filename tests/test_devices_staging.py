"""Bringing things to a device, this machine in its place; the memory plan; the firmware's bits; doctor."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import random
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner
from packaging.requirements import Requirement

from devices.checks.board import judge_conditions
from devices.drivers import memory_plan
from devices.drivers.driver import Finding, worst
from devices.drivers.provision import POSIX, bring_code, bring_venv, look_at_python, requirements
from devices.drivers.staging import describe, push_file, stage_artifact
from devices.errors import DeviceError
from devices.measure import throttling
from devices.transports.host import WRITE_BLOCK_BYTES, Finished, write_from
from devices.transports.local import LocalHost
from export import artifact as artifacts
from export.artifact import Artifact, open_artifact, verify
from export.plan import verdict
from export.target import TARGETS
from fakes.measurement import fake_conditions
from phi_edge.main import main
from runtimes.engines.fake import fake_artifact
from runtimes.errors import ConnectionLostError, TransportError
from runtimes.system.size import PHONE_SYSTEM_BYTES, size_text

GB = 1_000_000_000


class Flaky(LocalHost):
    """A wire that is cut at the given pushes, after some bytes."""

    def __init__(self, *cut: int) -> None:
        super().__init__()
        self.cut = set(cut)
        self.pushes = 0

    def push(self, local: Path, remote: str, *, deadline_s: float) -> None:
        self.pushes += 1
        if self.pushes not in self.cut:
            return super().push(local, remote, deadline_s=deadline_s)
        with Path(remote).open("ab") as out:
            out.write(local.read_bytes()[out.tell() :][:10])
        raise ConnectionLostError("the wire was cut")


class Garbling(LocalHost):
    """A disk that changes what is written to it."""

    def push(self, local: Path, remote: str, *, deadline_s: float) -> None:
        Path(remote).write_bytes(b"\0" + local.read_bytes()[1:])


def test_an_artifact_is_staged_once(tmp_path: Path) -> None:
    artifact, host, said = fake_artifact(tmp_path / "a"), Flaky(), list[str]()
    folder = stage_artifact(host, artifact, str(tmp_path / "cache"), said.append)
    assert folder == f"{tmp_path}/cache/{artifact.manifest.digest()}"
    assert open_artifact(Path(folder)).manifest == open_artifact(artifact.folder).manifest
    assert host.pushes == len(said) == len(artifact.manifest.files) + 1
    assert "manifest.json" in said[-1]
    stage_artifact(host, artifact, str(tmp_path / "cache"), said.append)
    assert host.pushes == len(said)


def test_a_cut_push_goes_on(tmp_path: Path) -> None:
    artifact, host, said = fake_artifact(tmp_path / "a"), Flaky(1, 2), list[str]()
    folder = stage_artifact(host, artifact, str(tmp_path / "cache"), said.append)
    assert sum(line.endswith("continuing") for line in said) == 2
    for name in artifact.manifest.files:
        assert (Path(folder) / name).read_bytes() == (artifact.folder / name).read_bytes()


def test_a_wire_that_stays_cut_is_reported_and_the_next_staging_goes_on(tmp_path: Path) -> None:
    artifact, cache = fake_artifact(tmp_path / "a"), tmp_path / "cache"
    with pytest.raises(ConnectionLostError):
        stage_artifact(Flaky(1, 2, 3), artifact, str(cache), print)
    (part,) = cache.rglob("*.part")
    assert part.stat().st_size == 30 and not list(cache.rglob("manifest.json"))
    open_artifact(Path(stage_artifact(LocalHost(), artifact, str(cache), print)))


def test_what_arrives_damaged_never_gets_its_name(tmp_path: Path) -> None:
    artifact, cache = fake_artifact(tmp_path / "a"), tmp_path / "cache"
    with pytest.raises(TransportError, match="arrives damaged: its sha256 on the device was wrong 2 times"):
        stage_artifact(Garbling(), artifact, str(cache), print)
    assert [path for path in cache.rglob("*") if path.is_file()] == []


def test_a_longer_part_is_thrown_away(tmp_path: Path) -> None:
    local, remote = tmp_path / "in", tmp_path / "out"
    local.write_bytes(b"right")
    remote.with_name("out.part").write_bytes(b"something longer")
    push_file(LocalHost(), local, str(remote), describe(local), print)
    assert remote.read_bytes() == b"right"


class Delayed(LocalHost):
    """A client that waits at every step."""

    def __init__(self, step_s: float) -> None:
        super().__init__()
        self.step_s = step_s

    def run(self, command: Sequence[str], *, deadline_s: float, stdin: bytes = b"") -> Finished:
        time.sleep(self.step_s)
        return super().run(command, deadline_s=deadline_s, stdin=stdin)

    def push(self, local: Path, remote: str, *, deadline_s: float) -> None:
        """Block by block, at places, as the wires do."""
        blocks = Path(remote).stat().st_size // WRITE_BLOCK_BYTES if Path(remote).exists() else 0
        content = local.read_bytes()
        for place in range(blocks * WRITE_BLOCK_BYTES, len(content), WRITE_BLOCK_BYTES):
            piece = content[place : place + WRITE_BLOCK_BYTES]
            super().run(write_from(remote, place // WRITE_BLOCK_BYTES), deadline_s=deadline_s, stdin=piece)
            time.sleep(self.step_s)


def test_a_large_file_says_how_much_of_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The watcher looks at the part while it grows; a small file is not watched."""
    monkeypatch.setattr("devices.drivers.staging.WATCH_S", 0.001)
    monkeypatch.setattr("devices.drivers.staging.WATCHED_BYTES", WRITE_BLOCK_BYTES)
    folder = fake_artifact(tmp_path / "a").folder
    (folder / "weights.bin").write_bytes(random.Random(0).randbytes(20 * WRITE_BLOCK_BYTES))
    said: list[str] = []
    stage_artifact(Delayed(0.01), reseal(folder), str(tmp_path / "cache"), said.append)
    looks = [what for what in said if what.startswith("pushing weights.bin (")]
    assert len(looks) > 2 and all(what.endswith("of 1.3 MB)") for what in looks)
    assert len(set(looks)) > 2 and len([what for what in said if "tokenizer.json" in what]) == 1


@pytest.mark.parametrize("second_s", [0.0, 0.003])
def test_two_clients_that_push_at_once_leave_a_whole_artifact(tmp_path: Path, second_s: float) -> None:
    folder = fake_artifact(tmp_path / "a").folder
    (folder / "weights.bin").write_bytes(random.Random(0).randbytes(20 * WRITE_BLOCK_BYTES + 77))
    artifact, cache = reseal(folder), str(tmp_path / "cache")
    failed: list[str] = []

    def push(step_s: float) -> None:
        try:
            stage_artifact(Delayed(step_s), artifact, cache, lambda what: None)
        except TransportError as error:
            failed.append(str(error))

    clients = [threading.Thread(target=push, args=(step_s,)) for step_s in (0.002, second_s)]
    for client in clients:
        client.start()
    for client in clients:
        client.join(60)
    # Each finishes or gets an error; a file that has its final name is complete either way.
    staged = Path(cache) / artifact.manifest.digest()
    assert all("arrives damaged" in message for message in failed) and len(failed) < 2, failed
    verify(open_artifact(staged))
    assert not list(staged.glob("*.part*"))


def reseal(folder: Path) -> Artifact:
    """Take all files of the folder into its manifest."""
    manifest = open_artifact(folder).manifest
    names = sorted(path.name for path in folder.iterdir() if path.name != artifacts.MANIFEST)
    return artifacts.seal(folder, dataclasses.replace(manifest, files=artifacts.describe_files(folder, names)))


def test_the_free_space_is_a_users(tmp_path: Path) -> None:
    free = LocalHost().files.free_bytes(str(tmp_path))
    assert free is not None and free > 0


def test_our_code_is_brought_once_and_runs(tmp_path: Path) -> None:
    said: list[str] = []
    code = bring_code(LocalHost(), str(tmp_path), sys.executable, said.append)
    assert bring_code(LocalHost(), str(tmp_path), sys.executable, said.append) == code and len(said) == 1
    assert not (Path(code) / "devices").exists() and not (Path(code) / "runtimes" / "bundle").exists()
    assert {path.name for path in (Path(code) / "export").iterdir()} == {
        "__init__.py", "artifact.py", "errors.py", "stranger.py", "strict.py", "template", "tokenizer",
    }  # fmt: skip
    home = tmp_path / "home"  # with the user's own files of our packages' names, as the current folder
    (home / "runtimes").mkdir(parents=True)
    for name in ("export.py", "devices.py", "runtimes/__init__.py"):
        (home / name).write_text("raise SystemExit('their own file was imported')\n")
    isolated = ["-P", "-S", "-m"]  # without site-packages only our code is found
    command = ["env", f"PYTHONPATH={code}", f"HOME={home}", sys.executable, *isolated, "runtimes.agent", "--sample"]
    done = subprocess.run(command, cwd=home, capture_output=True, timeout=60, check=True, stdin=subprocess.DEVNULL)
    assert done.stdout.startswith(b'{"event": "sample"')


PI = {"sys_platform": "linux", "platform_machine": "aarch64", "python_version": "3.11"}
LAPTOP = {"sys_platform": "win32", "platform_machine": "AMD64", "python_version": "3.11"}
WINDOWS_ON_ARM = LAPTOP | {"platform_machine": "ARM64"}


@pytest.mark.parametrize(
    ("extra", "device", "names"),
    [
        ("onnx", PI, {"numpy", "llguidance", "onnxruntime"}),
        ("executorch", PI, {"numpy", "llguidance", "executorch", "torch"}),
        ("directml", LAPTOP, {"numpy", "psutil", "llguidance", "onnxruntime-directml", "onnxruntime-genai-directml"}),
        ("directml", WINDOWS_ON_ARM, {"numpy", "psutil", "llguidance"}),  # its engine's wheels are for AMD64
    ],
)
@pytest.mark.parametrize("installed", [False, True])
def test_a_device_gets_what_its_agent_needs_and_its_markers_allow(
    extra: str, device: dict[str, str], names: set[str], installed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if installed:  # as from a wheel, whose METADATA is read instead of pyproject.toml
        monkeypatch.setattr("devices.drivers.provision.SOURCE", Path("/nowhere"))
        monkeypatch.setattr(importlib.metadata, "requires", lambda name: METADATA)
    assert {Requirement(line).name for line in requirements(extra, device)} == names
    assert all(Requirement(line).marker is None for line in requirements(extra, device))


METADATA = [
    "click>=8.1", "numpy>=1.26", "psutil<8,>=6; sys_platform == 'win32'", "onnxruntime>=1.31; extra == 'onnx'",
    "torch>=2.13; extra == 'executorch'", "executorch<1.5,>=1.4.1; extra == 'executorch'",
    "llguidance>=1.7; extra == 'grammar'",
    "onnxruntime-directml==1.24.4; (sys_platform == 'win32' and platform_machine == 'AMD64') and extra == 'directml'",
    "onnxruntime-genai-directml==0.13.1; (sys_platform == 'win32' and platform_machine == 'AMD64') and "
    "extra == 'directml'",
]  # fmt: skip


def write_wheel(folder: Path, name: str, *, requires: str = "") -> None:
    """A wheel that pip takes for the library, with nothing in it but its name."""
    version = "1.4.9" if name == "executorch" else "999.0"
    module, info = name.replace("-", "_"), f"{name.replace('-', '_')}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{module}-{version}-py3-none-any.whl", "w") as out:
        out.writestr(f"{module}.py", "")
        out.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{requires}")
        out.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        out.writestr(f"{info}/RECORD", "")


def test_an_environment_is_made_from_a_wheelhouse_without_a_network(tmp_path: Path) -> None:
    """ExecuTorch's wheel requires coremltools, which has no wheel for ARM Linux: it is installed without what it asks
    for. That of ONNX Runtime is made on the emulated Pi (test_devices_ssh)."""
    house, said = tmp_path / "wheels", list[str]()
    house.mkdir()
    host = LocalHost()
    there = look_at_python(host, sys.executable)
    for name in ("numpy", "torch"):
        write_wheel(house, name)
    make: Callable[[], str] = lambda: bring_venv(  # noqa: E731
        host, str(tmp_path / "cache"), "executorch", house, said.append, system=POSIX, python=there
    )
    with pytest.raises(TransportError, match=r"(?s)pip install failed on the device .*executorch"):
        make()
    write_wheel(house, "executorch", requires="Requires-Dist: coremltools==9.0\n")
    python = make()
    assert not imports(python, "llguidance") and imports(python, "torch, executorch")
    assert [line for line in said if "llguidance" in line][-1].endswith(
        "wheels has no wheel of llguidance: the device does without json_schema, regex and lark"
    )
    write_wheel(house, "llguidance")
    assert imports(make(), "llguidance, torch, executorch")  # the wheelhouse has it now
    before = len(said)
    make()
    assert len(said) == before


def imports(python: str, modules: str) -> bool:
    done = subprocess.run([python, "-c", f"import {modules}"], timeout=60, check=False, capture_output=True)
    return done.returncode == 0


def test_a_missing_or_old_python_is_reported(tmp_path: Path) -> None:
    with pytest.raises(TransportError, match="no-such-python cannot be started"):
        look_at_python(LocalHost(), "no-such-python")
    old = tmp_path / "old"
    old.write_text("#!/bin/sh\necho '[[3, 9, 2], {}]'\n")
    old.chmod(0o755)
    with pytest.raises(DeviceError, match=r"is 3\.9\.2; needed is 3\.11 or newer"):
        look_at_python(LocalHost(), str(old))
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho no such library >&2\nexit 127\n")
    broken.chmod(0o755)
    with pytest.raises(DeviceError, match=r"no working .*broken \(no such library\)"):
        look_at_python(LocalHost(), str(broken))


@pytest.mark.parametrize(("total", "refused"), [(4 * GB, True), (8 * GB, False), (None, False)])
def test_a_4_gb_and_an_8_gb_board(tmp_path: Path, total: int | None, refused: bool) -> None:
    manifest = fake_artifact(tmp_path / "a").manifest
    memory = dataclasses.replace(manifest.memory, resident_weights_bytes=2_150_000_000, kv_bytes_per_token=786_432)
    manifest = dataclasses.replace(manifest, memory=memory, context_tokens=4096)  # Phi-3-mini-4k, fp32 cache: 5.4 GB
    seen = dataclasses.replace(fake_conditions(), memory_total_bytes=total, memory_available_bytes=total)
    said = memory_plan.refusal(manifest, seen)
    assert (said is not None) == refused
    if said is not None:
        assert "export it with --context 1792 or less" in said
        fitting = dataclasses.replace(manifest, context_tokens=1792)
        assert memory_plan.refusal(fitting, seen) is None and memory_plan.warning(fitting, seen) is None


@pytest.mark.parametrize(("total", "refused"), [(3.6, True), (5.6, False)])
def test_a_phone_keeps_more_for_itself(tmp_path: Path, total: float, refused: bool) -> None:
    """Phones of 4 and 6 GB: --dry-run's verdict, staging's refusal and the app's README agree."""
    manifest = fake_artifact(tmp_path / "a").manifest
    memory = dataclasses.replace(manifest.memory, resident_weights_bytes=2_150_000_000, kv_bytes_per_token=786_432)
    manifest = dataclasses.replace(manifest, memory=memory, context_tokens=1024)
    seen = dataclasses.replace(fake_conditions(), memory_total_bytes=int(total * GB), memory_available_bytes=GB)
    said = memory_plan.refusal(manifest, seen, PHONE_SYSTEM_BYTES)
    assert (said is not None) == refused and memory_plan.refusal(manifest, seen) is None
    assert said is None or "of which the system takes 2.0 GB" in said
    system_bytes = TARGETS["android"].system_bytes
    assert system_bytes == PHONE_SYSTEM_BYTES and TARGETS["raspberry-pi"].system_bytes == memory_plan.SYSTEM_BYTES
    assert (verdict(memory_plan.needed_bytes(manifest), total * GB, system_bytes) == "no") == refused


def test_the_need_for_memory_is_one_figure(tiny_onnx: Path, tmp_path: Path) -> None:
    """--dry-run, the manifest, staging and the bundles' limit: none of them computes it again."""
    manifest = open_artifact(tiny_onnx).manifest
    needed = manifest.memory.needed_bytes(manifest.context_tokens)
    assert manifest.memory.total_bytes_per_context[str(manifest.context_tokens)] == needed
    assert memory_plan.needed_bytes(manifest) == needed
    planned = CliRunner().invoke(main, ["export", "tiny", str(tmp_path / "out"), "--dry-run"])
    (chosen,) = (line for line in planned.output.splitlines() if f"{manifest.context_tokens}*" in line)
    assert size_text(needed) in chosen
    assert (
        CliRunner().invoke(main, ["bundle", str(tiny_onnx), str(tmp_path / "app"), "--for", "raspberry-pi"]).exit_code
        == 0
    )
    service = (tmp_path / "app" / "phi-edge@.service").read_text()
    assert f"It needs {size_text(needed)} with a full context" in service


def test_a_full_memory_is_a_warning(tmp_path: Path) -> None:
    manifest = fake_artifact(tmp_path / "a").manifest
    memory = dataclasses.replace(manifest.memory, resident_weights_bytes=2 * GB)
    seen = dataclasses.replace(fake_conditions(), memory_total_bytes=8 * GB, memory_available_bytes=GB)
    said = memory_plan.warning(dataclasses.replace(manifest, memory=memory), seen)
    assert said is not None and "only 1.0 GB of the device's memory are available" in said


def test_the_firmwares_bits() -> None:
    assert throttling.now(0) == throttling.since_boot(0) == []
    assert [word.split()[0] for word in throttling.now(0x5)] == ["under-voltage", "throttled"]
    assert [word.split()[0] for word in throttling.since_boot(0x50000)] == ["under-voltage", "throttled"]
    assert throttling.during(0x50000, 0x50000) == []  # long ago
    assert [word.split()[0] for word in throttling.during(0, 0x40000)] == ["throttled"]  # came and went


def test_conditions_that_hurt_are_found() -> None:
    hot = dataclasses.replace(
        fake_conditions(), throttled=0x10001, governor="powersave", temperature_c={"cpu": 81.0},
        memory_total_bytes=8 * GB, memory_available_bytes=GB, swap_devices={"/dev/zram0": GB}, swap_total_bytes=GB,
    )  # fmt: skip
    found = {finding.what: finding for finding in judge_conditions(hot)}
    assert {what: finding.state for what, finding in found.items()} == {
        "memory": "warning", "swap": "ok", "throttling": "wrong", "temperature": "warning", "governor": "warning",
    }  # fmt: skip
    assert all(finding.fix for finding in found.values() if finding.state != "ok")
    assert worst(list(found.values())) == "wrong"
    silent = dataclasses.replace(fake_conditions(), cpu_model="Raspberry Pi 5 Model B Rev 1.0", throttled=None)
    (unknown,) = (finding for finding in judge_conditions(silent) if finding.what == "throttling")
    assert unknown.state == "warning" and unknown.fix is not None and "usermod -aG video" in unknown.fix
    assert worst([Finding(what="a", state="ok", seen="")]) == worst([]) == "ok"


def test_doctor_looks_at_this_machine() -> None:
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 0, result.output
    assert result.output.startswith("this machine:") and "onnxruntime" in result.output


def test_doctor_finds_a_missing_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lab = tmp_path / "lab.toml"
    lab.write_text('[device.pi]\ntransport = "ssh"\nhost = "pi.invalid"\n')
    monkeypatch.setenv("PATH", str(tmp_path))
    result = CliRunner().invoke(main, ["doctor", "pi", "--lab", str(lab)])
    assert result.exit_code == 1
    assert "WRONG    ssh: missing; needed for devices behind ssh" in result.output
    assert "-> sudo apt-get install openssh-client" in result.output
