"""Vulkan devices in software, for WebGPU outside a browser: SwiftShader, which Debian's chromium brings, and Mesa's
lavapipe, which has float16 and is ten times as fast."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from fakes.lab_file import lab_file
from runtimes.system.cache_folder import cache_folder

FETCH = Path(__file__).parent / "fetch_lavapipe.sh"
SWIFTSHADER = Path("/usr/lib/chromium/libvk_swiftshader.so")


def swiftshader() -> Path:
    """Its library; skips where it is not installed."""
    if not SWIFTSHADER.exists():
        pytest.skip("needs chromium's software Vulkan device: run ci/install_system.sh")
    return SWIFTSHADER


def lavapipe() -> Path:
    """Its library, downloaded unless it is there; skips where it cannot be had."""
    cache = cache_folder() / "lavapipe"
    done = subprocess.run([FETCH, cache], capture_output=True, text=True, check=False, timeout=600)
    if done.returncode:
        pytest.skip(f"needs apt-get, and Debian's bookworm-backports once: {done.stderr[-300:]}")
    return cache / "libvulkan_lvp.so"


def software_vulkan(folder: Path, patch: pytest.MonkeyPatch, library: Path | None = None) -> Path:
    """Make it the only device of processes that start from now on; None is SwiftShader. -> a lab file with the device
    `gpu`, this machine with that adapter."""
    icd = folder / "icd.json"
    driver = {"library_path": str(library or swiftshader()), "api_version": "1.1.0"}
    icd.write_text(json.dumps({"file_format_version": "1.0.0", "ICD": driver}))
    for name in ("VK_ICD_FILENAMES", "VK_DRIVER_FILES"):
        patch.setenv(name, str(icd))
    lab = folder / "lab.toml"
    lab.write_text(lab_file("gpu", {"transport": "local", "adapter": "software"}))
    return lab
