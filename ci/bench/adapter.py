"""How much more memory does an export take with a LoRA adapter on every matrix of every layer?

    python -m ci.bench.adapter CHECKPOINT --scratch FOLDER [--rank 16] [--format onnx] [--scheme int4-b32]

Makes a random adapter for the checkpoint, exports it without and with the adapter in turn, and prints the highest
resident memory of each exporting process: VmHWM, which is the process's own. The rusage of a child would be that of its
own children too, and the process that proves the artifact may be the larger one. Each artifact is removed at once.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click
import torch
from safetensors.torch import save_file

from export.checkpoint.open import open_checkpoint
from export.system import numbers

POLL_S = 0.02


@click.command()
@click.argument("checkpoint")
@click.option("--scratch", type=click.Path(path_type=Path), required=True, help="A folder on a disk with room.")
@click.option("--rank", default=16, show_default=True)
@click.option("--format", default="onnx", show_default=True)
@click.option("--scheme", default="int4-b32", show_default=True)
def main(checkpoint: str, scratch: Path, rank: int, format: str, scheme: str) -> None:
    """Measure both exports."""
    scratch.mkdir(parents=True, exist_ok=True)
    adapter, out = scratch / "adapter", scratch / "artifact"
    size = make_adapter(checkpoint, adapter, rank)
    export = [sys.executable, "-P", "-m", "phi_edge", "export", checkpoint, str(out), "--quiet"]
    export += ["--format", format, "--scheme", scheme]
    peaks = []
    for more in ([], ["--adapter", str(adapter)]):
        began = time.monotonic()
        peaks.append(own_peak_bytes([*export, *more]))
        what = f"with an adapter of rank {rank}, {size / 1e6:.0f} MB" if more else "without an adapter"
        print(f"{what}: {peaks[-1] / 1e6:.0f} MB, {time.monotonic() - began:.0f} s", flush=True)
        shutil.rmtree(out)
    shutil.rmtree(adapter)
    print(f"the adapter takes {(peaks[1] - peaks[0]) / 1e6:+.0f} MB")


def make_adapter(checkpoint: str, folder: Path, rank: int) -> int:
    """PEFT's folder of a LoRA with random values, in float32 as PEFT saves it; its bytes."""
    tensors = dict[str, torch.Tensor]()
    torch.manual_seed(0)
    for name, shape in open_checkpoint(checkpoint).config.tensor_shapes().items():
        if name.startswith("model.layers.") and len(shape) == 2:
            path = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{path}.lora_A.weight"] = torch.randn(rank, shape[1]) * 0.01
            tensors[f"{path}.lora_B.weight"] = torch.randn(shape[0], rank) * 0.01
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return (folder / "adapter_model.safetensors").stat().st_size


def own_peak_bytes(command: Sequence[str]) -> int:
    """The highest resident memory of a command's own process. Raises CalledProcessError where it fails."""
    seen = 0
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            with contextlib.suppress(OSError):  # it has just ended
                seen = max(seen, numbers(Path(f"/proc/{process.pid}/status")).get("VmHWM", 0))
            time.sleep(POLL_S)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return seen


if __name__ == "__main__":
    main()
