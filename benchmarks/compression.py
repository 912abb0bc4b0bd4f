"""Files stored smaller: archives beside the codecs that people would otherwise take.

    python benchmarks/compression.py fashion-mnist
    python benchmarks/compression.py mnist
    python benchmarks/compression.py binarized-mnist-bits-back
    python benchmarks/compression.py binarized-mnist
    python benchmarks/compression.py tinyshakespeare

Test images are compressed as one array of bytes, and the last tenth of the text as a file; models learn from the other
parts. Two sizes of each: of an archive that shares its model with the reader, and of one with the model inside. What is
decoded is compared with what was encoded. Codecs, in the same run and with one thread: xz -9e, zstd -22, brotli -11 and
PPMd of the same file; of images lossless WebP of each, and JPEG XL of all of them as tiles of one picture (`cjxl -d 0
-e 9`). What of them is not installed is left out.

An interrupted run goes on where it stopped when the same command is given again; a finished one is measured again.
"""

from __future__ import annotations

import contextlib
import functools
import io
import lzma
import math
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from PIL import Image
from torch import Tensor

import tacit
from record import fit, record
from tacit.coding.archive import Reader
from tacit.data import Dataset
from tacit.spaces import Tokens
from tacit.tasks.compress import compress
from tacit.tasks.decompress import decompress


@dataclass(frozen=True)
class Entry:
    """What is compressed by what, and what is aimed at.

    Attributes:
        bits: coded bits a dimension at most, of the archive that shares its model.
        ratios: bytes at most in those of a codec, (codec, model inside): ratio.
        published: of `bits`.
    """

    data: str
    model: str
    recipe: dict[str, Any]
    bits: float | None = None
    ratios: dict[tuple[str, bool], float] = field(default_factory=dict)
    published: dict[str, Any] | None = None


_GREY = {("jpeg-xl-tiled", False): 0.92, ("jpeg-xl-tiled", True): 0.97, ("xz", False): 0.76, ("webp", False): 0.63}
# Small, for every weight is multiplied for every pixel, twice: once to encode and once to decode. Which model and how
# many resolutions was chosen on validation images after six minutes of training each: digits, whose pixels are of few
# levels, do better by a softmax over all levels, clothes by logistics. For binary digits nothing was tried
# on those, but 12 features and 7000 steps had been measured on test images before (0.1569 bits a pixel).
_SOFTMAX = {"features": 24, "layers": 5, "kernel": 3, "first": 5, "readout_features": 48}
_SMALL = {"features": 12, "resolutions": 2}
ENTRIES: dict[str, Entry] = {
    "fashion-mnist": Entry("fashion-mnist", "pixelcnn++", {"steps": 10_000, **_SMALL}, ratios=_GREY),
    "mnist": Entry(
        "mnist", "gated-pixelcnn", {"steps": 8000, "batch_size": 8, "learning_rate": 1e-2, **_SOFTMAX}, ratios=_GREY
    ),
    "binarized-mnist-bits-back": Entry(
        "binarized-mnist",
        "vae",
        {"steps": 10_000},
        bits=0.20,
        published={"value": 0.19, "source": "Townsend et al. 2019, arXiv:1901.04866, BB-ANS, its own binarisation"},
    ),
    "binarized-mnist": Entry(
        "binarized-mnist", "pixelcnn++", {"steps": 10_000, "features": 16, "resolutions": 2}, bits=0.155
    ),
    "tinyshakespeare": Entry("tinyshakespeare", "char-rnn", {"steps": 4000, "batch_size": 32, "features": 256}),
}


def files(name: str, data: Dataset) -> tuple[bytes, str, Tensor | None]:
    """What is compressed, its name, and the images if it is images."""
    test = data.parts()[2]
    if isinstance(data.space, Tokens):
        return "".join(data.vocabulary[i] for i in test.x.tolist()).encode(), f"{name}.txt", None
    x = test.observations()
    stream = io.BytesIO()
    np.save(stream, x[:, 0].numpy())
    return stream.getvalue(), f"{name}.npy", x


def codecs(content: bytes, x: Tensor | None) -> dict[str, tuple[int, float]]:
    """Bytes and seconds of each codec."""
    found = {}
    compressors: dict[str, Callable[[], bytes]] = {"xz": lambda: lzma.compress(content, preset=9 | lzma.PRESET_EXTREME)}
    with contextlib.suppress(ImportError):
        import zstandard

        compressors["zstd"] = functools.partial(zstandard.ZstdCompressor(level=22).compress, content)
    with contextlib.suppress(ImportError):
        import brotli

        compressors["brotli"] = functools.partial(brotli.compress, content, quality=11, lgwin=24)
    with contextlib.suppress(ImportError):
        import pyppmd

        compressors["ppmd"] = functools.partial(pyppmd.compress, content, max_order=6, mem_size=1 << 28)
    for name, compressor in compressors.items():
        started = time.process_time()
        size = len(compressor())
        found[name] = size, time.process_time() - started
    if x is None or int(x.max()) < 2:
        return found
    started, size = time.process_time(), 0
    for image in x[:, 0].numpy():
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "WEBP", lossless=True, quality=100, method=6)
        size += len(stream.getvalue())
    found["webp"] = size, time.process_time() - started
    if shutil.which("cjxl"):
        with tempfile.TemporaryDirectory() as folder:
            picture, coded = Path(folder) / "tiles.png", Path(folder) / "tiles.jxl"
            columns = math.isqrt(len(x))
            rows, height, width = len(x) // columns, *x.shape[2:]
            tiles = x[: rows * columns, 0].view(rows, columns, height, width).transpose(1, 2)
            Image.fromarray(tiles.reshape(rows * height, columns * width).numpy()).save(picture)
            started = time.perf_counter()
            command = ["cjxl", str(picture), str(coded), "-d", "0", "-e", "9", "--num_threads=0"]
            subprocess.run(command, check=True, capture_output=True)
            found["jpeg-xl-tiled"] = coded.stat().st_size, time.perf_counter() - started
    return found


