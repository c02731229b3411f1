"""Build the wheel, install it alone, and check that it has exactly the rooms and that every verb shows its help."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, python puts ci/ there

from ci.plain_pip import environment
from phi_edge.main import VERBS

REPOSITORY = Path(__file__).parent.parent
TOP_LEVEL = {"export", "runtimes", "devices", "phi_edge", "optimum"}
# The native agent is built from the installed package (docs/android.md): its sources, and yyjson's with their licence.
NATIVE = ("CMakeLists.txt", "agent.c", "yyjson/yyjson.c", "yyjson/yyjson.h", "yyjson/LICENSE")
# What a device with the onnx extra must be able to do without torch.
LIGHT = """
import sys
import export.artifact, runtimes.registry, devices.measure.measurement, phi_edge.main
heavy = {"torch", "transformers", "onnx", "executorch", "optimum"} & set(sys.modules)
assert not heavy, heavy
"""


def main() -> None:
    """Exit 0, or the assertion that failed."""
    settings = environment()
    with tempfile.TemporaryDirectory() as scratch:
        build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", scratch, str(REPOSITORY)]
        subprocess.run(build, check=True, env=settings)
        (wheel,) = Path(scratch).glob("phi_edge-*.whl")
        names = zipfile.ZipFile(wheel).namelist()
        seen = {name.split("/")[0] for name in names if ".dist-info" not in name}
        assert seen == TOP_LEVEL, f"the wheel has {sorted(seen)}, not {sorted(TOP_LEVEL)}"
        assert [n for n in names if n.startswith("optimum/")] == ["optimum/commands/register/register_phi_edge.py"]
        assert "export/tiny/model.safetensors" in names, "the wheel lacks the tiny model"
        assert any(name.endswith(".html.j2") for name in names), "the wheel lacks the report's template"
        page = ("phi_edge/serve/page.js", "runtimes/page/index.html", "runtimes/page/chat.js")
        assert {*page} <= {*names}, "the wheel lacks the server's chat page"
        lacking = [name for name in NATIVE if f"runtimes/native/{name}" not in names]
        assert not lacking, f"the wheel lacks {lacking} of runtimes/native"
        target = Path(scratch) / "venv"
        venv.create(target, with_pip=True)
        pip, python = target / "bin" / "pip", target / "bin" / "python"
        constraints = ["-c", str(REPOSITORY / "constraints.txt")]
        subprocess.run(
            [pip, "install", "--quiet", *constraints, f"{wheel}[onnx]"], check=True, cwd=scratch, env=settings
        )
        subprocess.run([python, "-c", LIGHT], check=True, cwd=scratch)
        for words in (["--help"], *([verb, "--help"] for verb in VERBS)):
            subprocess.run([target / "bin" / "phi-edge", *words], check=True, cwd=scratch, capture_output=True)
        missing = subprocess.run(
            [target / "bin" / "phi-edge", "export", "tiny", "out"], cwd=scratch, capture_output=True, text=True
        )
        assert missing.returncode == 2, missing.stderr
        assert "phi-edge[export]" in missing.stderr, missing.stderr
        installed = subprocess.run([pip, "list"], capture_output=True, text=True, check=True).stdout
        assert "torch" not in installed, "the onnx extra pulls torch"
    print(f"{wheel.name}: has {', '.join(sorted(TOP_LEVEL))}; installs and answers without torch")


if __name__ == "__main__":
    main()
