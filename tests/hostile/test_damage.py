"""Files of an artifact that changed after the export: no engine gets them, whatever its library would do."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from export.artifact import Artifact, open_artifact, verify
from export.errors import ArtifactError
from phi_edge.main import main
from runtimes import intact
from runtimes.intact import check_intact

VERBS = {
    "check": ["check", "ART"],
    "run": ["run", "ART", "Hi", "--max-new-tokens", "1"],
    "serve": ["serve", "ART", "--port", "1"],
    "score": ["score", "ART", "--tokens", "64"],
    "diff": ["diff", "ART", "ART"],
}
MODELS = {"tiny_onnx": "model.onnx", "tiny_executorch": "model.pte", "tiny_gguf": "model.gguf"}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The model's file in a copy of an artifact, one of each format."""
    folder = Path(shutil.copytree(request.getfixturevalue(request.param), tmp_path / "art"))
    return folder / MODELS[request.param]


@pytest.mark.parametrize("how", ["a bit", "cut", "longer"])
def test_no_verb_takes_a_damaged_model(model: Path, how: str) -> None:
    data = bytearray(model.read_bytes())
    data[random.Random(how).randrange(len(data))] ^= 1
    model.write_bytes({"a bit": bytes(data), "cut": bytes(data[: len(data) // 2]), "longer": bytes(data) + b"0"}[how])
    for words in VERBS.values():
        result = CliRunner().invoke(main, [word.replace("ART", str(model.parent)) for word in words])
        (line,) = result.stderr.splitlines()
        assert result.exit_code == 2 and f"{model.name}: " in line and "export it again" in line, result.output


def test_that_a_large_artifact_is_intact_is_remembered_until_a_file_changes(
    tiny_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, hashed = Path(shutil.copytree(tiny_onnx, tmp_path / "art")), list[Artifact]()

    def counted(artifact: Artifact) -> None:
        verify(artifact)
        hashed.append(artifact)

    monkeypatch.setenv("PHI_EDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(intact, "SMALL_BYTES", 1)
    monkeypatch.setattr(intact, "verify", counted)
    artifact = open_artifact(folder)
    check_intact(artifact)
    check_intact(artifact)
    assert len(hashed) == 1
    data = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(b"x" + data[1:])
    with pytest.raises(ArtifactError, match=r"model\.onnx: changed since the export"):
        check_intact(artifact)
    (folder / "model.onnx").write_bytes(data)
    check_intact(artifact)
    assert len(hashed) == 2