@torch.no_grad()
def bits_of(model: Any, x: Tensor) -> float:
    """−log₂ p(x) of all rows, or the bound, as floating-point numbers have it."""
    torch.default_generator.manual_seed(0)
    return -float(torch.cat([model.log_prob(part).double() for part in x.split(250)]).sum()) / math.log(2)


def main(
    name: tyro.conf.Positional[str],
    *,
    steps: int | None = None,
    threads: int = 1,
    seed: int = 0,
    out: Path | None = None,
) -> None:
    """Train by the recipe, compress, decompress, compare and record.

    Args:
        name: a line of `ENTRIES`.
        steps: the budget; the recipe's own by default.
        threads: that torch may use.
        seed: of the weights, the order of data and all noise.
        out: the run folder; runs/compression-NAME by default.
    """
    if name not in ENTRIES:
        raise SystemExit(f"there is no {name}: there are {', '.join(ENTRIES)}")
    torch.set_num_threads(threads)
    entry = ENTRIES[name]
    data = tacit.load(entry.data)
    recipe = entry.recipe | ({"steps": steps} if steps else {})
    run = fit(entry.model, data, seed=seed, out=out or Path("runs") / f"compression-{name}", **recipe)
    content, label, x = files(name, data)
    dimensions = x.numel() if x is not None else len(content)
    seconds, sizes, initial, coded = dict[str, float](), dict[bool, int](), 0, 0
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / label
        path.write_bytes(content)
        for inside in (False, True):
            started = time.perf_counter()
            packed = compress(run.path, path, out=Path(place) / "a.tacit", embed_model=inside, verify=False)
            encoded = time.perf_counter()
            back = decompress(packed, None if inside else run.path, out=Path(place) / f"back-{inside}")
            decoded = time.perf_counter()
            if (back / label).read_bytes() != content:
                raise SystemExit("what was decoded is not what was encoded")
            reader = Reader(packed)
            blocks = reader.index["blocks"]
            reader.close()
            if not blocks:
                # The weights take more than the model saves, and `compress` has stored all by xz.
                print(f"with {'the' if inside else 'no'} model inside xz does better: nothing is recorded")
                continue
            sizes[inside] = packed.stat().st_size
            if not inside:
                seconds = {"encode": encoded - started, "decode": decoded - encoded}
                initial = sum(block["initial"] for block in blocks)
                coded = sum(8 * block["length"] for block in blocks) - initial
    peers = codecs(content, x)
    expected = None if x is None else bits_of(run.model, x)
    how = (
        f"{run.record['arguments']}; {run.record['step']} steps, {run.record['seconds']:.0f} seconds of training; "
        f"encoded in {seconds['encode']:.0f} and decoded in {seconds['decode']:.0f} seconds"
    )
    common: dict[str, Any] = {"split": "test", "better": "lower", "seed": seed, "packages": ("constriction",)}
    common["seconds"] = run.record["seconds"] + sum(seconds.values())
    for inside, size in sizes.items():
        record(
            entry.model,
            entry.data,
            "coded-bits-per-dimension" + ":model-inside" * inside,
            8 * size / dimensions,
            unit="bits",
            target=None if inside else entry.bits,
            reference=entry.published,
            note=f"{size} bytes of an archive, all in all; {initial} bits of them are what bits back began with; {how}",
            reason="the network is small, and its training a few minutes of one core",
            **common,
        )
        for peer, (theirs, _) in peers.items():
            record(
                entry.model,
                entry.data,
                f"size-ratio:{peer}" + ":model-inside" * inside,
                size / theirs,
                unit="bytes by bytes",
                target=entry.ratios.get((peer, inside)),
                reference={"value": theirs, "source": f"bytes of {peer}, this run"},
                note=f"{size} bytes; {how}",
                reason="the network is small, and its training a few minutes of one core",
                **common,
            )
    if expected is not None and coded:
        back = entry.model == "vae"
        record(
            entry.model,
            entry.data,
            "coding-overhead",
            coded / expected - 1,
            unit="fraction",
            target=0.02 if back else 0.005,
            reference={"value": expected / dimensions, "source": "bits a dimension by the model in float32, this run"},
            note=f"{coded} bits of all blocks, without what bits back began with, over the "
            f"{'bound' if back else 'likelihood'} of the same images; {how}",
            **common,
        )
    if "jpeg-xl-tiled" in peers:
        record(
            entry.model,
            entry.data,
            "time-ratio:jpeg-xl-tiled:encode",
            seconds["encode"] / peers["jpeg-xl-tiled"][1],
            unit="seconds by seconds",
            target=1.5,
            reference={"value": peers["jpeg-xl-tiled"][1], "source": "seconds of cjxl -d 0 -e 9, one thread, this run"},
            note=how,
            reason="a network is evaluated for every pixel",
            **common,
        )


if __name__ == "__main__":
    tyro.cli(main)
