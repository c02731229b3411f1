"""pip with this machine's way to its packages and no other setting of this machine.

    python ci/plain_pip.py download -d FOLDER PACKAGE==VERSION ...

A mirror, a proxy or a certificate, in a PIP_ variable or in a pip.conf, is needed to reach anything. A constraint, a
target folder or a preference for source packages, made for other work, would change what a test or a build gets.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys

# pip's options for where packages are and how to get there.
KEPT = (
    "cache-dir",
    "cert",
    "client-cert",
    "default-timeout",
    "extra-index-url",
    "find-links",
    "index-url",
    "keyring-provider",
    "proxy",
    "retries",
    "timeout",
    "trusted-host",
)


def environment() -> dict[str, str]:
    """This process's environment for a pip that reads no file of settings and only the variables that are kept."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=60).stdout
    others = {name: value for name, value in os.environ.items() if not name.upper().startswith("PIP_")}
    return others | kept(listed) | {"PIP_CONFIG_FILE": os.devnull, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def kept(listed: str) -> dict[str, str]:
    """What `pip config list` prints -> variables. A command's section goes before [global], a variable before both."""
    found: dict[str, tuple[int, str]] = {}
    for line in listed.splitlines():
        name, separator, value = line.partition("=")
        section, _, option = name.rpartition(".")
        rank = {"global": 0, "install": 1, "download": 1, ":env:": 2}.get(section)
        if separator and rank is not None and option in KEPT and rank >= found.get(option, (0, ""))[0]:
            found[option] = rank, str(ast.literal_eval(value))
    return {f"PIP_{option.upper().replace('-', '_')}": value for option, (_, value) in found.items()}


if __name__ == "__main__":
    sys.exit(subprocess.run([sys.executable, "-m", "pip", *sys.argv[1:]], env=environment(), check=False).returncode)
