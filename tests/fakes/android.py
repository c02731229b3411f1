"""An emulated phone's software for tests: the native agent, the arm64 libraries, and a row of lab.toml for them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from devices.transports.adb.devices import Client
from fakes.adbd import FakeAdbd
from fakes.lab_file import lab_file

SCRIPT = Path(__file__).parent / "emulate_android.sh"
PROGRAMS = ("adb", "cmake", "aarch64-linux-gnu-gcc", "qemu-aarch64-static")
BUILD_S = 400.0


@dataclass(frozen=True)
class AndroidSoftware:
    """What tests/fakes/emulate_android.sh made."""

    folder: Path

    @property
    def prefix(self) -> list[str]:
        """Before an arm64 program, on this machine."""
        return ["qemu-aarch64-static", "-cpu", "cortex-a76", "-L", str(self.folder / "root")]

    @property
    def libraries(self) -> list[str]:
        """For arm64."""
        return [str(self.folder / "libraries" / f"lib{name}.so") for name in ("onnxruntime", "onnxruntime-genai")]

    def row(self, phone: FakeAdbd, adb: Client) -> str:
        """lab.toml with one device, `phone`, whose runner is the native agent."""
        software = {"program": f"{self.folder}/agent-arm64", "libraries": self.libraries, "prefix": self.prefix}
        return lab_file("phone", connection(phone, adb) | software)


def missing() -> str | None:
    """Why it cannot be built here."""
    for program in PROGRAMS:
        if shutil.which(program) is None:
            return f"needs {program}: run ci/install_system.sh"
    return None


def build_android() -> AndroidSoftware:
    """Built once, and kept in PHI_EDGE_CACHE (~/.cache/phi-edge)."""
    cache = Path(os.environ.get("PHI_EDGE_CACHE") or Path.home() / ".cache" / "phi-edge") / "android"
    environment = os.environ | {"PYTHON": sys.executable}
    subprocess.run([str(SCRIPT), str(cache)], check=True, env=environment, stdout=subprocess.DEVNULL, timeout=BUILD_S)
    return AndroidSoftware(cache)


def llama_main_row(program: Path, phone: FakeAdbd, adb: Client) -> str:
    """lab.toml with one device, `phone`, whose runner is llama_main."""
    return lab_file("phone", connection(phone, adb) | {"runner": "llama_main", "program": str(program)})


def connection(phone: FakeAdbd, adb: Client) -> dict[str, object]:
    """How a row of lab.toml names the phone."""
    return {
        "transport": "adb",
        "serial": f"127.0.0.1:{phone.port}",
        "server": adb.server,
        "folder": f"{phone.phone.folder}/data",
    }
