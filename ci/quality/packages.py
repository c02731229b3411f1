"""A package that only a peer needs, in a folder of its own: the project's environment stays as it is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from ci.plain_pip import environment

DOWNLOAD_S = 900.0


def beside(cache: Path, requirement: str) -> Path:
    """The folder that holds `requirement`, such as name==1.2, without its dependencies; downloaded unless it is there.

    Raises subprocess.CalledProcessError where pip cannot get it.
    """
    folder = cache / "packages" / requirement
    if not folder.is_dir():
        part = folder.with_name(f"{requirement}.part{os.getpid()}")
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--only-binary=:all:", "--no-compile"]
        subprocess.run(
            [*command, "--target", str(part), requirement], check=True, timeout=DOWNLOAD_S, env=environment()
        )
        part.rename(folder)
    return folder


def with_packages(*folders: Path) -> Mapping[str, str]:
    """This process's environment for a python that finds the packages of these folders, too."""
    here = os.environ.get("PYTHONPATH")
    return os.environ | {"PYTHONPATH": os.pathsep.join([*map(str, folders), *([here] if here else [])])}
