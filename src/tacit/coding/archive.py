"""The archive file: what it holds, and that nothing in it can be wrong without being noticed.

    magic, version | header | sections … | index | where the index is, SHA-256 of all before, magic

Header and index are JSON behind their lengths. In the index stand every section's place, length and CRC-32, and the
beginning of every file's SHA-256. The hash at the end covers every byte before it, and nothing may come after it. An
archive is written aside and renamed when it is whole. Numbers read from one are checked against the file's own length
before any memory is taken for them.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from tacit.errors import ArchiveError

_MAGIC = b"\x89tacit\r\n"
FORMAT = 1
# Format, length of the header and its CRC-32; then, at the end, those of the index, and where it begins.
_HEAD = struct.Struct("<HII")
_TAIL = struct.Struct("<QII")
_HASH = 32
# Of header and index, unpacked.
_MOST_JSON = 2**28
# Of what xz is to unpack at once: of a part of the files, and of a model's weights.
MOST_RAW, MOST_WEIGHTS = 2**24, 2**30


class Writer:
    """Writes an archive from its first byte to its last.

    Args:
        file: where to, open for writing.
        header: what stands before everything else.
    """

    def __init__(self, file: BinaryIO, header: dict[str, Any]):
        self.file, self.hash, self.at = file, hashlib.sha256(), 0
        packed = _pack(header)
        self._write(_MAGIC + _HEAD.pack(FORMAT, len(packed), zlib.crc32(packed)) + packed)

    def section(self, payload: bytes) -> dict[str, int]:
        """Write bytes; returns what the index is to say of them."""
        place = {"at": self.at, "length": len(payload), "crc": zlib.crc32(payload)}
        self._write(payload)
        return place

    def finish(self, index: dict[str, Any]) -> None:
        """Write the index and the end."""
        packed, at = _pack(index), self.at
        self._write(packed + _TAIL.pack(at, len(packed), zlib.crc32(packed)))
        self.file.write(self.hash.digest() + _MAGIC)
        self.file.flush()
        os.fsync(self.file.fileno())

    def _write(self, data: bytes) -> None:
        self.file.write(data)
        self.hash.update(data)
        self.at += len(data)


class Reader:
    """Reads an archive's header and index, and sections one by one.

    Args:
        path: the file.

    Raises:
        ArchiveError: it is no archive, is damaged or cut short, or has a format that this version does not know.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            self.file = path.open("rb")
        except OSError as error:
            raise ArchiveError(
                f"{path} cannot be read ({error.strerror}): give an archive of `tacit compress`"
            ) from None
        try:
            self._open()
        except BaseException:
            self.file.close()
            raise

    def _open(self) -> None:
        self.size = os.fstat(self.file.fileno()).st_size
        end = _TAIL.size + _HASH + len(_MAGIC)
        first = self.file.read(len(_MAGIC) + _HEAD.size)
        if not first.startswith(_MAGIC):
            raise ArchiveError(f"{self.path} is no archive of tacit: give one that `tacit compress` wrote")
        if len(first) < len(_MAGIC) + _HEAD.size or self.size < len(first) + end:
            raise ArchiveError(f"{self.path} ends too early: copy it again")
        version, length, crc = _HEAD.unpack(first[len(_MAGIC) :])
        if version > FORMAT:
            raise ArchiveError(f"{self.path} has format {version}, newer than {FORMAT}: upgrade tacit to read it")
        self.header = self._json(len(first), length, crc, "header")
        self.file.seek(self.size - end)
        tail = self.file.read(end)
        if not tail.endswith(_MAGIC):
            raise ArchiveError(f"{self.path} is cut short, or something was added to it: copy it again")
        at, length, crc = _TAIL.unpack(tail[: _TAIL.size])
        if at + length + end != self.size:
            raise ArchiveError(f"{self.path} is damaged (its index is not where it should be): copy it again")
        self.digest = tail[_TAIL.size : -len(_MAGIC)]
        self.index = self._json(at, length, crc, "index")

    def verify(self) -> None:
        """Read all of it.

        Raises:
            ArchiveError: a byte is not what was written.
        """
        self.file.seek(0)
        found, left = hashlib.sha256(), self.size - _HASH - len(_MAGIC)
        while left:
            data = self.file.read(min(left, 2**20))
            if not data:
                break
            found.update(data)
            left -= len(data)
        if found.digest() != self.digest:
            raise ArchiveError(f"{self.path} is damaged (its SHA-256 is not the recorded one): copy it again")

    def section(self, place: dict[str, Any]) -> bytes:
        """The bytes of a section.

        Raises:
            ArchiveError: they are not what was written.
        """
        data = self._read(number(place, "at"), number(place, "length"))
        if zlib.crc32(data) != place.get("crc"):
            raise ArchiveError(f"{self.path} is damaged (a section's checksum is not the recorded one): copy it again")
        return data

    def close(self) -> None:
        self.file.close()

    def _read(self, at: int, length: int) -> bytes:
        if at + length > self.size:
            raise ArchiveError(f"{self.path} is damaged (it speaks of bytes beyond its end): copy it again")
        self.file.seek(at)
        return self.file.read(length)

    def _json(self, at: int, length: int, crc: int, what: str) -> dict[str, Any]:
        packed = self._read(at, length)
        if zlib.crc32(packed) != crc:
            raise ArchiveError(f"{self.path} is damaged (its {what}'s checksum is not the recorded one): copy it again")
        try:
            found = json.loads(_unpack(packed))
        except (zlib.error, ValueError, RecursionError) as error:
            raise ArchiveError(f"{self.path} has a {what} that cannot be read ({error}): write it anew") from error
        if not isinstance(found, dict):
            raise ArchiveError(f"{self.path} has a {what} of another kind: write it anew")
        return found


