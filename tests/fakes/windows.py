"""A Windows lab device without hardware: a real sshd on 127.0.0.1 in front of Wine.

The wire, the client, cmd.exe's and Python's own taking apart of a command line, python.exe, its libraries and
onnxruntime's are real; Windows itself is Wine, and the server's way of starting a command is wine/session.py's.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType

from fakes.lab_file import lab_file
from fakes.sshd import SSHD, LocalSshd
from fakes.windows_session import missing as wine_lacks
from fakes.windows_session import own_windows, windows_path

NAME = "laptop"
START_S = 120.0
SESSION = Path(__file__).parent / "wine" / "session.py"
# Wine crashes now and then (139): when it starts, and nothing has been read, so it is started again; or when it ends,
# and the session has written its exit code down.
ENTRY = """for try in 1 2 3; do
  {command}; code=$?
  if [ $code -ne 139 ]; then break; fi
  if [ -s "$session" ]; then code=$(cat "$session"); fi
  if [ -e "$session" ]; then break; fi
done
rm -f "$session"
exit $code
"""


def missing() -> str | None:
    """What this machine lacks to emulate Windows behind ssh; None if nothing."""
    if (lacking := wine_lacks()) is not None:
        return lacking
    lacking_ssh = [name for name in (SSHD, "ssh", "Xvfb") if shutil.which(name) is None]
    return f"needs {', '.join(lacking_ssh)}: ci/install_system.sh" if lacking_ssh else None


class EmulatedWindows(LocalSshd):
    """`with EmulatedWindows(folder) as device: ... --lab device.lab --device laptop`."""

    def __init__(self, folder: Path) -> None:
        self._own = contextlib.ExitStack()
        self._entry = folder / "entry"
        super().__init__(folder, NAME, settings={"ForceCommand": str(self._entry)})
        self.lab = folder / "lab.toml"
        self.cache = folder / "Jürgen Håkansson 模型" / "cache of it"
        self._screen: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> EmulatedWindows:
        windows = self._own.enter_context(own_windows())
        environment = windows.environment | {
            "DISPLAY": self._start_screen(),
            "LC_ALL": "C.UTF-8",  # how Wine writes a file's name
            "WINEPATH": windows_path(windows.folder / "python"),
        }
        self._environment = os.environ | environment
        # Windows' services start with the first program, and end with the last: they must not belong to a session.
        self._services = subprocess.Popen(
            ["wine", "cmd"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=self._environment,
            start_new_session=True,
        )
        exported = "".join(f"export {name}='{value}'\n" for name, value in environment.items())
        python = windows.folder / "python" / "python.exe"
        # The shell stays, and says which signal ended Wine. Of its own child ssh says 255, as of a lost connection.
        command = f"wine '{python}' -IS '{windows_path(SESSION)}' \"Z:$session\""
        self._entry.write_text(f"#!/bin/sh\n{exported}session='{self._entry}'.$$\n{ENTRY.format(command=command)}")
        self._entry.chmod(0o755)
        self.prepare()
        self.lab.write_text(self.row())
        self.start()
        self._await_python()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        assert self._services.stdin is not None
        self._services.stdin.close()
        self._services.wait(60)
        if self._screen is not None:
            self._screen.kill()
            self._screen.wait()
        self._own.close()

    def row(self, **changes: str | None) -> str:
        """The lab file, with other or further keys; None leaves one out."""
        keys = {
            "transport": "windows",
            "host": NAME,
            "config": str(self.config),
            "cache": self.windows_cache,
            "python": "python",
        } | changes
        return lab_file(NAME, keys)

    @property
    def windows_cache(self) -> str:
        """The cache's folder as the device names it."""
        return "Z:" + str(self.cache)

    def _await_python(self) -> None:
        """On a busy machine cmd.exe was seen not to find python at first: Windows is on only once it does."""
        command = ["ssh", "-F", str(self.config), NAME, "python -IS -c pass"]
        until_s = time.monotonic() + START_S
        while (tried := subprocess.run(command, capture_output=True, timeout=START_S)).returncode != 0:
            if time.monotonic() > until_s:
                raise RuntimeError(f"the emulated Windows does not start: {tried.returncode}, {tried.stderr!r}")
            time.sleep(0.5)

    def _start_screen(self) -> str:
        """Wine's graphics adapters are those of a screen."""
        reading, writing = os.pipe()
        command = ["Xvfb", "-displayfd", str(writing), "-screen", "0", "640x480x24", "-nolisten", "tcp"]
        self._screen = subprocess.Popen(command, pass_fds=[writing], stderr=subprocess.DEVNULL)
        os.close(writing)
        with os.fdopen(reading) as told:
            return f":{told.readline().strip()}"
