"""Pictures in files: folders of any format, size and mode that Pillow opens, and archives of them.

Folders called like classes give the labels, folders called train, valid and test the official parts. All pictures get
one size and one number of channels: grey if all are grey, with an alpha channel if all have one, otherwise RGB with
what is transparent laid on white. Pictures of several sizes are cut to the centre and shrunk to a square of at most
64 pixels unless `size` says otherwise.
"""

from __future__ import annotations

import os
import statistics
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image, ImageOps

from tacit.data import storage
from tacit.data.dataset import Dataset
from tacit.data.reading import by_relative_name, class_of, numbered, part_of, put_together, tell, tell_skipped
from tacit.errors import DataError
from tacit.spaces import Images

SUFFIXES = frozenset(
    [
        ".apng",
        ".avif",
        ".bmp",
        ".dib",
        ".gif",
        ".ico",
        ".j2k",
        ".jfif",
        ".jp2",
        ".jpe",
        ".jpeg",
        ".jpg",
        ".pbm",
        ".pcx",
        ".pgm",
        ".png",
        ".pnm",
        ".ppm",
        ".sgi",
        ".tga",
        ".tif",
        ".tiff",
        ".webp",
    ]
)
_GREY_MODES = ("1", "L", "I", "I;16", "I;16L", "I;16B", "F")
_ROTATED_FORMATS = ("JPEG", "MPO", "TIFF", "WEBP")  # those in which cameras write how they were held
_ORIENTATION = 0x0112
_USUAL_SIDE = 64
_BLOCK_BYTES = 2**25

_NAMES_A_TASK = 32
_THREADS = os.cpu_count() or 1

Opener = Callable[[str], Image.Image]
_T = TypeVar("_T")


class _Header(NamedTuple):
    mode: str
    height: int
    width: int
    alpha: bool


def read_images(
    root: Path,
    files: Sequence[Path],
    *,
    size: int | tuple[int, int] | None = None,
    crop: bool = True,
    grey: bool = False,
    test: Collection[Path] = (),
    memory: float = storage.DEFAULT_MEMORY,
) -> Dataset:
    """A folder of pictures.

    Args:
        size: height and width, or the side of a square; by default the pictures' own.
        crop: cut pictures of another shape to the centre before resizing them; otherwise they are stretched.
        grey: one channel, whatever the pictures have.
        test: those that are the official test part, where no folder says so.
    """
    where = by_relative_name(root, files)
    tops = {name.partition("/")[0] for name in where}
    parts: dict[str, list[str]] = {}
    if len(tops) > 1 and all("/" in name for name in where) and all(map(part_of, tops)):
        for name in where:
            parts.setdefault(part_of(name.partition("/")[0]) or "train", []).append(name)
        classes = {name: class_of(name.partition("/")[2]) for name in where}
    else:
        for name, path in where.items():
            parts.setdefault("test" if path in test else "train", []).append(name)
        classes = {name: class_of(name) for name in where}
    return from_pictures(
        root.name,
        parts,
        lambda name: Image.open(where[name]),
        classes,
        size=size,
        crop=crop,
        grey=grey,
        memory=memory,
        key=storage.stamp(files),
    )


def from_pictures(
    name: str,
    parts: Mapping[str, Sequence[str]],
    opener: Opener,
    classes: Mapping[str, Any],
    *,
    size: int | tuple[int, int] | None = None,
    crop: bool = True,
    grey: bool = False,
    ink: bool = False,
    class_names: Sequence[str] = (),
    memory: float = storage.DEFAULT_MEMORY,
    key: Sequence[object] = (),
) -> Dataset:
    """A data set of pictures that `opener` opens by name.

    Args:
        parts: names of the pictures of each part.
        classes: each picture's class (its name or number), None where it is unlabelled.
        ink: turn black on white into ones on zeros.
        key: what tells a cache that the pictures are the same.

    Raises:
        DataError: there is none that can be read, or `size` is no size.
    """
    names = [picture for part in parts.values() for picture in part]
    with warnings.catch_warnings(), ThreadPoolExecutor(_THREADS) as pool:
        warnings.simplefilter("ignore")
        headers: dict[str, _Header] = {}
        skipped: dict[str, str] = {}
        for picture, found in zip(names, _each(pool, partial(_header, opener), names), strict=True):
            if isinstance(found, str):
                skipped[picture] = found
            else:
                headers[picture] = found
        if not headers:
            tell_skipped(name, len(names), skipped)
            raise DataError(f"{name} holds no pictures: give a folder that has some")
        shape = _shape(name, list(headers.values()), size, grey)
        kept_as_is = all((h.height, h.width) == shape[1:] for h in headers.values())
        binary = kept_as_is and not grey and all(header.mode == "1" for header in headers.values())
        decode = partial(_decode, opener, shape=shape, crop=crop, levels=2 if binary else 256, ink=ink)
        x, mapped = {}, False
        for part, wanted in parts.items():
            readable = [picture for picture in wanted if picture in headers]
            about: dict[str, Any] = {"skipped": {}}
            blocks = _blocks(pool, decode, readable, int(np.prod(shape)), about["skipped"])
            tensor, on_disk = storage.store(
                blocks, len(readable), shape, np.uint8, key=(*key, part, crop, ink, binary), memory=memory, about=about
            )
            skipped |= about["skipped"]
            mapped |= on_disk
            if len(tensor):
                x[part] = tensor
    left_out = tell_skipped(name, len(names), skipped)
    values: dict[str, np.ndarray | None] = dict.fromkeys(x)
    if len({classes[picture] for picture in names} - {None}) > 1 or class_names:
        for part in x:
            of_part = [classes[picture] for picture in parts[part] if picture not in skipped]
            missing = -1 if class_names else ""
            values[part] = np.array([missing if found is None else found for found in of_part])
    labels, numbered_names = numbered(values, f"the label of {name}", class_names)
    space = Images(*shape, levels=2 if binary else 256)
    of_rows = {part: tuple(picture for picture in parts[part] if picture not in skipped) for part in x}
    return put_together(
        name, space, x, labels, files=of_rows, class_names=numbered_names, skipped=left_out, mapped=mapped
    )


