"""Write a Windows library without code, whose functions are another library's: what Debian's Wine 8 lacks.

    python -m fakes.wine.forwards FOLDER

bcryptprimitives.dll's ProcessPrng is advapi32's SystemFunction036 (RtlGenRandom): both fill a buffer. The formats are
the PE/COFF specification's; the words beside the numbers are its own.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Mapping
from pathlib import Path

NAME = "bcryptprimitives.dll"
FUNCTIONS = {"ProcessPrng": "ADVAPI32.SystemFunction036"}
BASE, PAGE, BLOCK = 0x1000, 0x1000, 512


def library(name: str, functions: Mapping[str, str]) -> bytes:
    """A 64-bit DLL. `functions`: exported name -> LIBRARY.FUNCTION."""
    section = exports(name, functions)
    raw_size = -(-len(section) // BLOCK) * BLOCK
    headers = b"MZ" + bytes(58) + struct.pack("<I", 64) + b"PE\0\0"
    # Machine x64, one section, size of the optional header, executable DLL with large addresses.
    headers += struct.pack("<HHIIIHH", 0x8664, 1, 0, 0, 0, 240, 0x2022)
    # PE32+, no code: SizeOfInitializedData, BaseOfCode.
    headers += struct.pack("<HBBIIIII", 0x20B, 0, 0, 0, raw_size, 0, 0, BASE)
    image = BASE + -(-len(section) // PAGE) * PAGE
    # ImageBase, alignments, versions, SizeOfImage, SizeOfHeaders, checksum, subsystem, characteristics.
    headers += struct.pack("<QIIHHHHHHIIIIHH", 0x180000000, PAGE, BLOCK, 6, 0, 0, 0, 6, 0, 0, image, BLOCK, 0, 2, 0x160)
    headers += struct.pack("<QQQQII", 1 << 20, PAGE, 1 << 20, PAGE, 0, 16)  # stack, heap, 16 directories
    headers += struct.pack("<II", BASE, len(section)) + bytes(8 * 15)  # the exports' directory alone
    headers += struct.pack("<8sIIIIIIHHI", b".rdata", len(section), BASE, raw_size, BLOCK, 0, 0, 0, 0, 0x40000040)
    return headers.ljust(BLOCK, b"\0") + section.ljust(raw_size, b"\0")


def exports(name: str, functions: Mapping[str, str]) -> bytes:
    """The export directory, its three tables, and its texts. An address inside it is a forward."""
    names = sorted(functions)
    count = len(names)
    tables = [40, 40 + 4 * count, 40 + 8 * count]
    texts, places = b"", []
    for text in (name, *names, *(functions[each] for each in names)):
        places.append(BASE + 40 + 10 * count + len(texts))
        texts += text.encode("ascii") + b"\0"
    addresses = [BASE + table for table in tables]
    directory = struct.pack("<IIHHIIIIIII", 0, 0, 0, 0, places[0], 1, count, count, *addresses)
    forwards, named = places[1 + count :], places[1 : 1 + count]
    return directory + struct.pack(f"<{2 * count}I{count}H", *forwards, *named, *range(count)) + texts


if __name__ == "__main__":
    (Path(sys.argv[1]) / NAME).write_bytes(library(NAME, FUNCTIONS))
