"""docs/architecture.md: the files that it names exist, and its recipes work with the files that it names alone."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import cast

import pytest
from click.testing import CliRunner

import phi_edge.main
from devices.measure import metrics
from fakes.measurement import fake_measurement
from phi_edge.main import main

REPOSITORY = Path(__file__).parent.parent
PAGE = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_every_file_that_the_page_names_exists() -> None:
    named = set(re.findall(r"`((?:export|runtimes|devices|phi_edge|optimum|ci|tests)/[\w./]*)`", PAGE))
    assert len(named) > 40
    assert [path for path in sorted(named) if not (REPOSITORY / path).exists()] == []


def test_every_test_that_the_page_names_exists() -> None:
    assert [name for name in re.findall(r"`(test_[a-z_]+)`", PAGE) if name not in globals()] == []


def test_no_room_is_crowded_and_no_file_long() -> None:
    """What a reader can take in at once: 15 Python files a folder, 300 lines a file."""
    files = [
        path
        for room in ("export", "runtimes", "devices", "phi_edge", "ci")
        for path in (REPOSITORY / room).rglob("*.py")
    ]
    crowded = {str(folder): number for folder, number in Counter(path.parent for path in files).items() if number > 15}
    long = {str(path): lines for path in files if (lines := path.read_text("utf-8").count("\n")) > 300}
    assert (crowded, long) == ({}, {})


def test_no_script_s_folder_hides_a_standard_module() -> None:
    """`python ci/x/y.py` looks for modules in ci/x first."""
    names = {path.stem for path in (REPOSITORY / "ci").rglob("*.py")}
    assert names & sys.stdlib_module_names == set()


def program(change: str, *command_lines: list[str]) -> str:
    """The output of command lines in a Python that begins with `change`, a newcomer's edit of one file."""
    code = f"""
import sys
{change}
from phi_edge.main import main
for words in {command_lines!r}:
    try:
        main(words, prog_name="phi-edge")
    except SystemExit as end:
        if end.code:
            raise
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False, cwd=REPOSITORY
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_scheme_is_one_row(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    shown = program(
        "import export.scheme as table; table.SCHEMES['int4-b16'] = table._scheme(16)",
        ["export", "--help"],
        ["export", "tiny", out, "--scheme", "int4-b16", "--quiet"],
        ["check", out],
        ["run", out, "Turn off the lamp in the kitchen.", "--chat"],
    )
    assert "int4-b16" in shown and "scheme   int4-b16" in shown and "lamp" in shown
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["scheme"]["block_size"] == 16


def test_a_target_is_one_row(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    shown = program(
        "import dataclasses, export.target as table\n"
        "row = dataclasses.replace(table.TARGETS['cpu'], name='toaster', context_tokens=192)\n"
        "table.TARGETS['toaster'] = row",
        ["export", "--help"],
        ["export", "tiny", out, "--target", "toaster", "--quiet"],
        ["run", out, "Turn off the lamp in the kitchen.", "--chat"],
    )
    words = " ".join(shown.split())
    assert "|toaster]" in words and "192 (toaster)" in words and "lamp" in words
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (manifest["target"], manifest["context_tokens"]) == ("toaster", 192)
    plan = (
        "import phi_edge.verbs.demo, pathlib; print([s.words for s in phi_edge.verbs.demo.plan(pathlib.Path('demo'))])"
    )
    assert "demo/toaster" in program(f"import export.target as t; t.TARGETS['toaster'] = t.TARGETS['cpu']\n{plan}")


OPTION = """
import dataclasses, export.request as r
@dataclasses.dataclass(frozen=True, kw_only=True)
class Wider(r.ExportRequest):
    crust: str = r._option("--crust", "How much of it is kept.", "thin", choices=("thin", "thick"))
r.ExportRequest = Wider
"""


def test_an_export_option_is_one_field() -> None:
    assert "--crust [thin|thick]" in program(OPTION, ["export", "--help"])
    argparse_s = (
        "import argparse; from optimum.commands.register.register_phi_edge import PhiEdgeExportCommand as Command\n"
        "parser = argparse.ArgumentParser(); Command.parse_args(parser); parser.print_help()"
    )
    assert "--crust {thin,thick}" in program(f"{OPTION}\n{argparse_s}")
    digests = (
        "from pathlib import Path; from export.pipeline import describe_job, resolve_judged\n"
        "one, other, again = (resolve_judged(Wider(checkpoint='tiny', out=Path(o), crust=c)) for o, c in "
        "(('a', 'thin'), ('a', 'thick'), ('b', 'thin')))\n"
        "print(describe_job(*one) == describe_job(*again), describe_job(*one) == describe_job(*other))"
    )
    assert program(f"{OPTION}\n{digests}") == "True False\n"


def test_a_metric_is_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = metrics.Metric(
        "slowest_token_s", "Slowest token", "s", "lower", metrics.METRICS["itl_p99_s"].samples, "The longest gap.", 1.0
    )
    monkeypatch.setitem(cast(dict[str, metrics.Metric], metrics.METRICS), row.name, row)
    file, budgets = tmp_path / "m.json", tmp_path / "budgets.toml"
    file.write_text(fake_measurement().to_json())
    budgets.write_text("[[budget]]\nmax_slowest_token_s = 0.000001\n")
    shown = CliRunner().invoke(main, ["report", str(file), "--markdown", "--json", "-"])
    assert shown.exit_code == 0, shown.output
    assert "Slowest token" in shown.stdout and '"slowest_token_s"' in shown.stdout
    judged = CliRunner().invoke(main, ["gate", str(file), "--budgets", str(budgets)])
    assert judged.exit_code == 1 and "slowest_token_s" in judged.stdout


def test_a_raw_figure_is_in_four_files() -> None:
    rooms = [
        path for room in ("export", "runtimes", "devices", "phi_edge") for path in (REPOSITORY / room).rglob("*.py")
    ]
    naming = {str(path.relative_to(REPOSITORY)) for path in rooms if "gpu_shared_bytes" in path.read_text()}
    assert naming == {"runtimes/api.py", "runtimes/system/memory.py", "devices/measure/metrics.py"}
    native = (REPOSITORY / "runtimes" / "native").glob("*.[ch]")
    assert [path.name for path in native if "anonymous_bytes" in path.read_text()] == ["memory.c"]


def test_a_verb_is_one_file_and_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "greet.py").write_text(
        "import click\nfrom phi_edge.verb import Verb\n"
        "@click.command('greet', cls=Verb, examples=['phi-edge greet'])\n"
        "def greet_command() -> None:\n    '''Say hello.'''\n    click.echo('hello')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(phi_edge.main.VERBS, "greet", "greet:greet_command")
    assert CliRunner().invoke(main, ["greet"]).stdout == "hello\n"
    assert re.search(r"greet +Say hello\.", CliRunner().invoke(main, ["--help"]).stdout)