def check_size(size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width.

    Raises:
        DataError: one of them is not positive.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise DataError(f"size={size} is no size: give a positive side, or a height and a width")
    return height, width


def _shape(
    name: str, headers: Sequence[_Header], size: int | tuple[int, int] | None, grey: bool
) -> tuple[int, int, int]:
    """Channels, height and width of all pictures."""
    channels = 3
    if grey or all(header.mode in _GREY_MODES and not header.alpha for header in headers):
        channels = 1
    elif all(header.alpha for header in headers):
        channels = 4
    sizes = Counter((header.height, header.width) for header in headers)
    if size is not None:
        return (channels, *check_size(size))
    if len(sizes) == 1:
        return (channels, *next(iter(sizes)))
    side = min(_USUAL_SIDE, round(statistics.median(min(header.height, header.width) for header in headers)))
    (height, width), _ = sizes.most_common(1)[0]
    tell(
        f"{name} holds pictures of {len(sizes)} sizes, most often {height} high and {width} wide: each was cut to its "
        f"central square and resized to {side} × {side} (size, --size, chooses otherwise)"
    )
    return channels, side, side


def _header(opener: Opener, picture: str) -> _Header | str:
    """What a picture says of itself before it is decoded, or why it cannot be opened."""
    try:
        with opener(picture) as image:
            width, height = image.size
            if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
                return f"{width} × {height} pixels are more than the {Image.MAX_IMAGE_PIXELS} that are safe to decode"
            if _orientation(image) >= 5:  # held sideways
                width, height = height, width
            return _Header(image.mode, height, width, _transparent(image))
    except Exception as error:
        return _reason(error)


def _orientation(image: Image.Image) -> int:
    # Asking a PNG for it would decode the whole picture.
    return image.getexif().get(_ORIENTATION, 1) if image.format in _ROTATED_FORMATS else 1


def _transparent(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _each(pool: ThreadPoolExecutor, function: Callable[[str], _T], names: Sequence[str]) -> Iterator[_T]:
    """`function` of each name, in order; a thread takes several at once: handing over one costs as much as an icon."""
    size = min(_NAMES_A_TASK, 1 + len(names) // (4 * _THREADS))
    several = [names[i : i + size] for i in range(0, len(names), size)]
    for results in pool.map(lambda some: [function(name) for name in some], several):
        yield from results


def _blocks(
    pool: ThreadPoolExecutor,
    decode: Callable[[str], np.ndarray | str],
    names: Sequence[str],
    row_bytes: int,
    skipped: dict[str, str],
) -> Iterator[np.ndarray]:
    """Decoded pictures, a few megabytes at a time; those that fail go to `skipped`."""
    step = max(_THREADS, _BLOCK_BYTES // row_bytes)
    for i in range(0, len(names), step):
        rows = []
        for picture, found in zip(names[i : i + step], _each(pool, decode, names[i : i + step]), strict=True):
            if isinstance(found, str):
                skipped[picture] = found
            else:
                rows.append(found)
        if rows:
            yield np.stack(rows)


def _decode(
    opener: Opener, picture: str, *, shape: tuple[int, int, int], crop: bool, levels: int, ink: bool
) -> np.ndarray | str:
    """One picture as (channels, height, width) uint8, or why it cannot be decoded."""
    channels, height, width = shape
    try:
        with opener(picture) as image:
            if image.format == "JPEG" and image.size != (width, height):
                # JPEG decodes at 1/2, 1/4 or 1/8 for a fraction of the work; twice the side leaves the filter detail.
                image.draft(None, (2 * max(height, width),) * 2)
            turned = ImageOps.exif_transpose(image) if _orientation(image) != 1 else image
            plain = _in_mode(turned, channels)
            if plain.size != (width, height):
                box = _central_box(plain.size, (width, height)) if crop else None
                plain = plain.resize((width, height), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)
            pixels = np.asarray(plain)
        if levels == 2:
            pixels = (pixels > 127).view(np.uint8)
        if ink:
            pixels = levels - 1 - pixels
        return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    except Exception as error:
        return _reason(error)


def _in_mode(image: Image.Image, channels: int) -> Image.Image:
    """The picture as L, RGB or RGBA of 8 bits."""
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image, np.float64)
        if image.mode == "F" and values.max() <= 1:
            values = values * 255
        elif image.mode.startswith("I;16") or values.max() > 255:
            values = values / 257  # 65535 to 255
        image = Image.fromarray(np.clip(np.round(values), 0, 255).astype(np.uint8))
    if channels < 4 and _transparent(image):
        over = image.convert("RGBA")
        image = Image.new("RGBA", over.size, "white")
        image.alpha_composite(over)
    return image.convert({1: "L", 3: "RGB", 4: "RGBA"}[channels])


def _central_box(size: tuple[int, int], target: tuple[int, int]) -> tuple[float, float, float, float]:
    """The largest central part of a picture that has the target's shape: left, top, right, bottom."""
    scale = min(size[0] / target[0], size[1] / target[1])
    width, height = target[0] * scale, target[1] * scale
    left, top = (size[0] - width) / 2, (size[1] - height) / 2
    return left, top, left + width, top + height
