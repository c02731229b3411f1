"""Nights against nights, and the history: nothing is lost, added twice or skipped without a word."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import duckdb
import pytest
from click.testing import CliRunner, Result

from devices.measure.measurement import DeviceFacts, Measurement
from fakes.measurement import fake_measurement
from fakes.score import fake_score
from phi_edge.main import main


def on(device: str, name: str = "phi3", gap_s: float = 0.01) -> Measurement:
    return dataclasses.replace(
        fake_measurement(name=name, gap_s=gap_s), device=DeviceFacts(name=device, transport="local")
    )


def night(folder: Path, *measurements: Measurement) -> Path:
    folder.mkdir()
    for number, measurement in enumerate(measurements):
        (folder / f"{number}.json").write_text(measurement.to_json())
    return folder


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


# Nights


def test_each_measurement_finds_its_own_baseline(tmp_path: Path) -> None:
    old = night(tmp_path / "old", on("pi5"), on("phone"))
    new = night(tmp_path / "new", on("phone", gap_s=0.02), on("pi5"), on("pi5", "e8"))
    result = run("gate", new, "--baseline", old, "--junit", tmp_path / "junit.xml")
    assert result.exit_code == 1
    heads = [line for line in result.stdout.splitlines() if not line.startswith(" ")]
    assert heads == [
        "regression: phi3 on phone, 32+16 tokens, against its baseline, noise floor 5%",
        "inconclusive: phi3 on pi5, 32+16 tokens, against its baseline, noise floor 5%",
        "new: e8 on pi5, 32+16 tokens: the baseline lacks it",
    ]
    suites = ElementTree.parse(tmp_path / "junit.xml").getroot()
    assert [suite.get("name") for suite in suites] == [
        "baseline: phi3 on phone, 32+16 tokens",
        "baseline: phi3 on pi5, 32+16 tokens",
    ]
    assert run("gate", old, "--baseline", old).exit_code == 0


def test_what_nobody_measured_now_is_a_failure(tmp_path: Path) -> None:
    old, new = night(tmp_path / "old", on("pi5"), on("phone")), night(tmp_path / "new", on("pi5"))
    result = run("gate", new, "--baseline", old, "--junit", tmp_path / "junit.xml")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1] == "missing: phi3 on phone, 32+16 tokens: not measured"
    assert 'message="missing: not measured"' in (tmp_path / "junit.xml").read_text()


@pytest.mark.parametrize("words", [["--baseline", "old"], ["--budgets", "budgets.toml"]])
def test_a_cell_without_a_measurement_is_a_failure_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    night(tmp_path / "old", on("pi5"))
    new = night(tmp_path / "new", on("pi5"))
    (tmp_path / "budgets.toml").write_text("[[budget]]\nmax_ttft_s = 1000\n")
    assert run("gate", new, *words).exit_code == 0
    cell = {"artifact": "phi3", "device": "phone", "prompt_tokens": 32, "generate_tokens": 16}
    cell |= {"state": "away", "reason": "the cable is out", "file": None}
    (new / "cells.json").write_text(json.dumps({"schema": 1, "cells": [cell]}))
    result = run("gate", new, *words)
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1] == "missing: phi3 on phone, 32+16 tokens: away: the cable is out"


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda new: night(new / "sub", on("pi5")).rename(new / "0.json.d"), ""),
        (lambda new: (new / "cells.json").write_text('{"schema": 9}'), "is no list of cells that this version knows"),
        (lambda new: (new / "1.json").write_text("{"), "1.json: is not JSON"),
        (lambda new: (new / "1.json").write_text(on("pi5").to_json()), "two measurements are of phi3 on pi5, 32+16"),
        (lambda new: (new / "0.json").unlink(), "has no measurement; give a folder of"),
    ],
    ids=["a folder in it is nothing", "newer cells", "no JSON", "twice", "empty"],
)
def test_a_folder_that_cannot_be_judged_is_one_line(tmp_path: Path, spoil: Callable[[Path], object], said: str) -> None:
    old, new = night(tmp_path / "old", on("pi5")), night(tmp_path / "new", on("pi5"))
    spoil(new)
    result = run("gate", new, "--baseline", old)
    assert result.exit_code == (2 if said else 0)
    assert said in result.stderr and result.stderr.count("\n") == (1 if said else 0)


# The history


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Two nights, and a score."""
    first = dataclasses.replace(on("pi5"), created_at="2026-10-30T00:00:00+00:00")
    second = dataclasses.replace(on("pi5", gap_s=0.011), created_at="2026-11-01T00:00:00+00:00")
    nights = night(tmp_path / "nights", first, second)
    (nights / "score.json").write_text(fake_score(first).to_json())
    assert run("history", tmp_path / "store", nights).exit_code == 0
    return tmp_path / "store"


