"""The table of transports: every row opens, and another one needs a host, a driver with its row, and a line there."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from click.testing import CliRunner

from devices.checks.board import examine_board
from devices.drivers.board import Board, PythonBoardDriver
from devices.drivers.driver import Transport
from devices.drivers.provision import POSIX
from devices.drivers.table import TRANSPORTS, find_device, open_driver
from devices.lab import Device
from devices.measure.measurement import read_measurement
from devices.transports.host import Finished, LineProcess
from devices.transports.local import LocalHost
from export.artifact import open_artifact
from fakes.lab_file import lab_file
from phi_edge.main import main

ROWS: dict[str, dict[str, object]] = {
    "local": {},
    "ssh": {"host": "nobody.invalid"},
    "windows": {"host": "nobody.invalid"},
    "adb": {"serial": "nobody"},
    "browser": {"program": "nobody", "software": True},
    "anthropic": {"model": "nobody", "base_url": "http://nobody.invalid"},
    "openai": {"model": "nobody", "base_url": "http://nobody.invalid"},
}


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_every_row_has_a_driver_that_connects_only_when_asked(transport: str, tmp_path: Path) -> None:
    lab = tmp_path / "lab.toml"
    lab.write_text(lab_file("it", {"transport": transport, "description": "one", "threads": 2, **ROWS[transport]}))
    device = find_device("it", lab)
    assert (device.transport, device.description, device.threads) == (transport, "one", 2)
    open_driver("it", device).close()


# First file: how to reach such a device. This one is a folder of this machine that is its home.


class FolderHost(LocalHost):
    def __init__(self, folder: str) -> None:
        super().__init__()
        self._inside = ["env", "-C", folder, f"HOME={folder}"]

    def run(self, command: Sequence[str], *, deadline_s: float, stdin: bytes = b"") -> Finished:
        return super().run([*self._inside, *command], deadline_s=deadline_s, stdin=stdin)

    def start(self, command: Sequence[str]) -> LineProcess:
        return super().start([*self._inside, *command])


# Second file: what its row in lab.toml may say, and its driver.


@dataclass(frozen=True, kw_only=True)
class FolderDevice(Device):
    transport: Literal["folder"]
    folder: str


def folder_driver(name: str, device: FolderDevice) -> PythonBoardDriver:
    board = Board(
        name=name,
        address=device.folder,
        host=FolderHost(device.folder),
        system=POSIX,
        cache="cache",
        launcher=sys.executable,
        python=sys.executable,
        packages={"onnx": "onnx"},
        memory_hint="`dmesg` shows it",
    )
    return PythonBoardDriver(board, examine_board)


# Third file: the table.


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The options that name a device behind the new transport."""
    monkeypatch.setitem(TRANSPORTS, "folder", Transport(row=FolderDevice, driver=folder_driver))
    lab, home = tmp_path / "lab.toml", tmp_path / "home"
    home.mkdir()
    lab.write_text(lab_file("box", {"transport": "folder", "folder": str(home)}))
    yield ["--lab", str(lab)]


def test_a_new_transport_runs_benches_and_is_examined(device: list[str], tiny_onnx: Path, tmp_path: Path) -> None:
    invoke, lab = CliRunner().invoke, device
    examined = invoke(main, ["doctor", "box", *lab])
    assert "ok       reachable" in examined.output and "ok       onnxruntime" in examined.output, examined.output
    ran = invoke(main, ["run", str(tiny_onnx), "Turn on the", "--max-new-tokens", "2", "--device", "box", *lab])
    assert ran.exit_code == 0, ran.output
    words = ["--reps", "1", "--prompt-tokens", "4", "--generate-tokens", "2", "--out", str(tmp_path / "m.json")]
    benched = invoke(main, ["bench", str(tiny_onnx), "--device", "box", *lab, *words])
    assert benched.exit_code == 0, benched.output
    assert read_measurement(tmp_path / "m.json").device.transport == "folder"
    refused = invoke(main, ["doctor", "box", "--lab", str(misspelt(tmp_path))])
    assert refused.exit_code == 2 and "unknown key 'foldr' (did you mean 'folder'?)" in refused.stderr


def misspelt(folder: Path) -> Path:
    lab = folder / "misspelt.toml"
    lab.write_text(lab_file("box", {"transport": "folder", "foldr": "x"}))
    return lab


def test_the_new_transport_leaves_its_files_in_its_own_home(device: list[str], tiny_onnx: Path, tmp_path: Path) -> None:
    lab = Path(device[1])
    with contextlib.closing(open_driver("box", find_device("box", lab))) as driver:
        driver.stage(open_artifact(tiny_onnx), lambda what: None)
    assert {path.name for path in (tmp_path / "home" / "cache").iterdir()} == {"artifacts", "code"}
