"""The bytes of an artifact do not change by accident: digests of every file, recorded before the house was rebuilt.

The manifest is left out: it names tool versions, and its fields may grow. New files are allowed by name. The schemes
are given by name, so that a new default changes nothing here. `make golden` records new digests where bytes should
change.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from ci.variants import VARIANTS, make_checkpoint
from export.artifact import MANIFEST, describe_files
from export.errors import OptionError
from export.pipeline import export_model
from export.request import ExportRequest

RECORDED = Path(__file__).parent / "golden" / "bytes.json"
# What each target's default was when the digests were recorded.
TINY = {
    "cpu": ("onnx", "int4-b64"),
    "raspberry-pi": ("onnx", "int4-b64"),
    "android": ("executorch", "int4-b32"),
    "windows-directml": ("onnx", "int4-b32"),
}
# Files that were not there when the digests were recorded.
NEW_FILES = {"layout.json"}
VARIANT_FORMATS = {"onnx": "int4-b64", "executorch": "int4-b32"}


def jobs() -> Iterator[tuple[str, str, str, str, str]]:
    """(name, checkpoint or variant, target, format, scheme) of every artifact whose bytes are recorded."""
    for target, (format, scheme) in TINY.items():
        yield f"tiny {target}", "tiny", target, format, scheme
    for variant in VARIANTS:
        for format, scheme in VARIANT_FORMATS.items():
            yield f"{variant} {format}", variant, "cpu", format, scheme
        yield f"{variant} windows-directml", variant, "windows-directml", "onnx", "int4-b32"


@pytest.mark.parametrize(("name", "source", "target", "format", "scheme"), [*jobs()], ids=[job[0] for job in jobs()])
def test_the_bytes_are_those_that_were_recorded(
    name: str,
    source: str,
    target: str,
    format: str,
    scheme: str,
    tmp_path: Path,
    pytestconfig: pytest.Config,
) -> None:
    checkpoint = source if source == "tiny" else str(make_checkpoint(source, tmp_path / "checkpoint"))
    request = ExportRequest(
        checkpoint=checkpoint, out=tmp_path / "out", target=target, format=format, scheme=scheme, context_tokens=2047
    )
    try:
        folder = export_model(request).folder
    except OptionError as refusal:  # Phi-3-small has no block-sparse attention on DirectML
        assert "small" in source and target == "windows-directml", refusal
        return
    names = sorted(path.name for path in folder.iterdir() if path.name != MANIFEST)
    digests = {name: file.sha256 for name, file in describe_files(folder, names).items()}
    recorded = json.loads(RECORDED.read_text(encoding="utf-8")) if RECORDED.is_file() else {}
    if pytestconfig.getoption("--rewrite-golden"):
        recorded[name] = digests
        RECORDED.write_text(json.dumps(recorded, indent=1) + "\n", encoding="utf-8")
    new = set(digests) - set(recorded[name])
    assert {file: digest for file, digest in digests.items() if file not in new} == recorded[name]
    assert new <= NEW_FILES
