"""How the data sets that have a name are read from their folders, where that takes more than reading the files.

Those not here (MNIST, Tiny Shakespeare, …) are read as any folder is.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from tacit.data import arrays, audio, cifar, idx, images, mat, pickles, storage, text
from tacit.data.dataset import Dataset
from tacit.data.reading import reading

_FASHION = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")


def fashion_mnist(folder: Path) -> Dataset:
    """Clothes of ten classes, with the names that the authors gave them."""
    return idx.read_idx(folder, sorted(folder.glob("*ubyte*")), class_names=_FASHION)


def binarized_mnist(folder: Path) -> Dataset:
    """Binary digits with their official parts; the test part is sorted by digit, as published."""
    return mat.read_mat(folder, sorted(folder.glob("*.mat")), image_shape=(28, 28))


def freyfaces(folder: Path) -> Dataset:
    """Frames of one face; its file is a pickle, of which nothing but arrays is admitted."""
    with reading("freyfaces.pkl", "a pickled array"):
        frames = np.asarray(pickles.unpickled(folder / "freyfaces.pkl"), np.uint8)
    return arrays.from_arrays("freyfaces", {"train": (frames.reshape(-1, 28, 20), None)})


def cifar10(folder: Path) -> Dataset:
    """The binary batches, which are longer than those of the Python version."""
    binary = folder / "cifar-10-batches-bin"
    return cifar.read_cifar(binary, sorted(binary.glob("*_batch*.bin")))


def omniglot(
    folder: Path,
    *,
    size: int | tuple[int, int] | None = None,
    crop: bool = True,
    memory: float = storage.DEFAULT_MEMORY,
) -> Dataset:
    """Characters of many alphabets as ink (1, or 255 where `size` makes greys of it) on nothing, from the archives.

    The archives share two alphabets; each picture is taken once.
    """
    where: dict[str, tuple[zipfile.ZipFile, str]] = {}
    archives = sorted(folder.glob("images_background*.zip"))
    for path in archives:
        with reading(path.name, "an archive of pictures"):
            archive = zipfile.ZipFile(path)
        for member in archive.namelist():
            if member.endswith(".png"):
                where.setdefault(member.partition("/")[2], (archive, member))

    def opener(name: str) -> Image.Image:
        archive, member = where[name]
        return Image.open(io.BytesIO(archive.read(member)))

    names = sorted(where)
    classes = {name: name.rpartition("/")[0] for name in names}
    key = storage.stamp(archives)
    found = images.from_pictures(
        "omniglot", {"train": names}, opener, classes, size=size, crop=crop, ink=True, memory=memory, key=key
    )
    for archive, _ in set(where.values()):
        archive.close()
    return found


def facades(
    folder: Path,
    *,
    size: int | tuple[int, int] | None = None,
    crop: bool = True,
    grey: bool = False,
    memory: float = storage.DEFAULT_MEMORY,
) -> Dataset:
    """Photograph and label map side by side; by use, the first 80 are for training."""
    files = sorted(folder.glob("*.jpg"))
    return images.read_images(folder, files, size=size, crop=crop, grey=grey, test=files[80:], memory=memory)


def fsdd(folder: Path, *, length: int | None = None, memory: float = storage.DEFAULT_MEMORY) -> Dataset:
    """Spoken digits, `DIGIT_SPEAKER_TAKE.wav`, one row a recording; by its rule, takes 0 to 4 are the test part."""
    files = sorted((folder / "recordings").glob("*.wav"))
    test = [path for path in files if int(path.stem.rpartition("_")[2]) < 5]
    parts = {"train": [path for path in files if path not in set(test)], "test": test}
    classes = {path: path.name[0] for path in files}
    return audio.from_recordings("fsdd", parts, classes, length=length, whole=True, memory=memory)


def wikitext(
    folder: Path, *, words: bool = False, length: int | None = None, memory: float = storage.DEFAULT_MEMORY
) -> Dataset:
    """The validation and test parts of WikiText-2; as the training part is not there, the first is learnt from."""
    parts = {"train": [folder / "wiki.valid.tokens"], "test": [folder / "wiki.test.tokens"]}
    return text.from_texts("wikitext-2", parts, words=words, length=length, memory=memory)


def gutenberg(
    folder: Path, *, words: bool = False, length: int | None = None, memory: float = storage.DEFAULT_MEMORY
) -> Dataset:
    """Novels, without what Project Gutenberg adds to them."""
    parts = {"train": sorted(folder.glob("*.txt"))}
    return text.from_texts("gutenberg", parts, words=words, length=length, framed=True, memory=memory)


def miniboone(folder: Path) -> Dataset:
    """The split of the papers: the last tenth is test, the last tenth of the rest valid."""
    with reading("data.npy", "a NumPy array"):
        x = np.load(folder / "data.npy", allow_pickle=False)
    rest = len(x) - int(0.1 * len(x))
    train = rest - int(0.1 * rest)
    parts = {"train": (x[:train], None), "valid": (x[train:rest], None), "test": (x[rest:], None)}
    return arrays.from_arrays("miniboone-subset", parts)


def adbench(path: Path) -> Dataset:
    """One of ADBench's tables; the label says what is an anomaly."""
    arrays_of = arrays.npz(path)
    parts = {"train": (arrays_of["X"], arrays_of["y"])}
    return arrays.from_arrays(path.stem, parts, class_names=("normal", "anomaly"))


READERS: dict[str, Callable[..., Dataset]] = {
    "fashion-mnist": fashion_mnist,
    "binarized-mnist": binarized_mnist,
    "omniglot": omniglot,
    "freyfaces": freyfaces,
    "cifar10-subset": cifar10,
    "facades": facades,
    "fsdd": fsdd,
    "wikitext-2": wikitext,
    "gutenberg": gutenberg,
    "miniboone-subset": miniboone,
}