def number(record: dict[str, Any], name: str, default: int | None = None) -> int:
    """A whole number of a record, 0 or more, or the default where there is none.

    Raises:
        ArchiveError: it is none.
    """
    value = record.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ArchiveError(f"the archive's index says that {name} is {value!r}, no whole number: write it anew")
    return value


def check(data: bytes) -> str:
    """The first 32 bits of the SHA-256: what says of a file, of which there may be many, that it came back."""
    return hashlib.sha256(data).hexdigest()[:8]


def safe_name(name: Any) -> PurePosixPath:
    """A file's name within the archive, which leads nowhere else.

    Raises:
        ArchiveError: it does.
    """
    path = PurePosixPath(name) if isinstance(name, str) else PurePosixPath("/")
    bad = path.is_absolute() or not path.parts or ".." in path.parts
    if bad or any(character in name for character in "\\\0:"):
        raise ArchiveError(
            f"the archive names a file {name!r}, which leads out of its folder: it was not written by tacit"
        )
    return path


def pack_raw(data: bytes) -> bytes:
    """Bytes by xz."""
    return lzma.compress(data, format=lzma.FORMAT_XZ, check=lzma.CHECK_NONE, preset=9 | lzma.PRESET_EXTREME)


def unpack_raw(data: bytes, size: int, most: int = MOST_RAW) -> bytes:
    """`size` bytes from what `pack_raw` made of them.

    Raises:
        ArchiveError: there are more or fewer, or these are none of xz's.
    """
    if size > most:
        raise ArchiveError(f"the archive asks for {size} bytes at once, and {most} are the most: it is damaged")
    try:
        found = lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(data, max_length=size + 1)
    except lzma.LZMAError as error:
        raise ArchiveError(f"the archive holds bytes that xz cannot read ({error}): it is damaged") from None
    if len(found) != size:
        raise ArchiveError(f"the archive holds {len(found)} bytes where {size} were written: it is damaged")
    return found


@contextmanager
def written_aside(path: Path) -> Iterator[BinaryIO]:
    """A file beside `path` that takes its place when all is written, and vanishes if not.

    Raises:
        ArchiveError: the disk is full or refuses.
    """
    aside = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("xb") as file:
            yield file
        aside.replace(path)
    except OSError as error:
        raise ArchiveError(
            f"{path} could not be written ({error.strerror}): free some space, or give another --out"
        ) from error
    finally:
        aside.unlink(missing_ok=True)


def _pack(record: dict[str, Any]) -> bytes:
    return zlib.compress(json.dumps(record, separators=(",", ":")).encode(), 9)


def _unpack(data: bytes) -> bytes:
    decoder = zlib.decompressobj()
    found = decoder.decompress(data, _MOST_JSON)
    if not decoder.eof or decoder.unused_data:
        raise ValueError("it is longer or shorter than it says")
    return found
