"""Loops that numba compiles for this processor, and keeps on disk: compiling takes longer than a small export."""

from __future__ import annotations

from collections.abc import Callable, Collection

import numba

Loop = Callable[..., None]


def compiled(*, fastmath: bool | Collection[str]) -> Callable[[Loop], Loop]:
    """A decorator: the loop in machine code, which lets other threads run. See numba's documentation for `fastmath`.

    The code is kept beside the source or, where that cannot be written, in the user's cache folder (NUMBA_CACHE_DIR
    names another); numba compiles again for another processor, source or version of its own.
    """
    settings = {"nogil": True, "fastmath": fastmath, "error_model": "numpy"}

    def decorate(loop: Loop) -> Loop:
        try:
            kept = numba.njit(cache=True, **settings)(loop)
        except RuntimeError:  # no folder can be written
            return numba.njit(**settings)(loop)  # type: ignore[no-any-return]

        def call(*arguments: object) -> None:
            try:
                kept(*arguments)
            except OSError:  # compiled by now, but not kept: the disk is full
                kept(*arguments)

        return call

    return decorate
