"""A Vulkan device in software, the one that Debian's chromium brings: for WebGPU outside a browser."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fakes.lab_file import lab_file

SWIFTSHADER = Path("/usr/lib/chromium/libvk_swiftshader.so")


def software_vulkan(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """Make it the only device of processes that start from now on. -> a lab file with the device `gpu`, this machine
    with that adapter."""
    if not SWIFTSHADER.exists():
        pytest.skip("needs chromium's software Vulkan device: run ci/install_system.sh")
    icd = folder / "icd.json"
    icd.write_text(
        json.dumps({"file_format_version": "1.0.0", "ICD": {"library_path": str(SWIFTSHADER), "api_version": "1.1.0"}})
    )
    for name in ("VK_ICD_FILENAMES", "VK_DRIVER_FILES"):
        patch.setenv(name, str(icd))
    lab = folder / "lab.toml"
    lab.write_text(lab_file("gpu", {"transport": "local", "adapter": "software"}))
    return lab
