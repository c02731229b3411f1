"""Loops that numba compiles for this processor, and keeps on disk: compiling takes longer than a small export."""

from __future__ import annotations

from collections.abc import Callable, Collection

import numba
import numpy as np

Loop = Callable[..., None]

# A float32's bits without its sign. As whole numbers they have the order of the magnitudes; and of whole numbers the
# compiler finds the largest eight or sixteen at a time, of floats one after another, for the sake of NaN.
MAGNITUDE = np.int32(0x7FFFFFFF)


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
