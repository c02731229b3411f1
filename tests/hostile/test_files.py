"""JSON and TOML that nobody should read: deep, huge, twice, NaN, half characters. One reader, one line, exit 2."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from devices.measure import intervals
from devices.measure.measurement import MOST_REPETITIONS
from export import strict
from export.strict import parse_json
from fakes.measurement import fake_measurement
from fakes.score import fake_score
from phi_edge.main import main

DEEP = "[" * 200_000
FAULTS: dict[str, tuple[Callable[[str], str], str]] = {
    "deep": (lambda text: DEEP, "nested deeper than 64"),
    "deep in place": (lambda text: text.replace("{", '{"x": ' + "[" * 900 + "]" * 900 + ", ", 1), "nested deeper than"),
    "twice": (lambda text: text.replace("{", '{"x": 1, "x": 2, ', 1), "the key 'x' is given twice"),
    "NaN": (lambda text: text.replace("{", '{"x": NaN, ', 1), "NaN is no number of JSON"),
    "infinite": (lambda text: text.replace("{", '{"x": -Infinity, ', 1), "-Infinity is no number of JSON"),
    "beyond": (lambda text: text.replace("{", '{"x": 1e999, ', 1), "1e999 is beyond every float"),
    "digits": (lambda text: text.replace("{", '{"x": ' + "9" * 5000 + ", ", 1), "is not JSON"),
    "half": (lambda text: text.replace("{", '{"x": "\\ud800", ', 1), "half of a surrogate pair"),
    "half key": (lambda text: text.replace("{", '{"\\udc00": 1, ', 1), "half of a surrogate pair"),
    "cut": (lambda text: text[: len(text) // 2], "is not JSON"),
    "empty": (lambda text: "", "is not JSON"),
    "no UTF-8": (lambda text: text.replace("{", '{"\udcff": 1, ', 1), "is not JSON"),
    "mark": (lambda text: "\ufeff" + text, "is not JSON"),
    "list": (lambda text: "[1]", ""),
    "null": (lambda text: "null", ""),
}


def call(*words: str) -> Result:
    return CliRunner().invoke(main, list(words))


def reseal(folder: Path) -> None:
    """Make the manifest's sizes and hashes right again after an edit."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    for name in manifest["files"]:
        data = (folder / name).read_bytes()
        manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    path.write_text(json.dumps(manifest))


