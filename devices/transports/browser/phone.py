"""Chrome on an Android phone: its DevTools socket brought here by adb, and this machine's site brought there.

The site's pages are at http://127.0.0.1 there, too, which browsers take for a secure place: WebGPU is there. Their port
on the phone is always the same, so that what one of them leaves behind, when it is killed, the next one finds.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from devices.transports.adb.devices import Client, call_adb, choose_device
from devices.transports.timeouts import DEFAULT_TIMEOUTS
from runtimes.errors import TransportError

CHROME = "com.android.chrome"
SOCKET = "localabstract:chrome_devtools_remote"
# With the screen on, and Chrome in front: pages that nobody sees are slowed down.
START = (
    "input keyevent KEYCODE_WAKEUP; "
    f"am start -W -a android.intent.action.MAIN -c android.intent.category.LAUNCHER -p {CHROME}"
)


@dataclass(frozen=True)
class Phone:
    """Which one, and the port of our site there."""

    serial: str
    port: int
    client: Client


@contextlib.contextmanager
def phone_chrome(phone: Phone, site: str) -> Iterator[tuple[str, str]]:
    """The phone's Chrome, started, with `site` of this machine. -> DevTools' address here, the site's address there.

    Raises TransportError.
    """
    serial = choose_device(phone.serial, phone.client, DEFAULT_TIMEOUTS).serial

    def adb(*words: str) -> str:
        return call_adb(phone.client, "-s", serial, *words, deadline_s=DEFAULT_TIMEOUTS.command_s)

    def undo(*words: str) -> None:
        with contextlib.suppress(TransportError):  # a phone that has gone has nothing left
            adb(*words)

    printed = adb("shell", f"{{ {START}; }} 2>&1 || :")
    if "Error" in printed:
        raise TransportError(
            f"the phone {serial} did not start Chrome: {' '.join(printed.split())}; install it from its store",
            command=START.split(),
        )
    with contextlib.ExitStack() as opened:
        there = f"tcp:{phone.port}"
        adb("reverse", there, f"tcp:{urlsplit(site).port}")
        opened.callback(undo, "reverse", "--remove", there)
        here = adb("forward", "tcp:0", SOCKET).strip()
        opened.callback(undo, "forward", "--remove", f"tcp:{here}")
        yield f"http://127.0.0.1:{here}", f"http://127.0.0.1:{phone.port}"
