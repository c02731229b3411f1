"""What ExecuTorch says while it lowers, kept from the user."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Iterator

LAST_LINES = 20  # of what ExecuTorch printed, shown when lowering fails


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """ExecuTorch's lowering warns and logs about itself; none of it is about the user's model. Where lowering fails,
    the last lines of what it printed are shown."""
    root, printed = logging.getLogger(), io.StringIO()
    level = root.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root.setLevel(logging.ERROR)
        try:
            with contextlib.redirect_stderr(printed):
                yield
        except Exception:
            print(*printed.getvalue().splitlines()[-LAST_LINES:], sep="\n", file=sys.stderr)
            raise
        finally:
            root.setLevel(level)
