"""Chrome on an Android phone: its DevTools socket brought here by adb, and this machine's site brought there.

The page is at http://127.0.0.1 on the phone, too, which browsers take for a secure place: WebGPU is there.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

from devices.transports.adb.devices import Client, call_adb, choose_device
from devices.transports.timeouts import DEFAULT_TIMEOUTS
from runtimes.errors import TransportError

CHROME = "com.android.chrome"
SOCKET = "localabstract:chrome_devtools_remote"
# With the screen on: pages in the background are slowed down.
START = f"input keyevent KEYCODE_WAKEUP; am start -W -a android.intent.action.VIEW -d about:blank -p {CHROME}"


@contextlib.contextmanager
def phone_chrome(site: str, serial: str, client: Client) -> Iterator[str]:
    """The phone's Chrome, running, which reaches `site` at the same address. -> DevTools' address on this machine.

    Raises TransportError.
    """
    limit_s = DEFAULT_TIMEOUTS.command_s
    serial = choose_device(serial, client, DEFAULT_TIMEOUTS).serial

    def adb(*words: str) -> str:
        return call_adb(client, "-s", serial, *words, deadline_s=limit_s)

    said = adb("shell", f"{{ {START}; }} 2>&1 || :")
    if "Error" in said:
        raise TransportError(
            f"the phone {serial} did not start Chrome: {' '.join(said.split())}; install it from its store",
            command=START.split(),
        )
    port = f"tcp:{urlsplit(site).port}"
    with contextlib.ExitStack() as opened:
        adb("reverse", port, port)
        opened.callback(_quietly, adb, "reverse", "--remove", port)
        here = adb("forward", "tcp:0", SOCKET).strip()
        if not re.fullmatch("[0-9]{1,5}", here):
            raise TransportError(f"adb forwarded DevTools to {here!r:.80}, which is no port")
        opened.callback(_quietly, adb, "forward", "--remove", f"tcp:{here}")
        yield f"http://127.0.0.1:{here}"


def _quietly(adb: Callable[..., str], *words: str) -> None:
    """What is left behind ends with the adb server; a phone that has gone has nothing left."""
    with contextlib.suppress(TransportError):
        adb(*words)
