"""An emulated phone's software for tests: the native agent, the arm64 libraries, and a row of lab.toml for them."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from devices.transports.adb.devices import Client
from fakes.adbd import FakeAdbd
from fakes.lab_file import lab_file
from runtimes.system.cache_folder import cache_folder

SOURCES = Path(__file__).parents[2] / "runtimes" / "native"
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


@dataclass(frozen=True)
class ExecutorchAgent:
    """The native agent over the runtime of the installed `executorch`, for this machine."""

    program: Path
    package: Path

    @property
    def prefix(self) -> list[str]:
        """Before the program: the bindings are searched in the package, and OpenMP has one thread, as in our engine."""
        return ["env", f"LD_LIBRARY_PATH={self.package / 'extension/pybindings'}", "OMP_NUM_THREADS=1"]

    @property
    def kernels(self) -> list[str]:
        """What the program loads; on a phone these are linked into it."""
        return sorted(map(str, self.package.glob("**/lib*_ops_aot_lib.so")))

    def command(self, folder: Path, libraries: Path) -> list[str]:
        """What starts it on an artifact; `libraries` is an empty folder for its use."""
        for kernel in self.kernels:
            (libraries / Path(kernel).name).symlink_to(kernel)
        options = ["--libraries", str(libraries), "--threads", "1"]
        return [*self.prefix, str(self.program), str(folder), *options]


def missing() -> str | None:
    """Why it cannot be built here."""
    for program in PROGRAMS:
        if shutil.which(program) is None:
            return f"needs {program}: run ci/install_system.sh"
    return None


def build_android() -> AndroidSoftware:
    """Built once, and kept in PHI_EDGE_CACHE (~/.cache/phi-edge)."""
    cache = cache_folder() / "android"
    environment = os.environ | {"PYTHON": sys.executable}
    subprocess.run([str(SCRIPT), str(cache)], check=True, env=environment, stdout=subprocess.DEVNULL, timeout=BUILD_S)
    return AndroidSoftware(cache)


def build_executorch_agent() -> ExecutorchAgent:
    """The native agent with ExecuTorch's runtime out of the installed package, for this machine; kept as the others."""
    cache = cache_folder() / "android"
    executorch, torch = package_folder("executorch"), package_folder("torch")
    libraries = [
        *executorch.glob("backends/qualcomm/libqnn*.so"),  # which the bindings need
        Path(str(sysconfig.get_config_var("LIBDIR"))) / str(sysconfig.get_config_var("LDLIBRARY")),
    ]
    # CMake's folders are bound to their sources' path.
    build = cache / f"build-executorch-{hashlib.sha256(f'{SOURCES} {executorch}'.encode()).hexdigest()[:12]}"
    build.mkdir(parents=True, exist_ok=True)
    with (build / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        words = [
            *("cmake", "-S", str(SOURCES), "-B", str(build), "-DPHI_EDGE_ENGINE=executorch"),
            f"-Dexecutorch_DIR={executorch / 'share/cmake'}",
            f"-DPHI_EDGE_EXECUTORCH_INCLUDES={torch / 'include'}",
            f"-DPHI_EDGE_EXECUTORCH_LIBRARIES={';'.join(map(str, libraries))};-Wl,-rpath-link,{torch / 'lib'}",
        ]
        environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        for command in (words, ["cmake", "--build", str(build)]):
            subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, timeout=BUILD_S)
    return ExecutorchAgent(build / "phi-edge-agent", executorch)


def package_folder(name: str) -> Path:
    """Where an installed package is, without importing it."""
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


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
