"""The texts that ship with the package, and how such files are read. Their licences are in LICENCES.md.

HELD_OUT is what `phi-edge score` reads, QUESTIONS what it asks; CALIBRATION is for the export's methods and shares no
document with them.
"""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).parent
HELD_OUT = _FOLDER / "held_out.jsonl"
QUESTIONS = _FOLDER / "questions.jsonl"
CALIBRATION = _FOLDER / "calibration.jsonl"
