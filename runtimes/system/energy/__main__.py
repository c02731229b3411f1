"""What this machine has used, for another one that measures it: a line of JSON each quarter of a second, until the end
of the input. The first line has `source`, null where nothing here can tell it, and then it is the only one.

python -P -m runtimes.system.energy [--once]      --once: only the first line
"""

from __future__ import annotations

import json
import sys
import threading

from runtimes.system.energy.meter import POWER_INTERVAL_S
from runtimes.system.energy.sources import find_sum


def main() -> None:
    """Print the lines."""
    found = find_sum()
    _print({"source": None if found is None else found.source})
    if found is None or "--once" in sys.argv[1:]:
        return
    ended = threading.Event()
    threading.Thread(target=_read, args=[ended], daemon=True).start()
    while not ended.is_set():
        _print({"joules": found.look()})
        ended.wait(POWER_INTERVAL_S)


def _read(ended: threading.Event) -> None:
    sys.stdin.buffer.read()
    ended.set()


def _print(line: dict[str, object]) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
