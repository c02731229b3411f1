"""The command line as a whole: help without libraries, suggestions, exit codes, and strangers' files beside it."""

from __future__ import annotations

import inspect
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

import phi_edge
from ci.cli_page import PAGE, page
from devices.errors import DeviceError
from export.request import export_options
from phi_edge.errors import missing_module
from phi_edge.main import VERBS, main
from phi_edge.verb import Verb
from phi_edge.verbs import demo
from runtimes.system.size import size_text

REPOSITORY = Path(__file__).parent.parent
COMMAND = Path(sys.executable).parent / "phi-edge"

# An interpreter in which only the standard library, click and our own packages can be imported.
BARE = """
import importlib.abc, sys
OURS = {"click", "phi_edge", "export", "runtimes", "devices", "__main__"}
class Nothing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in OURS and top not in sys.stdlib_module_names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Nothing())
for name in [name for name in sys.modules if name.partition(".")[0] not in OURS | sys.stdlib_module_names]:
    del sys.modules[name]
from phi_edge.main import main
main(sys.argv[1:], prog_name="phi-edge")
"""


def bare(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-c", BARE, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def run(*words: str) -> Result:
    return CliRunner().invoke(main, words, prog_name="phi-edge")


def verb(name: str) -> Verb:
    command = main.get_command(click.Context(main), name)
    assert isinstance(command, Verb)
    return command


@pytest.mark.parametrize("words", [["--help"], *([*name.split(), "--help"] for name in VERBS)], ids=" ".join)
def test_help_needs_click_alone(words: list[str]) -> None:
    shown = bare(*words)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.startswith("Usage: phi-edge")


@pytest.mark.parametrize("artifact", ["tiny_onnx_short", "tiny_executorch"])
@pytest.mark.parametrize("options", [[], ["--against", "tiny"]], ids=["whole", "against"])
def test_check_prints_nothing_of_its_libraries(
    artifact: str, options: list[str], request: pytest.FixtureRequest
) -> None:
    """As a user starts it: their native code writes to stderr by itself."""
    command = [COMMAND, "check", request.getfixturevalue(artifact), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout and done.stderr == ""


@pytest.mark.parametrize(
    ("words", "installed_by"),
    [
        (["demo", "--out", "demo"], "phi-edge'"),
        (["export", "tiny", "out"], "phi-edge"),
        (["report", "measurement.json", "--html", "out.html"], "phi-edge"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_missing_library_is_one_line_that_names_verb_and_installation(
    words: list[str], installed_by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "measurement.json").write_text((REPOSITORY / "tests/golden/report.md").read_text())
    shown = bare(*words)
    assert shown.returncode == 2
    assert shown.stderr.count("\n") == 1, shown.stderr
    if words[0] != "report":  # whose file is read before any library is needed
        assert shown.stderr.startswith(f"Error: `phi-edge {words[0]}` needs ")
        assert installed_by in shown.stderr


def test_an_extra_s_library_and_a_plain_one() -> None:
    assert missing_module("report", "report", "matplotlib").endswith("pip install 'phi-edge[report]'")
    assert missing_module("report", "report", "rich").endswith("pip install 'phi-edge'")


@pytest.mark.parametrize("name", VERBS)
def test_every_help_has_examples_that_parse(name: str) -> None:
    command = verb(name)
    assert command.examples
    for example in command.examples:
        words = example.rpartition("| ")[2]
        assert words.startswith(f"phi-edge {name}")
        rest = shlex.split(words)[1 + len(name.split()) :]
        command.make_context(name, rest, parent=click.Context(main, **main.context_settings))


@pytest.mark.parametrize("name", VERBS)
def test_every_option_has_a_help_and_says_its_default(name: str) -> None:
    with click.Context(main, info_name="phi-edge", **main.context_settings) as parent:
        context = click.Context(verb(name), info_name=name, parent=parent)
        for parameter in verb(name).params:
            if not isinstance(parameter, click.Option):
                continue
            record = parameter.get_help_record(context)
            assert record is not None and parameter.help, parameter
            assert parameter.is_flag or "[default:" in record[1] or "[required]" in record[1], record


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["exprot"], "unknown verb 'exprot'; known: export, check, "),
        (["exprot"], "did you mean export?"),
        (["lab"], "'lab' needs a second word: lab list or lab run"),
        (["lab", "--help"], "'lab' needs a second word: lab list or lab run"),
        (["lab", "lits"], "unknown verb 'lab lits'; known: "),
        (["lab", "lits"], "did you mean lab list?"),
        (["--verison"], "unknown option --verison; did you mean --version?"),
        (["export", "tiny", "out", "--tarrget", "cpu"], "unknown option --tarrget; did you mean --target?"),
        (["export", "tiny", "out", "--target", "raspbery-pi"], "--target: unknown 'raspbery-pi'; known: cpu, "),
        (["export", "tiny", "out", "--target", "raspbery-pi"], "did you mean raspberry-pi?"),
        (["export", "tiny", "out", "--max-file-size", "5 feet"], "--max-file-size: '5 feet' is not a size; give "),
        (["export", "tiny"], "OUT is missing; an example: phi-edge export tiny my-artifact; see `phi-edge export --he"),
        (
            ["bench", "artifact"],
            "give either --out FILE or --out-dir FOLDER; an example: phi-edge bench my-artifact --out here.json",
        ),
        (["bundle", "artifact", "out", "--for", "androit"], "did you mean android?"),
        (["doctor", "no-such-device"], "unknown device 'no-such-device'; known: local"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_word_is_one_line_with_the_right_one(words: list[str], message: str) -> None:
    result = run(*words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
    assert message in result.stderr


def test_a_folder_that_the_system_does_not_allow_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    result = run("demo", "--out", str(tmp_path / "demo"))
    assert (result.exit_code, result.stderr) == (2, f"Error: {tmp_path / 'demo'}: Permission denied\n")


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (4_321, "4 kB"),
        (2_600_000, "2.6 MB"),
        (999_600_000, "1.00 GB"),
        (3.6e9, "3.60 GB"),
    ],
)
def test_a_size_is_in_the_unit_that_shows_it(count: float, text: str) -> None:
    assert size_text(count) == text


def test_a_step_that_could_not_do_its_work_ends_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "plan", lambda out: [demo.Step("Fails", ["no-such-verb"])])
    result = run("demo", "--out", str(tmp_path / "demo"))
    assert result.exit_code == 2
    assert result.stderr.endswith("Error: step 1 of 1 failed with exit code 2: phi-edge no-such-verb\n")


@pytest.mark.parametrize(
    ("raised", "exit_code", "said"),
    [
        (KeyboardInterrupt(), 130, "Interrupted\n"),
        (ImportError("numpy is broken"), 130, "Interrupted\n"),
        (OSError(12, "Cannot allocate memory"), 2, "Error: the system refused more memory (ulimit -v?)"),
        (OSError(28, "No space left on device"), 2, "Error: the output cannot be written (No space left on device)"),
        (OSError(28, "No space left on device", "from", None, "to"), 2, "Error: to: No space left on device\n"),
        (PermissionError(13, "Permission denied", "/x\x1b[2J"), 2, "Error: /x\ufffd[2J: Permission denied\n"),
        (DeviceError("a\nError: b\x1b[0m"), 2, "Error: a Error: b\ufffd[0m\n"),
        (ZeroDivisionError("a bug"), 70, "This is a bug of phi-edge: please report it with the lines above.\n"),
    ],
    ids=lambda value: repr(value),
)
def test_how_a_command_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: BaseException, exit_code: int, said: str
) -> None:
    def fail(out: Path) -> None:
        if isinstance(raised, ImportError):
            raise raised from KeyboardInterrupt()
        raise raised

    monkeypatch.setattr(demo, "plan", fail)
    monkeypatch.setattr("phi_edge.errors.silence", lambda descriptor: None)
    result = run("demo", "--out", str(tmp_path / "demo"))
    assert result.exit_code == exit_code and said in result.stderr


# An interpreter in which Ctrl-C comes when a module is imported.
PRESSED = """
import os, signal, sys
module = sys.argv.pop(1)
class Pressing:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Pressing())
from phi_edge.__main__ import run
run()
"""


@pytest.mark.parametrize(
    ("module", "ended"), [("phi_edge.errors", (-signal.SIGINT, "")), ("numpy._core.multiarray", (130, "Interrupted\n"))]
)
def test_ctrl_c_in_the_middle_of_an_import(tiny_onnx: Path, module: str, ended: tuple[int, str]) -> None:
    command = [sys.executable, "-P", "-c", PRESSED, module, "run", str(tiny_onnx), "Hi", "--max-new-tokens", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stderr, done.stdout) == (*ended, "")


@pytest.mark.parametrize(
    ("words", "incomplete", "offered"),
    [
        ("phi-edge export tiny out --target", "", "cpu raspberry-pi android windows-directml webgpu web cuda"),
        ("phi-edge export tiny out --scheme", "int4-b32", "int4-b32 int4-b32-e8 int4-b32-e8-weighted int4-b32-e8-gptq"),
        ("phi-edge export tiny out --activations", "", "float32 float16"),
        ("phi-edge bundle artifact out --for", "", "android windows raspberry-pi web ollama foundry hub"),
        ("phi-edge bench artifact --device", "p", "pi5 phone"),
        ("phi-edge doctor", "l", "local"),
    ],
)
def test_completion(words: str, incomplete: str, offered: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lab.toml").write_text(
        '[device.pi5]\ntransport = "ssh"\nhost = "pi5"\n[device.phone]\ntransport="adb"\n'
    )
    monkeypatch.chdir(tmp_path)
    environment = {
        "_PHI_EDGE_COMPLETE": "bash_complete",
        "COMP_WORDS": f"{words} {incomplete}",
        "COMP_CWORD": str(len(words.split())),
    }
    result = CliRunner().invoke(main, [], prog_name="phi-edge", env=environment)
    assert [row.partition(",")[2] for row in result.stdout.splitlines()] == offered.split()


def test_the_page_is_the_help() -> None:
    assert page() == PAGE.read_text(encoding="utf-8"), "run `make docs`"


def test_optimum_s_command_line_has_the_same_options() -> None:
    optimum = Path(sys.executable).parent / "optimum-cli"
    shown = subprocess.run(
        [optimum, "export", "phi-edge", "--help"], capture_output=True, text=True, timeout=120, check=True
    ).stdout
    flags = {opt for each in verb("export").params if isinstance(each, click.Option) for opt in each.opts}
    assert {option.flag for option in export_options()} < flags
    assert [flag for flag in flags if f"{flag} " not in shown and f"{flag}]" not in shown] == []


# Strangers: files of the user's that have our rooms' names.


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The user's folder, which is their home as well, with an export.py and a package runtimes of their own."""
    (tmp_path / "export.py").write_text("raise SystemExit('their own file was imported')\n")
    for room in ("runtimes", "devices"):
        (tmp_path / room).mkdir()
        (tmp_path / room / "__init__.py").write_text("raise SystemExit('their own package was imported')\n")
    return tmp_path


def in_home(home: Path, *command: object) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        list(map(str, command)),
        cwd=home,
        env=environment | {"HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize("name", VERBS)
def test_a_stranger_s_files_do_not_disturb_a_verb(home: Path, name: str) -> None:
    shown = in_home(home, COMMAND, name, "--help")
    assert (shown.returncode, shown.stderr) == (0, "")


def test_a_stranger_s_files_do_not_disturb_the_work(home: Path, tiny_onnx: Path) -> None:
    for words in (
        ["check", tiny_onnx],
        ["run", tiny_onnx, "Hello", "--max-new-tokens", "2"],
        ["run", tiny_onnx, "Hello", "--max-new-tokens", "2", "--device", "local"],
        ["bench", tiny_onnx, "--reps", "1", "--prompt-tokens", "4", "--generate-tokens", "2", "--out", "m.json"],
        ["report", "m.json", "--html", "m.html"],
        ["gate", "m.json", "--baseline", "m.json"],
        ["bundle", tiny_onnx, "app", "--for", "raspberry-pi"],
        ["export", "tiny", "again", "--dry-run"],
    ):
        done = in_home(home, COMMAND, *words)
        assert done.returncode == 0, (words, done.stderr)


def test_python_m_beside_a_stranger_s_file_is_one_line(home: Path) -> None:
    shown = in_home(home, sys.executable, "-m", "phi_edge", "--help")
    assert shown.returncode == 2
    assert shown.stderr.count("\n") == 1
    assert f"Error: {home / 'export.py'} hides the package 'export' of phi-edge: rename it" in shown.stderr
    assert in_home(home, sys.executable, "-P", "-m", "phi_edge", "--help").returncode == 0


@pytest.mark.parametrize("stranger", ["export.py", "runtimes", "devices"])
def test_an_app_beside_a_stranger_s_file_gets_an_import_error_that_names_it(home: Path, stranger: str) -> None:
    others = {"export.py", "runtimes", "devices"} - {stranger}
    for other in others:
        (home / other).rename(home / f"renamed_{other}")
    (home / "app.py").write_text("from phi_edge import open_runtime\n")
    shown = in_home(home, sys.executable, "app.py")
    found = home / stranger / "__init__.py" if stranger != "export.py" else home / stranger
    assert shown.returncode == 1
    assert shown.stderr.splitlines()[-1].startswith(f"ImportError: {found} hides the package ")


def test_a_folder_without_init_hides_nothing(home: Path) -> None:
    for path in (home / "export.py", *home.glob("*/__init__.py")):
        path.unlink()
    (home / "app.py").write_text("from phi_edge import open_runtime\nprint(open_runtime.__module__)\n")
    assert in_home(home, sys.executable, "app.py").stdout == "runtimes.registry\n"


def test_the_public_names() -> None:
    assert sorted(phi_edge.__all__) == phi_edge.__all__
    for name in phi_edge.__all__:
        assert getattr(phi_edge, name).__name__ == name
    with pytest.raises(AttributeError, match="phi_edge has no 'open_model'; it has Artifact, "):
        phi_edge.open_model  # noqa: B018
    assert inspect.isfunction(phi_edge.open_runtime)
