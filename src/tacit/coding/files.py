"""Files as rows of a space and back: PNG images, arrays, texts and recordings; anything else as its bytes.

A PNG comes back with the same pixels, and all else with the same bytes: what stands around the rows of an array or a
recording is kept, and a file that would not come back is taken as bytes.
"""

from __future__ import annotations

import ast
import base64
import io
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tacit.errors import ArchiveError
from tacit.spaces import Images, Space, Tokens, Video, Waveform

# Rows of a text that a model of any length codes side by side.
_LANES = 64
# By the number of channels, Pillow's modes of 8 bits.
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


@dataclass
class Content:
    """A file taken apart.

    Attributes:
        x: its observations, (rows, *shape), of a text (rows, length) of any length; None if it is taken as bytes.
        how: what brings the file back from them, JSON-ready.
        raw: its bytes if it is taken so.
        checked: the bytes that its SHA-256 is of.
    """

    x: Tensor | None
    how: dict[str, Any] = field(default_factory=dict)
    raw: bytes = b""
    checked: bytes = b""


def take_apart(data: bytes, space: Space, vocabulary: tuple[str, ...], unbounded: bool) -> Content:
    """A file's bytes as rows of `space`, or as bytes if they are none."""
    found: Content | None = None
    if isinstance(space, Images):
        found = _png(data, space) or _array(data, space)
    elif isinstance(space, Video):
        found = _array(data, space)
    elif isinstance(space, Tokens):
        found = _text(data, space, vocabulary, unbounded)
    elif isinstance(space, Waveform):
        found = _wave(data, space)
    if found is None:
        return Content(None, {"kind": "bytes"}, data, data)
    try:
        whole = put_together(found.x, found.how, space, vocabulary)  # type: ignore[arg-type]
    except ArchiveError:
        whole = b""
    if found.how["kind"] != "png" and whole != data:
        return Content(None, {"kind": "bytes"}, data, data)
    return found


def put_together(x: Tensor, how: dict[str, Any], space: Space, vocabulary: tuple[str, ...]) -> bytes:
    """A file's bytes from its rows.

    Raises:
        ArchiveError: the archive says of it what cannot be.
    """
    try:
        if how["kind"] == "png":
            return _to_png(x, str(how["mode"]), int(how["on"]))
        if how["kind"] == "text":
            count = int(how["count"])
            return "".join(vocabulary[i] for i in x.flatten()[:count].tolist()).encode()
        if how["kind"] in ("array", "wave"):
            before, after = (base64.b64decode(how[part]) for part in ("before", "after"))
            rows = x.movedim(1, -1) if how.get("last") else x
            middle = rows.contiguous().numpy().astype("<i2" if how["kind"] == "wave" else "u1").tobytes()
            return before + middle + after
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise ArchiveError(f"the archive does not say how to put a file together ({error!r}): it is damaged") from error
    raise ArchiveError(f"the archive holds a file of kind {how['kind']!r}, unknown to this version: upgrade tacit")


def checked_bytes(data: bytes, how: dict[str, Any]) -> bytes:
    """What a file's SHA-256 is of: of a PNG its pixels, else all its bytes."""
    return _pixels(data) if how["kind"] == "png" else data


# -- images -----------------------------------------------------------------------------------------------------------


def _png(data: bytes, space: Images) -> Content | None:
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return None
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            mode, plain = image.mode, not getattr(image, "is_animated", False) and "transparency" not in image.info
            suits = mode == _MODES.get(space.channels) or (space.levels == 2 and mode == "1")
            # What a palette or a transparent colour adds is no pixel.
            if not plain or not suits or image.size != (space.width, space.height):
                return None
            pixels = np.array(image, dtype=np.uint8)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    x = torch.from_numpy(pixels).view(space.height, space.width, -1).permute(2, 0, 1)[None].contiguous()
    on = 255 if space.levels == 2 and mode != "1" and int(x.max()) > 1 else 1
    if bool((x % on).any()) or int(x.max()) // on >= (space.levels or 256):
        return None
    x = x // on
    return Content(x, {"kind": "png", "mode": mode, "on": on}, checked=_pixels(data))


def _pixels(data: bytes) -> bytes:
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        return f"{image.mode} {image.size} ".encode() + image.tobytes()


def _to_png(x: Tensor, mode: str, on: int) -> bytes:
    pixels = x[0].permute(1, 2, 0).numpy() * np.uint8(255 if mode == "1" else on)
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    out = io.BytesIO()
    (image.convert("1", dither=Image.Dither.NONE) if mode == "1" else image).save(out, "PNG", optimize=True)
    return out.getvalue()


