"""Folders whose names have letters beyond ASCII, as a user's own name may: every verb and the engines take them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from phi_edge.main import main

ODD = "Jürgen Håkansson 模型 it's"


def invoke(*words: str) -> str:
    """What a verb prints on stdout. It must end well."""
    result = CliRunner().invoke(main, list(words), prog_name="phi-edge")
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def home(tmp_path: Path, tiny_onnx_short: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of such a user, with an artifact."""
    folder = tmp_path / ODD
    folder.mkdir()
    shutil.copytree(tiny_onnx_short, folder / ODD)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    return folder


def test_every_verb_takes_them(home: Path) -> None:
    art, measured, budgets = str(home / ODD), str(home / f"{ODD}.json"), home / f"{ODD}.toml"
    assert "digest" in invoke("check", art)
    assert invoke("run", art, "Is the lamp on?", "--max-new-tokens", "4").strip()
    invoke("bench", art, "--out", measured, "--reps", "1", "--prompt-tokens", "8", "--generate-tokens", "2")
    budgets.write_text("[[budget]]\nmatch = {target = 'cpu'}\nmax_ttft_s = 600\n")
    invoke("gate", measured, "--budgets", str(budgets), "--junit", str(home / f"{ODD}.xml"))
    assert ODD in invoke("report", measured) and ODD in (home / f"{ODD}.xml").read_text(encoding="utf-8")
    invoke("bundle", art, str(home / "app"), "--for", "android")


def test_an_export_from_and_into_them(home: Path) -> None:
    shutil.copytree(Path(__file__).parents[2] / "export" / "tiny", home / "checkpoint", dirs_exist_ok=True)
    invoke("export", str(home / "checkpoint"), str(home / "out"), "--context", "64", "--quiet")
    assert "digest" in invoke("check", str(home / "out"))


def test_genai_opens_them(home: Path) -> None:
    import onnxruntime_genai as genai

    folder = str(home / ODD)
    tokenizer = genai.Tokenizer(genai.Model(genai.Config(folder)))
    assert list(tokenizer.encode("lamp"))