def test_it_only_grows_and_has_nothing_twice(store: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in store.rglob("*.json")}
    assert len(before) == 4
    again = run("history", store, tmp_path / "nights")
    assert "0 of 3 files are new" in again.stderr
    more = night(tmp_path / "more", on("phone"))
    assert "1 of 1 files are new" in run("history", store, more / "0.json").stderr
    after = {path: path.read_bytes() for path in store.rglob("*.json")}
    assert before.items() <= after.items() and len(after) == 5
    assert {path.parent.name for path in after} >= {"2026-10", "2026-11"}


def test_its_figures_by_sql_and_as_csv_and_parquet(store: Path, tmp_path: Path) -> None:
    query = "SELECT value FROM metrics WHERE metric = 'itl_p50_s' AND device = 'pi5' ORDER BY created_at"
    lines = run("history", store, "--sql", query).stdout.split()
    assert lines[0] == "value" and float(lines[2]) == pytest.approx(1.1 * float(lines[1]))
    table, columns = tmp_path / "it's.csv", tmp_path / "all.parquet"
    assert run("history", store, "--csv", table, "--parquet", columns).exit_code == 0
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["valid"] for row in rows} == {"true"} and "kl" in {row["metric"] for row in rows}
    with duckdb.connect() as there:
        assert there.execute("SELECT count(*) FROM read_parquet(?)", [str(columns)]).fetchall() == [(len(rows),)]
    overview = run("history", store).stdout.splitlines()
    assert overview[0].split() == [
        "artifact",
        "device",
        "prompt",
        "metric",
        "nights",
        "first",
        "last",
        "value",
        "change",
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sql", "SELECT speed FROM metrics"], "DuckDB did not do it: "),
        (["--csv", "/nowhere/x.csv"], "/nowhere/x.csv: its folder does not exist"),
        (["nothing.json"], "nothing.json: cannot be read"),
    ],
)
def test_what_it_cannot_do_is_one_line(store: Path, words: list[str], said: str) -> None:
    result = run("history", store, *words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr and result.stderr.count("\n") == 1


def test_a_newer_store_and_a_folder_of_something_else_stay_as_they_are(store: Path, tmp_path: Path) -> None:
    (store / "store.json").write_text('{"schema": 9}')
    files = sorted(store.rglob("*"))
    result = run("history", store, tmp_path / "nights")
    assert result.exit_code == 2 and "has schema 9, and this version knows 1; update phi-edge" in result.stderr
    assert sorted(store.rglob("*")) == files
    result = run("history", tmp_path / "nights", tmp_path / "nights")
    assert result.exit_code == 2 and "is no history and not empty" in result.stderr


def test_all_files_are_read_before_the_first_is_added(store: Path, tmp_path: Path) -> None:
    more = night(tmp_path / "more", on("phone"))
    (more / "1.json").write_text('{"schema": 9, "repetitions": []}')
    before = sorted(store.rglob("*"))
    result = run("history", store, more)
    assert result.exit_code == 2 and "this version reads measurements of schema 1" in result.stderr
    assert sorted(store.rglob("*")) == before


def test_a_full_disk_is_one_line_and_leaves_no_half_file(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("phi_edge.files.os.fsync", full)
    result = run("history", store, night(tmp_path / "more", on("phone")))
    assert result.exit_code == 2 and "cannot be written (No space left on device)" in result.stderr
    assert len([path for path in (store / "files").rglob("*") if path.is_file()]) == 3