def _array(data: bytes, space: Images | Video) -> Content | None:
    """NumPy's and IDX's arrays of bytes, observations one after the other."""
    start, shape = _npy(data) if data.startswith(b"\x93NUMPY") else _idx(data)
    if not shape or not shape[0]:
        return None
    own = tuple(shape[1:])
    channels, height, width = space.shape[-3:]
    last = isinstance(space, Images) and own == (height, width, channels)
    # One channel need not be an axis of its own.
    if not last and own != space.shape and (isinstance(space, Video) or channels > 1 or own != (height, width)):
        return None
    end = start + shape[0] * space.dimensions
    if len(data) < end:
        return None
    flat = torch.frombuffer(bytearray(data[start:end]), dtype=torch.uint8)
    x = flat.view(shape[0], height, width, channels).movedim(-1, 1) if last else flat.view(shape[0], *space.shape)
    if int(x.max()) >= (space.levels or 256):
        return None
    return Content(x.contiguous(), {"kind": "array", "last": last, **_around(data, start, end)}, checked=data)


def _npy(data: bytes) -> tuple[int, list[int] | None]:
    """Where an array begins, and its shape, of bytes in C order."""
    try:
        length = struct.unpack("<H", data[8:10])[0] if data[6] == 1 else struct.unpack("<I", data[8:12])[0]
        start = (10 if data[6] == 1 else 12) + length
        header = ast.literal_eval(data[start - length : start].decode("latin1"))
        plain = header["descr"] in ("|u1", "u1") and not header["fortran_order"]
        return start, [int(n) for n in header["shape"]] if plain else None
    except (struct.error, SyntaxError, ValueError, KeyError, TypeError, IndexError):
        return 0, None


def _idx(data: bytes) -> tuple[int, list[int] | None]:
    """The same of the MNIST files' format."""
    if len(data) < 4 or data[:3] != b"\0\0\x08" or len(data) < 4 + 4 * data[3]:
        return 0, None
    return 4 + 4 * data[3], [int(n) for n in struct.unpack(f">{data[3]}I", data[4 : 4 + 4 * data[3]])]


def _around(data: bytes, start: int, end: int) -> dict[str, str]:
    parts = {"before": data[:start], "after": data[end:]}
    return {name: base64.b64encode(part).decode() for name, part in parts.items()}


# -- texts and recordings ---------------------------------------------------------------------------------------------


def _text(data: bytes, space: Tokens, vocabulary: tuple[str, ...], unbounded: bool) -> Content | None:
    number = {symbol: i for i, symbol in enumerate(vocabulary)}
    try:
        tokens = [number[symbol] for symbol in data.decode()]
    except (UnicodeDecodeError, KeyError):
        return None
    if not tokens:
        return None
    length = max(space.length, -(-len(tokens) // _LANES)) if unbounded else space.length
    count = len(tokens)
    tokens += [tokens[-1]] * (-count % length)
    return Content(torch.tensor(tokens).view(-1, length), {"kind": "text", "count": count}, checked=data)


def _wave(data: bytes, space: Waveform) -> Content | None:
    """One channel of 16 bits at the space's rate; what is left over after whole rows is kept as it is."""
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return None
    at, suits = 12, False
    while at + 8 <= len(data):
        name, size = data[at : at + 4], struct.unpack("<I", data[at + 4 : at + 8])[0]
        at += 8
        if name == b"fmt " and len(data) >= at + 16:
            suits = struct.unpack("<HHIIHH", data[at : at + 16])[:3] == (1, 1, space.rate) and data[at + 14] == 16
        if name == b"data":
            rows = min(size, len(data) - at) // (2 * space.length)
            if not suits or not rows:
                return None
            end = at + rows * 2 * space.length
            x = torch.from_numpy(np.frombuffer(data[at:end], "<i2").astype(np.int16)).view(rows, space.length)
            return Content(x, {"kind": "wave", **_around(data, at, end)}, checked=data)
        at += size + size % 2
    return None


def read(path: Path) -> bytes:
    """A file's bytes, whole and of one moment.

    Raises:
        ArchiveError: it changed while it was read, or cannot be read.
    """
    try:
        before = path.stat()
        data = path.read_bytes()
        after = path.stat()
    except OSError as error:
        raise ArchiveError(f"{path} cannot be read ({error.strerror}): nothing was written") from error
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns) or len(data) != after.st_size:
        raise ArchiveError(f"{path} changed while it was read: nothing was written; try again when it is at rest")
    return data