@pytest.fixture(scope="module")
def folder(tiny_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good files of every kind, and the commands that read them."""
    made = tmp_path_factory.mktemp("files")
    shutil.copytree(tiny_onnx, made / "artifact")
    (made / "m.json").write_text(fake_measurement().to_json())
    (made / "s.json").write_text(fake_score(fake_measurement()).to_json())
    (made / "b.toml").write_text("[[budget]]\nmax_ttft_s = 9\n")
    return made


READERS: dict[str, list[str]] = {
    "artifact/manifest.json": ["check", "artifact"],
    "artifact/tokenizer.json": ["run", "artifact", "Once", "--raw", "--max-new-tokens", "1"],
    "artifact/tokenizer_config.json": ["run", "artifact", "Once", "--raw", "--max-new-tokens", "1"],
    "artifact/layout.json": ["check", "artifact", "--against", "tiny"],
    "m.json": ["gate", "m.json", "--budgets", "b.toml"],
    "s.json": ["report", "s.json", "--json", "-"],
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", READERS)
def test_a_broken_file_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, fault: str) -> None:
    break_it, said = FAULTS[fault]
    monkeypatch.chdir(folder)
    path, good, manifest = folder / name, (folder / name).read_bytes(), (folder / "artifact/manifest.json").read_bytes()
    try:
        path.write_bytes(break_it(good.decode()).encode("utf-8", "surrogateescape"))
        if name.startswith("artifact/") and name != "artifact/manifest.json":
            reseal(folder / "artifact")
        result = call(*READERS[name])
    finally:
        path.write_bytes(good)
        (folder / "artifact/manifest.json").write_bytes(manifest)
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert path.name in line and said in line and len(line) < 1000, line


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a = " + "[" * 3000, "is not TOML"),
        ("a = " + "[" * 100 + "]" * 100, "nested deeper than 64"),
        ("noise_floor = " + "9" * 5000, "is not TOML"),
        ("[[budget]]\nmax_ttft_s = " + "9" * 400, "expected a number that is not negative"),
        ("[[budget]]\nmax_ttft_s = inf", "expected a number that is not negative"),
        ("[[budget]]\nmax_ttft_s = nan", "expected a number that is not negative"),
        ("[[budget]]\n" + "x" * 100_000 + " = 1", "unknown key"),
    ],
    ids=range(7),
)
def test_a_broken_toml_file_is_one_line(folder: Path, tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "x.toml").write_text(text)
    result = call("gate", str(folder / "m.json"), "--budgets", str(tmp_path / "x.toml"))
    (line,) = result.stderr.splitlines()
    assert result.exit_code == 2 and said in line and len(line) < 1000, line
    lab = text.replace("[[budget]]\nmax_ttft_s", "[device.x]\nthreads")
    (tmp_path / "lab.toml").write_text(lab)
    result = call("doctor", "x", "--lab", str(tmp_path / "lab.toml"))
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1), result.output


def test_a_file_without_an_end_is_not_read_to_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strict, "MOST_BYTES", 1 << 20)
    for words in (
        ["report", "/dev/zero"],
        ["gate", str(folder / "m.json"), "--budgets", "/dev/zero"],
        ["doctor", "x", "--lab", "/dev/zero"],
    ):
        result = call(*words)
        assert result.exit_code == 2 and "more than 1048576 bytes" in result.stderr, result.output


@pytest.mark.parametrize(
    ("text", "value"), [('{"a": [1, -0.5, 1e300, null, true, "\\ud83d\\ude00"]}', True), ("[" * 64 + "]" * 64, True)]
)
def test_what_is_right_is_read(text: str, value: bool) -> None:
    assert (parse_json(text.encode()) == json.loads(text)) is value


Edit = Callable[[dict[str, Any]], object]


def edited(folder: Path, tmp_path: Path, edit: Edit) -> Path:
    """The good measurement with an edit in every repetition, or of the whole."""
    content = json.loads((folder / "m.json").read_text())
    edit(content)
    (tmp_path / "m.json").write_text(json.dumps(content))
    return tmp_path / "m.json"


def in_runs(**fields: Any) -> Edit:
    return lambda content: [each["run"].update(fields) for each in content["repetitions"]]


def stamps(*changed: float) -> Edit:
    def edit(content: dict[str, Any]) -> None:
        for each in content["repetitions"]:
            each["run"]["token_at_s"][: len(changed)] = changed

    return edit


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (stamps(9.0, 1.0), "its clock ran backwards"),
        (stamps(-1.0), "its first token came after -1 s"),
        (stamps(0.0), "its first token came after 0 s"),
        (in_runs(prefill_s=-0.5), "its prompt took -0.5 s"),
        (in_runs(prefill_s=0.0), "its prompt took 0 s"),
        (in_runs(total_s=0.001), "it ended before its last token"),
        (in_runs(memory={"peak_bytes": -1}), "its memory has peak_bytes -1"),
        (in_runs(memory={"peak_bytes": 0}), "its memory has peak_bytes 0"),
        (lambda content: [each.update(load_s=-2.0) for each in content["repetitions"]], "it was loaded in -2 s"),
        (lambda content: content["artifact"].update(artifact_bytes=-5), "an artifact of -5 bytes"),
    ],
    ids=range(10),
)
def test_times_and_sizes_that_cannot_be_do_not_pass(folder: Path, tmp_path: Path, edit: Edit, said: str) -> None:
    result = call("gate", str(edited(folder, tmp_path, edit)), "--budgets", str(folder / "b.toml"))
    assert result.exit_code == 1 and said in result.stdout, result.output
    for option in (["--json", "-"], ["--markdown"], ["--html", str(tmp_path / "r.html")]):
        assert call("report", str(tmp_path / "m.json"), *option).exit_code == 0


@pytest.mark.parametrize("value", [10**400, 10**30, -(10**30)], ids=["400 digits", "large", "small"])
@pytest.mark.parametrize("field", ["load_s", "prefill_s", "token_at_s", "peak_bytes", "artifact_bytes", "parameters"])
def test_numbers_beyond_64_bits_are_refused(folder: Path, tmp_path: Path, field: str, value: int) -> None:
    def edit(content: dict[str, Any]) -> None:
        first = content["repetitions"][0]
        places: dict[str, dict[str, Any]] = {
            "load_s": first, "prefill_s": first["run"], "peak_bytes": first["run"]["memory"],
            "artifact_bytes": content["artifact"], "parameters": content["artifact"],
        }  # fmt: skip
        if field == "token_at_s":
            first["run"][field][0] = value
        else:
            places[field][field] = value

    result = call("gate", str(edited(folder, tmp_path, edit)), "--budgets", str(folder / "b.toml"))
    assert result.exit_code == 2 and f"{field}: expected a finite number of at most 64 bits" in result.stderr


def test_a_metric_that_only_the_baseline_has_does_not_pass(folder: Path, tmp_path: Path) -> None:
    path = edited(folder, tmp_path, in_runs(memory={"peak_bytes": None}))
    result = call("gate", str(path), "--baseline", str(folder / "m.json"))
    assert result.exit_code == 1
    assert "candidate: peak_memory_bytes was not measured, and the baseline has it" in result.stdout


def test_a_measurement_of_too_many_repetitions_is_refused(folder: Path, tmp_path: Path) -> None:
    def edit(content: dict[str, Any]) -> None:
        content["repetitions"] *= MOST_REPETITIONS // 5 + 1

    path = edited(folder, tmp_path, edit)
    for words in (["gate", str(path), "--budgets", str(folder / "b.toml")], ["report", str(path)]):
        result = call(*words)
        assert result.exit_code == 2 and f"allowed: 1 to {MOST_REPETITIONS}" in result.stderr


def test_an_interval_of_millions_of_samples_takes_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    cumsum = np.cumsum

    def counted(samples: Any, *rest: Any, **options: Any) -> Any:
        drawn.append(samples.size)
        return cumsum(samples, *rest, **options)

    monkeypatch.setattr("devices.measure.intervals.np.cumsum", counted)
    groups = [np.full(131_072, float(number)) for number in range(5)]
    low, high = intervals.interval(intervals.bootstrap(groups, 0.5))
    assert 0 <= low < high <= 4 and max(drawn) <= intervals.MOST_DRAWN


def test_names_with_odd_characters_are_shown(folder: Path, tmp_path: Path) -> None:
    def edit(content: dict[str, Any]) -> None:
        content["device"]["name"] = '\u0001\x1b[2Jü🎉"\u202e\nError: x'
        content["artifact"]["name"] = 'it\'s a "name"\r\n\tpass'

    path = edited(folder, tmp_path, edit)
    for words in (
        ["gate", str(path), "--budgets", str(folder / "b.toml"), "--junit", str(tmp_path / "j.xml")],
        ["report", str(path), "--markdown", "--html", str(tmp_path / "r.html")],
    ):
        result = call(*words)
        assert result.exit_code == 0, result.output
        assert not {char for char in result.stdout if not char.isprintable()} - {"\n"}
        assert not any(line.startswith(("Error", "pass\t", "\tpass")) for line in result.stdout.splitlines())
