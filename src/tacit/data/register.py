"""The data sets that have a name: those built in, and those looked for in a folder (`data_home`, `TACIT_DATA`).

Only what is said about them is here, and nothing that needs torch, so that `tacit data` answers at once. How they are
read is in `builtin.py` and `named.py`.
"""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass, replace
from pathlib import Path

from tacit.errors import DataError


@dataclass(frozen=True)
class Entry:
    """What is known of a data set without reading it.

    Attributes:
        name: what `load` calls it.
        kind: the kind of its observations, and their shape.
        rows: how many; None where only the files say.
        origin: where it comes from.
        present: whether it is there to be loaded.
    """

    name: str
    kind: str
    rows: str | None
    origin: str
    present: bool = True


BUILT_IN = (
    Entry("digits", "images 1×8×8, 17 levels", "1797", "UCI, handwritten digits, in scikit-learn"),
    Entry("moving-digits", "video 10×1×16×16, 2 levels", "5000 + 1000 + 1000", "those digits, bouncing off walls"),
    Entry("photographs", "images 3×32×32", "520", "patches of scikit-learn's two photographs"),
    Entry("sprites", "images 1×32×32, 2 levels", "36864", "shapes of known factors, as in Matthey et al. 2017"),
    Entry("moons", "vectors 2", "20000", "two interleaved half circles"),
    Entry("8-gaussians", "vectors 2", "20000", "Grathwohl et al. 2019"),
    Entry("25-gaussians", "vectors 2", "20000", "Lin et al. 2018 (PacGAN)"),
    Entry("checkerboard", "vectors 2", "20000", "Grathwohl et al. 2019"),
    Entry("rings", "vectors 2", "20000", "Grathwohl et al. 2019"),
)

IN_FOLDERS = (
    Entry("fashion-mnist", "images 1×28×28", "60000 + 10000", "Xiao et al. 2017 (Zalando)"),
    Entry("mnist", "images 1×28×28", "60000 + 10000", "LeCun et al. 1998"),
    Entry(
        "binarized-mnist",
        "images 1×28×28, 2 levels",
        "50000 + 10000 + 10000",
        "Salakhutdinov & Murray 2008, static binarization",
    ),
    Entry("omniglot", "images 1×105×105, 2 levels", "4840", "Lake et al. 2015"),
    Entry("freyfaces", "images 1×28×20", "1965", "Roweis, frames of one face"),
    Entry("cifar10-subset", "images 3×32×32", "4000 + 1000", "Krizhevsky 2009, the first of them"),
    Entry("kodak", "images 3×64×64", "12", "Kodak Lossless True Color Image Suite"),
    Entry("bsds300-subset", "images 3×64×64", "40 + 20", "Martin et al. 2001, a fifth of it"),
    Entry("facades", "images 3×256×512", "80 + 20", "Tyleček & Šára 2013 (CMP)"),
    Entry("fsdd", "waveforms, 1 s at 8 kHz", "1200 + 300", "Free Spoken Digit Dataset"),
    Entry("tinyshakespeare", "text", "1.1 M characters", "Karpathy 2015"),
    Entry("wikitext-2", "text", "1.1 M + 1.3 M characters", "Merity et al. 2016, valid and test"),
    Entry("gutenberg", "text", "5.5 M characters", "three novels from Project Gutenberg"),
    Entry(
        "miniboone-subset",
        "vectors 43",
        "1234 + 137 + 152",
        "Papamakarios et al. 2017, its first rows",
    ),
)

# What a folder of one of these names must hold to be taken for that data set, and not for some other of the same name.
MARKERS = {
    "fashion-mnist": "train-images-idx3*",
    "mnist": "train-images-idx3*",
    "binarized-mnist": "binarized_mnist_train.mat",
    "omniglot": "images_background*.zip",
    "freyfaces": "freyfaces.pkl",
    "cifar10-subset": "cifar-10-*",
    "kodak": "kodim*.png",
    "bsds300-subset": "images/train",
    "facades": "image_001.jpg",
    "fsdd": "recordings",
    "tinyshakespeare": "input.txt",
    "wikitext-2": "wiki.*.tokens",
    "gutenberg": "2600.txt",
    "miniboone-subset": "data.npy",
}

# Folders of the same home that are no observations a model can learn from yet, and what to say to who asks for them.
REFUSED = {
    "jsb-chorales": "needs a space of piano rolls, which no model takes yet",
    "sketchrnn": "is sets of drawings: name one of them, such as sketchrnn/omniglot",
    "word-similarity": "is a test set of word pairs for embeddings: learn from a text, such as gutenberg",
    "word-analogy": "is a test set of questions for embeddings: learn from a text, such as gutenberg",
    "adbench": "is twelve tables: name one of them, such as adbench/6_cardio",
}


def home(data_home: str | os.PathLike[str] | None = None) -> Path | None:
    """The folder that holds named data sets: `data_home`, or `TACIT_DATA`, or none.

    Raises:
        DataError: `data_home` does not exist.
    """
    if data_home is not None and not Path(data_home).is_dir():
        raise DataError(f"{data_home} is no folder: let data_home (--data-home) name the one that holds the data sets")
    named = data_home or os.environ.get("TACIT_DATA")
    # Who reads their own file is not troubled with a variable that names nothing.
    return Path(named) if named and Path(named).is_dir() else None


def is_at(name: str, folder: Path) -> bool:
    """Whether `folder` holds the data set called `name`."""
    return name in MARKERS and any(folder.glob(MARKERS[name]))


def listing(data_home: str | os.PathLike[str] | None = None) -> list[Entry]:
    """Every data set with a name, those present and those missing, without reading any."""
    folder = home(data_home)
    found = list(BUILT_IN)
    for entry in IN_FOLDERS:
        present = folder is not None and is_at(entry.name, folder / entry.name)
        found.append(replace(entry, present=present))
    if folder is not None:
        found += [
            Entry(f"adbench/{path.stem}", "vectors", None, "Han et al. 2022 (ADBench)")
            for path in sorted((folder / "adbench").glob("*.npz"), key=lambda path: int(path.stem.partition("_")[0]))
        ]
        found += [
            Entry(f"sketchrnn/{path.stem}", "strokes", None, "Ha & Eck 2018 (sketch-rnn)")
            for path in sorted((folder / "sketchrnn").glob("*.npz"))
        ]
        known = {entry.name for entry in IN_FOLDERS} | REFUSED.keys()
        others = sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] not in "._")
        found += [Entry(path.name, "by its files", None, str(path)) for path in others if path.name not in known]
    return found


def names(data_home: str | os.PathLike[str] | None = None) -> list[str]:
    """Names of the data sets that can be loaded."""
    return [entry.name for entry in listing(data_home) if entry.present]


def describe(name: str, data_home: str | os.PathLike[str] | None = None) -> Entry:
    """What is known of the data set called `name`.

    Raises:
        DataError: there is none; the message gives the nearest names.
    """
    found = listing(data_home)
    for entry in found:
        if entry.name == name:
            return entry
    raise DataError(f"no data set is called {name!r}: {hint(name, [entry.name for entry in found])}")


def hint(name: str, known: list[str]) -> str:
    """The nearest names, or all of them."""
    near = difflib.get_close_matches(name.lower().replace("_", "-"), known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)} (`tacit data` lists them)"
