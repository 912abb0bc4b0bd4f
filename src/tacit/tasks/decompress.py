"""Bring files back from an archive of `tacit compress`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tacit.coding import files, weights
from tacit.coding.archive import Reader, check, number, safe_name, unpack_raw
from tacit.coding.blocks import BlockCoder
from tacit.coding.exact import machine
from tacit.errors import ArchiveError, TacitError
from tacit.model import Model
from tacit.spaces import Space, Waveform
from tacit.tasks.run import Run, build
from tacit.training.progress import counting

# Entries of a block, at most: what an index may ask memory for.
_MOST_ENTRIES = 2**28


def decompress(archive: Path, run: Path | None = None, *, out: Path | None = None, only: tuple[str, ...] = ()) -> Path:
    """Bring back the files of an archive, all or some of them, into a new folder.

    Args:
        archive: the archive.
        run: the run folder of the model that compressed it; not needed where the archive holds its model.
        out: the folder to make; the archive's name without its ending by default.
        only: names of files to bring back, as they stand in the archive; all of them by default.

    Returns:
        The folder.

    Raises:
        ArchiveError: the archive is damaged, is of another model or machine, or holds no such file, or the folder is
            there. Nothing is written then.
    """
    out = out or archive.with_name(
        archive.name.removesuffix(".tacit") + ("" if archive.suffix == ".tacit" else ".files")
    )
    if out.exists():
        raise ArchiveError(f"{out} is there already: give another --out")
    reader = Reader(archive)
    aside = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        if not only:
            reader.verify()
        coder = _coder(reader, run)
        names = {entry.get("name") for entry in _entries(reader)}
        if missing := [name for name in only if name not in names]:
            raise ArchiveError(f"{archive} holds no {missing[0]}: it has {', '.join(sorted(map(str, names))[:5])}, …")
        aside.mkdir(parents=True)
        rows = sum(number(block, "rows") for block in _list(reader.index, "blocks"))
        with counting("decompressing", rows) as done:
            for entry, data in bring_back(reader, coder, only or None, done):
                target = aside / safe_name(entry.get("name"))
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data)
                target.chmod(number(entry, "mode") & 0o777)
        aside.rename(out)
    except OSError as error:
        raise ArchiveError(
            f"{out} could not be written ({error.strerror}): free some space, or give another --out"
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        reader.close()
    return out


def bring_back(
    reader: Reader,
    coder: BlockCoder | None,
    only: tuple[str, ...] | None,
    done: Callable[[float], None] = lambda rows: None,
) -> Iterator[tuple[dict[str, Any], bytes]]:
    """The files of an archive one after the other, as the index has them, with their bytes; `done` is told of rows.

    Raises:
        ArchiveError: one does not come back as it was.
    """
    blocks, raw = _Rows(reader, coder, done), _Raw(reader)
    vocabulary = tuple(map(str, reader.header.get("vocabulary", ())))
    row, byte = 0, 0
    for entry in _entries(reader):
        # Files lie one after the other, their rows in the blocks or their bytes among the raw ones.
        start, (row, byte) = (row, byte), (row + number(entry, "rows", 0), byte + number(entry, "raw", 0))
        if only is not None and entry.get("name") not in only:
            continue
        how = entry.get("how")
        if not isinstance(how, dict):
            raise ArchiveError("the archive does not say what a file of it is: it is damaged")
        if "rows" in entry:
            data = files.put_together(blocks.take(start[0], row - start[0]), how, blocks.space, vocabulary)
        else:
            data = raw.take(start[1], byte - start[1])
        if check(files.checked_bytes(data, how)) != entry.get("check"):
            raise ArchiveError(f"{entry.get('name')} does not come back as it was: the archive is damaged")
        yield entry, data


def row_bytes(x: Tensor, space: Space) -> bytes:
    """Rows in the fewest whole bytes an entry, for xz."""
    return x.numpy().astype(_row_type(space)).tobytes()


def _row_type(space: Space) -> str:
    if isinstance(space, Waveform):
        return "<i2"
    return "<u1" if (space.levels or 0) <= 256 else "<u4"


class _Rows:
    """Rows of all blocks in order, of which one block at a time is in memory."""

    def __init__(self, reader: Reader, coder: BlockCoder | None, done: Callable[[float], None]):
        self.reader, self.coder, self.done = reader, coder, done
        self.blocks = _list(reader.index, "blocks")
        self.starts = [0]
        for block in self.blocks:
            self.starts.append(self.starts[-1] + number(block, "rows"))
        self.number, self.held = -1, torch.zeros(0)

    @property
    def space(self) -> Space:
        return self._known.space

    @property
    def _known(self) -> BlockCoder:
        if self.coder is None:
            raise ArchiveError(f"{self.reader.path} holds no model: give the --run that compressed it")
        return self.coder

    def take(self, start: int, count: int) -> Tensor:
        """Rows from `start` on."""
        if start + count > self.starts[-1]:
            raise ArchiveError("the archive speaks of rows that it does not hold: it is damaged")
        parts = []
        for i, block in enumerate(self.blocks):
            low, high = max(start, self.starts[i]), min(start + count, self.starts[i + 1])
            if low < high:
                if self.number != i:
                    self.number, self.held = i, self._decode(block)
                    self.done(len(self.held))
                parts.append(self.held[low - self.starts[i] : high - self.starts[i]])
        if not parts or len({part.shape[1:] for part in parts}) > 1:
            raise ArchiveError("the archive's rows do not fit each other: it is damaged")
        return torch.cat(parts)

    def _decode(self, block: dict[str, Any]) -> Tensor:
        rows, shape, space = number(block, "rows"), block.get("shape"), self.space
        unbounded = bool(getattr(self._known.given, "unbounded", False))
        if not isinstance(shape, list) or not all(isinstance(n, int) and n > 0 for n in shape):
            raise ArchiveError("the archive does not say what shape its rows have: it is damaged")
        entries = int(np.prod([rows, *shape], dtype=object))
        if (tuple(shape) != space.shape and not (unbounded and len(shape) == 1)) or entries > _MOST_ENTRIES:
            raise ArchiveError(f"the archive asks for {rows} rows of shape {tuple(shape)}: it is damaged")
        payload = self.reader.section(block)
        if block.get("coding") == "xz":
            data = unpack_raw(payload, entries * np.dtype(_row_type(space)).itemsize, 8 * _MOST_ENTRIES)
            return torch.from_numpy(np.frombuffer(data, _row_type(space)).astype(space.dtype)).view(rows, *shape)
        return self._known.decode(payload, rows, shape[0] if unbounded else None).view(rows, *shape)


class _Raw:
    """Bytes of all files that no model coded, of which one part at a time is in memory."""

    def __init__(self, reader: Reader):
        self.reader, self.parts = reader, _list(reader.index, "raw")
        self.starts = [0]
        for part in self.parts:
            self.starts.append(self.starts[-1] + number(part, "size"))
        self.number, self.held = -1, b""

    def take(self, start: int, count: int) -> bytes:
        found = b""
        for i, part in enumerate(self.parts):
            low, high = max(start, self.starts[i]), min(start + count, self.starts[i + 1])
            if low < high:
                if self.number != i:
                    payload = self.reader.section(part)
                    self.number, self.held = i, unpack_raw(payload, number(part, "size"))
                found += self.held[low - self.starts[i] : high - self.starts[i]]
        if len(found) != count:
            raise ArchiveError("the archive speaks of bytes that it does not hold: it is damaged")
        return found


def _coder(reader: Reader, run: Path | None) -> BlockCoder | None:
    """What decodes the archive's blocks; None where none needs a model."""
    blocks = _list(reader.index, "blocks")
    if not blocks:
        return None
    model = _model(reader, run)
    here = reader.header.get("machine")
    if here is not None and here != machine():
        raise ArchiveError(
            f"{reader.path} was written with --this-machine-only on another machine ({here}): decompress it there"
        )
    return BlockCoder(model, portable=here is None)


def _model(reader: Reader, run: Path | None) -> Model:
    try:
        if "weights" in reader.index:
            model = weights.unpack(build(reader.header["model"]), reader.section(reader.index["weights"]))
        elif run is None:
            raise ArchiveError(f"{reader.path} holds no model: give the --run that compressed it")
        else:
            model = Run(run).model
        expected = reader.header["fingerprint"]
    except (KeyError, TypeError) as error:
        raise ArchiveError(f"{reader.path} does not describe its model ({error!r}): it is damaged") from error
    except ArchiveError:
        raise
    except TacitError as error:
        written = reader.header.get("tacit")
        raise ArchiveError(
            f"{reader.path}, written by tacit {written}, needs a model that is not here ({error})"
        ) from error
    if weights.fingerprint(model) != expected:
        raise ArchiveError(
            f"{run} is not the model that wrote {reader.path} (its weights differ): give the one that did"
        )
    return model


def _entries(reader: Reader) -> list[dict[str, Any]]:
    return _list(reader.index, "files")


def _list(record: dict[str, Any], name: str) -> list[dict[str, Any]]:
    found = record.get(name)
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise ArchiveError(f"the archive's index has no list of {name}: it is damaged")
    return found
