"""`phi-edge bundle`: golden sources, texts escaped for their language, and refusals. docs/android.md says what is not
compiled."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest
from click.testing import CliRunner

from export.artifact import Artifact, Format, open_artifact, seal
from phi_edge.main import main
from runtimes.api import Message
from runtimes.bundle.libraries import Library, library_files
from runtimes.bundle.values import csharp_text, kotlin_text, read_turns, systemd_text
from runtimes.bundle.write import KINDS, render_sources, write_bundle
from runtimes.engines.fake import fake_artifact
from runtimes.errors import RequestError
from runtimes.text.tokenizer import Tokenizer

ODD = 'quote " backslash \\ dollar ${x} percent %n tab\t nl\n nul\0 é 漢 🙂 \u202e \ue000'


def of_format(folder: Path, form: Format, provider: str | None = None) -> Artifact:
    """The fake artifact, with this format and its file in the manifest."""
    made = fake_artifact(folder)
    manifest = dataclasses.replace(made.manifest, engine={**made.manifest.engine, "provider": provider or "cpu"})
    if form == "executorch":
        (folder / "model.pte").write_bytes(b"program")
        from export.artifact import describe_files

        files = {**manifest.files, **describe_files(folder, ["model.pte"])}
        manifest = dataclasses.replace(manifest, format=form, files=files)
    else:
        manifest = dataclasses.replace(manifest, format=form)
    return seal(folder, manifest)


def cases() -> list[tuple[str, Format]]:
    """Those whose sources every artifact of a format has; of the others see test_runtimes_neighbours.py."""
    return [(kind, form) for kind, row in KINDS.items() if row.values is None for form in row.sources]


@pytest.mark.parametrize(("kind", "form"), cases())
def test_sources_are_the_golden_ones(
    kind: str, form: Format, tmp_path: Path, golden: Callable[[str, str], None]
) -> None:
    artifact = of_format(tmp_path / "a", form, provider=KINDS[kind].provider)
    for path, text in render_sources(artifact, kind).items():
        digest = artifact.manifest.digest()
        text = text.replace(digest, "d" * 64).replace(digest[:16], "d" * 16)  # it differs with tools' versions
        golden(f"bundle_{kind}_{form}_{Path(path).name}", text)


def test_a_bundle_holds_the_model_and_its_sources(tmp_path: Path) -> None:
    artifact = of_format(tmp_path / "a", "executorch")
    done = CliRunner().invoke(main, ["bundle", str(artifact.folder), str(tmp_path / "app"), "--for", "android"])
    assert done.exit_code == 0, done.output
    assert open_artifact(tmp_path / "app/model").manifest == artifact.manifest
    assert (tmp_path / "app/src/main/java/com/example/phiedge/PhiEdge.kt").is_file()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a", "app"]
    with pytest.raises(RequestError, match="is there already"):
        write_bundle(artifact, tmp_path / "app", "android")


def test_what_cannot_be_bundled_is_refused(tmp_path: Path) -> None:
    artifact = of_format(tmp_path / "a", "executorch")
    with pytest.raises(RequestError, match="an app for windows ships the format onnx"):
        write_bundle(artifact, tmp_path / "app", "windows")
    (artifact.folder / "model.pte").write_bytes(b"PROGRAM")
    done = CliRunner().invoke(main, ["bundle", str(artifact.folder), str(tmp_path / "app"), "--for", "android"])
    assert done.exit_code == 2 and "changed since the export" in done.output
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a"]


@pytest.mark.parametrize(("provider", "package"), [("dml", ".WinML"), ("cuda", ".Cuda"), ("", "")])
def test_a_windows_app_has_the_package_of_its_artifact(tmp_path: Path, provider: str, package: str) -> None:
    sources = render_sources(of_format(tmp_path / "a", "onnx", provider=provider), "windows")
    assert f'Include="Microsoft.ML.OnnxRuntimeGenAI{package}" ' in sources["PhiEdge.csproj"]
    runs = f"`Microsoft.ML.OnnxRuntimeGenAI{package}` {'is for the GPU' if package else 'runs on the CPU'}"
    assert runs in sources["README.md"]


def in_float(folder: Path, activations: str, **changes: Any) -> Path:
    """The fake artifact as one for WebGPU, in that float type."""
    manifest = of_format(folder, "onnx", provider="webgpu").manifest
    scheme = dataclasses.replace(manifest.scheme, activations=activations)
    return seal(folder, dataclasses.replace(manifest, scheme=scheme, **changes)).folder


def test_two_float_types_of_one_model(tmp_path: Path) -> None:
    half, single = in_float(tmp_path / "half", "float16"), in_float(tmp_path / "single", "float32")
    text = render_sources(open_artifact(single), "web", open_artifact(half))["README.md"]
    assert text.index("| `model-float16/` |") < text.index("| `model-float32/` |")
    other = in_float(tmp_path / "other", "float16", context_tokens=100)
    for also, kind, message in (
        (other, "web", f"--also {other}: is another model than {single}, by its context; export both alike"),
        (single, "web", "both are in float32; export one of them with --activations float16"),
        (half, "hub", "--also is for --for web: leave it out"),
    ):
        command = ["bundle", str(single), str(tmp_path / "site"), "--for", kind, "--also", str(also)]
        done = CliRunner().invoke(main, command)
        assert done.exit_code == 2 and message in done.output, done.output
    for inside in (half, single):
        with pytest.raises(RequestError, match="site: is inside the artifact"):
            write_bundle(open_artifact(single), inside / "site", "web", also=open_artifact(half))


def test_texts_are_written_so_that_they_read_back() -> None:
    for write, named in ((kotlin_text, {"b": "\b"}), (csharp_text, {"0": "\0", "a": "\a"})):
        literal = write(ODD + "\b\a")
        assert literal[0] == literal[-1] == '"' and literal.isascii() and literal.isprintable()
        read = {"n": "\n", "r": "\r", "t": "\t", **named}

        def back(found: re.Match[str], read: dict[str, str] = read) -> str:
            return chr(int(found[1], 16)) if found[1] else read.get(found[2], found[2])

        text = re.sub(r"\\(?:u([0-9a-f]{4})|(.))", back, literal[1:-1])
        assert text.encode("utf-16", "surrogatepass").decode("utf-16") == ODD + "\b\a"
    assert "$" not in kotlin_text("a$b").replace("\\$", "")
    assert systemd_text('a b"%i$x\\') == '"a b\\"%%i$$x\\\\"'
    with pytest.raises(RequestError, match="control character"):
        systemd_text("a\nb")


def test_turns_are_the_templates(tmp_path: Path) -> None:
    """The pieces that an app puts together give the text that the chat template gives."""
    artifact = of_format(tmp_path / "a", "onnx")
    turns = read_turns(artifact)
    assert turns is not None and turns.open_system is not None and turns.system_to_user is not None
    said = ["be brief", "first?", "one", "second?"]
    text = turns.open_system + said[0] + turns.system_to_user + said[1] + turns.to_answer
    text += said[2] + turns.to_next_user + said[3] + turns.to_answer
    messages = [Message("system", said[0]), Message("user", said[1]), Message("assistant", said[2])]
    ids = Tokenizer(artifact.folder).encode_chat([*messages, Message("user", said[3])])
    from tokenizers import Tokenizer as Raw

    raw = Raw.from_file(str(artifact.folder / "tokenizer.json"))
    assert raw.encode(text, add_special_tokens=False).ids == ids


def test_an_artifact_without_a_template_takes_one_message(tmp_path: Path) -> None:
    artifact = of_format(tmp_path / "a", "onnx")
    path = artifact.folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    del config["chat_template"]
    path.write_text(json.dumps(config))
    for kind in ("android", "windows"):
        assert any("give one user message" in text for text in render_sources(artifact, kind).values())


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze (apt-get install systemd)")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    for path, text in render_sources(of_format(tmp_path / "a", "onnx"), "raspberry-pi").items():
        (tmp_path / path).write_text(re.sub("/opt/phi-edge/venv/bin/[a-z-]+", "/bin/sh", text))
    units = [str(tmp_path / name) for name in ("phi-edge.socket", "phi-edge@.service", "phi-edge-http.service")]
    done = subprocess.run(
        ["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False, timeout=60
    )
    ours = [line for line in done.stderr.splitlines() if "phi-edge" in line]
    assert (done.returncode, ours) == (0, [])


LIBRARY = Library(name="@some/thing", version="1.0.0", licence="MIT", integrity="", files=("dist/index.mjs", "LICENSE"))


def packed(folder: Path) -> Library:
    """A package as `npm pack` leaves it, and its entry with the right hash."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as package:
        for name in LIBRARY.files:
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(name)
            package.addfile(member, io.BytesIO(name.encode()))
    (folder / LIBRARY.archive).write_bytes(archive.getvalue())
    digest = hashlib.sha512(archive.getvalue()).digest()
    return dataclasses.replace(LIBRARY, integrity=base64.b64encode(digest).decode())


def test_a_library_is_taken_by_its_hash_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library, folder = packed(tmp_path), tmp_path
    files = library_files([library], folder)
    assert files == {"some-thing/index.js": b"dist/index.mjs", "some-thing/LICENSE": b"LICENSE"}
    with pytest.raises(RequestError, match=r"its SHA-512 differs.*npm pack @some/thing@1.0.0"):
        library_files([LIBRARY], folder)
    with pytest.raises(RequestError, match=r"some-thing-1.0.0.tgz: is not there; get it with `npm pack"):
        library_files([library], tmp_path / "empty")
    # From a registry: kept, and not asked for again.
    asked: list[str] = []

    def urlopen(url: str, timeout: float) -> IO[bytes]:
        asked.append(url)
        return (folder / LIBRARY.archive).open("rb")

    monkeypatch.setenv("PHI_EDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    assert library_files([library], None) == library_files([library], None) == files
    assert asked == ["https://registry.npmjs.org/@some/thing/-/thing-1.0.0.tgz"]
    with pytest.raises(RequestError, match="is not the one that we know; nothing of it is used"):
        library_files([LIBRARY], None)
    assert [path.name for path in (tmp_path / "cache" / "npm").iterdir()] == [LIBRARY.archive]
