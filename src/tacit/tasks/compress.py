"""Store files smaller, without loss."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from tacit import __version__
from tacit.capabilities import has
from tacit.coding import archive, files, weights
from tacit.coding.blocks import BlockCoder
from tacit.coding.exact import machine
from tacit.errors import ArchiveError, check_at_least
from tacit.model import Model
from tacit.tasks.decompress import bring_back, row_bytes
from tacit.tasks.run import Run
from tacit.training.progress import counting

# Rows coded together by default: more share the beginning of a code, fewer are quicker to reach one by one.
_ROWS, _ROWS_BITS_BACK = 2000, 4000
# Eight bits a weight, unless they cost more than this share of the bits of a few rows.
_COST, _TRIED = 0.005, 64


def compress(
    run: Path,
    source: Path,
    *,
    out: Path | None = None,
    embed_model: bool = False,
    block_rows: int | None = None,
    this_machine_only: bool = False,
    verify: bool = True,
) -> Path:
    """Compress files by a trained model into one archive, from which `tacit decompress` brings them back.

    PNG images come back with the same pixels, all else with the same bytes. What the model does not take, other formats
    or sizes, is compressed by xz, as is what xz compresses better.

    Args:
        run: the run folder of the model.
        source: a file, or a folder of files.
        out: the archive; SOURCE.tacit by default.
        embed_model: store the model's weights too, so that the archive needs no run.
        block_rows: observations coded together: more are smaller, fewer are quicker to take one file from.
        this_machine_only: run the model as it is, without exact arithmetic; faster, and no other machine may decode it.
        verify: decode the archive and compare before saying that it is done.

    Returns:
        The archive.

    Raises:
        CapabilityError: the model cannot code, or not exactly.
        ArchiveError: a file cannot be read or changes, or the archive cannot be written.
    """
    found = Run(run)
    if block_rows is not None:
        check_at_least(1, block_rows=block_rows)
    out = out or source.with_name(f"{source.name}.tacit")
    paths = files_under(source, out)
    root, size = source if source.is_dir() else source.parent, sum(each.stat().st_size for each in paths)
    with archive.written_aside(out) as file:
        written = _Archive(file, found, embed_model, block_rows, this_machine_only)
        _fill(written, paths, root, size)
        if written.raw < written.writer.at:
            # The model is no good for these files: as xz would have it.
            file.seek(0)
            file.truncate()
            written = _Archive(file, found, False, block_rows, this_machine_only, all_raw=True)
            _fill(written, paths, root, size)
        if verify:
            _verify(Path(file.name), written)
    _say(out, written, size, len(paths))
    return out


def files_under(path: Path, out: Path) -> list[Path]:
    """The files to store, in order.

    Raises:
        ArchiveError: there are none, or one is a link or no plain file.
    """
    found = [path] if path.is_symlink() or not path.is_dir() else sorted(path.rglob("*"))
    plain: list[Path] = []
    for each in found:
        if each.is_symlink():
            raise ArchiveError(f"{each} is a link, and archives hold files: give what it points to")
        if each.is_dir() or (out.exists() and each.resolve() == out.resolve()):
            continue
        if not each.is_file():
            raise ArchiveError(f"{each} is no plain file: give files, or a folder of them")
        plain.append(each)
    if not plain:
        raise ArchiveError(f"{path} holds no files: give a file, or a folder of them")
    return plain


def _fill(written: _Archive, paths: list[Path], root: Path, size: int) -> None:
    with counting("compressing", size) as done:
        for each in paths:
            for count in written.add(each, each.relative_to(root).as_posix()):
                done(count)
        written.finish()


class _Archive:
    """An archive that is being written: rows to blocks, other bytes to xz."""

    def __init__(self, file: Any, run: Run, embed: bool, rows: int | None, here: bool, *, all_raw: bool = False):
        model, self.all_raw, self.embedded = run.model, all_raw, b""
        if embed:
            model, self.embedded = _small(model)
        self.coder = BlockCoder(model, portable=not here)
        self.rows = rows or (_ROWS_BITS_BACK if has(model, "bits-back") else _ROWS)
        self.space, self.vocabulary = model.space, run.vocabulary
        header = {
            "tacit": __version__,
            "model": {name: run.record[name] for name in ("model", "arguments", "space")},
            "fingerprint": weights.fingerprint(model),
            "machine": machine() if here else None,
            "vocabulary": self.vocabulary,
        }
        self.writer = archive.Writer(file, header)
        self.index: dict[str, Any] = {"files": [], "blocks": [], "raw": []}
        if embed:
            self.index["weights"] = self.writer.section(self.embedded)
        self.waiting, self.waiting_raw = list[Tensor](), bytearray()
        # What xz alone would make of all the files, and bits and entries of what the model coded.
        self.raw, self.whole, self.bits, self.entries = 0, bytearray(), 0, 0

    def add(self, path: Path, name: str) -> Iterator[float]:
        """Store a file; yields how many of its bytes are done, again and again."""
        data = files.read(path)
        content = files.Content(None, {"kind": "bytes"}, data, data)
        if not self.all_raw:
            unbounded = bool(getattr(self.coder.given, "unbounded", False))
            content = files.take_apart(data, self.space, self.vocabulary, unbounded)
            self._count_raw(data)
        left: float = len(data)
        entry: dict[str, Any] = {
            "name": name,
            "mode": path.stat().st_mode & 0o777,
            "check": archive.check(content.checked),
            "how": content.how,
        }
        if content.x is None:
            entry["raw"] = len(data)
            self.waiting_raw += data
            while len(self.waiting_raw) >= archive.MOST_RAW:
                self._flush_raw(archive.MOST_RAW)
        else:
            entry["rows"] = len(content.x)
            if self.waiting and self.waiting[0].shape[1:] != content.x.shape[1:]:
                self._flush()
            self.waiting.append(content.x)
            while sum(map(len, self.waiting)) >= self.rows:
                self._flush(self.rows)
                share = min(len(data), len(data) * self.rows / len(content.x))
                left -= min(share, left)
                yield share
        self.index["files"].append(entry)
        yield left

    def finish(self) -> None:
        self._flush()
        self._flush_raw(len(self.waiting_raw))
        self.raw += len(archive.pack_raw(bytes(self.whole)))
        self.writer.finish(self.index)

    def _flush(self, most: int | None = None) -> None:
        """Code what waits, or the first rows of it."""
        if not self.waiting:
            return
        x = torch.cat(self.waiting)
        x, rest = x[:most], x[most or len(x) :]
        self.waiting = [rest] if len(rest) else []
        coded = self.coder.encode(x)
        plain = archive.pack_raw(row_bytes(x, self.space))
        kind, payload = ("model", coded.payload) if len(coded.payload) <= len(plain) else ("xz", plain)
        self.bits += 8 * len(payload)
        self.entries += x.numel()
        block = {"rows": len(x), "shape": list(x.shape[1:]), "coding": kind, **self.writer.section(payload)}
        self.index["blocks"].append(block | {"initial": coded.initial})

    def _flush_raw(self, size: int) -> None:
        data, self.waiting_raw = bytes(self.waiting_raw[:size]), self.waiting_raw[size:]
        if data:
            self.index["raw"].append({"size": len(data), **self.writer.section(archive.pack_raw(data))})

    def _count_raw(self, data: bytes) -> None:
        self.whole += data
        while len(self.whole) >= archive.MOST_RAW:
            self.raw += len(archive.pack_raw(bytes(self.whole[: archive.MOST_RAW])))
            self.whole = self.whole[archive.MOST_RAW :]


def _small(model: Model) -> tuple[Model, bytes]:
    """The model with weights of eight bits, or of sixteen where it needs them, and these."""
    for bits in (8, 16):
        packed = weights.pack(model, bits)
        small = weights.unpack(model, packed)
        if bits == 16 or _cost(model, small) <= _COST:
            break
    return small, packed


@torch.no_grad()
def _cost(model: Any, small: Any) -> float:
    """What share more bits rows cost that the model itself draws."""
    x = model.sample(_TRIED)
    torch.default_generator.manual_seed(0)
    before = -model.log_prob(x).double().sum()
    torch.default_generator.manual_seed(0)
    return float((-small.log_prob(x).double().sum() - before) / before)


def _verify(path: Path, written: _Archive) -> None:
    reader = archive.Reader(path)
    try:
        reader.verify()
        rows = sum(block["rows"] for block in reader.index["blocks"])
        with counting("verifying", rows) as done:
            for _ in bring_back(reader, written.coder, None, done):
                pass
    except ArchiveError as error:
        raise ArchiveError(
            f"what was written does not decode ({error}): nothing was kept; please report this"
        ) from error
    finally:
        reader.close()


def _say(out: Path, written: _Archive, size: int, count: int) -> None:
    total = out.stat().st_size
    parts = [f"{count} file{'s' * (count != 1)}, {size:,} bytes, in {total:,} ({total / max(size, 1):.1%})"]
    if written.entries:
        parts.append(f"{written.bits / written.entries:.4f} bits/dim of what the model coded")
    if written.embedded and not written.all_raw:
        parts.append(f"{len(written.embedded):,} bytes of weights among them")
    if written.all_raw:
        parts.append("all by xz, which did better than the model")
    Console(stderr=True).print("; ".join(parts), highlight=False, soft_wrap=True)
