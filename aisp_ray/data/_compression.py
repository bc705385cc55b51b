"""Compressed files, known by their first bytes and not by their names; archives are refused in a sentence."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
from typing import Any, BinaryIO, cast

SUFFIXES = (".gz", ".gzip", ".bz2", ".xz", ".zst", ".zstd", ".lz4")
_STARTS = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bz2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
}
_ARCHIVES = {b"PK\x03\x04": "a ZIP archive", b"7z\xbc\xaf": "a 7z archive", b"Rar!": "a RAR archive"}
_TAR = slice(257, 262)


class ArchiveError(ValueError):
    """The file holds other files, not rows."""


def open_unpacked(stream: Any, name: str) -> BinaryIO:
    """The bytes that a buffered stream holds, decompressed where it is compressed.

    Raises:
        ArchiveError: it is an archive of files (ZIP, tar, 7z, RAR; .xlsx is a ZIP too).
    """
    start = bytes(stream.peek(512)[:512])
    kind = next((kind for magic, kind in _STARTS.items() if start.startswith(magic)), None)
    if kind in ("zstd", "lz4"):
        import pyarrow as pa

        opened: Any = io.BufferedReader(pa.input_stream(stream, compression=kind), 1 << 16)
    elif kind == "gzip":
        opened = gzip.GzipFile(fileobj=stream)
    elif kind == "bz2":
        opened = bz2.BZ2File(stream)
    else:
        opened = stream if kind is None else lzma.LZMAFile(stream)  # noqa: SIM115
    with contextlib.suppress(OSError, EOFError, ValueError, lzma.LZMAError):  # a torn file says so when it is read
        start = bytes(opened.peek(512)[:512])
    archive = next((words for magic, words in _ARCHIVES.items() if start.startswith(magic)), None)
    archive = "a tar archive" if start[_TAR] == b"ustar" else archive
    if archive is not None:
        raise ArchiveError(f"{name} is {archive}, not a file of rows; unpack it and give the files inside")
    return cast(BinaryIO, opened)
