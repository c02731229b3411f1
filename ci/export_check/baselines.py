"""Baselines: a folder with one measurement for each check, workload, device and processor.

A baseline stays until someone replaces it. If every run replaced it, ten runs that are each 2 % slower would all pass.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from ci.export_check.finding import Finding
from ci.export_check.judging import judge_changes
from devices.judge.compare import compare, must_be_alike
from devices.measure.measurement import Measurement, read_measurement
from phi_edge.files import make_folder, write_text


def baseline_path(folder: Path, check: str, measurement: Measurement) -> Path:
    """The file of the only baseline with which this measurement can be compared."""
    alike = json.dumps(must_be_alike(measurement), sort_keys=True)
    name = re.sub(r"[^\w.-]", "_", f"{check}-{measurement.device.name}")
    return folder / f"{name}-{hashlib.sha256(alike.encode()).hexdigest()[:12]}.json"


def compare_with(baseline: Path, measurement: Measurement, noise_floor: float) -> list[Finding]:
    """The changes since the baseline; a note where there is none. Raises MeasurementError."""
    if not baseline.is_file():
        return [Finding(step="baseline", name="baseline", outcome="note", said="none for this device and workload")]
    return judge_changes(compare(measurement, read_measurement(baseline), noise_floor))


def keep(measurement: Measurement, baseline: Path) -> None:
    """Make it the baseline. Raises DeviceError."""
    make_folder(baseline.parent)
    write_text(baseline, measurement.to_json())
