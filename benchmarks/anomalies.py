"""Anomalies: tables of ADBench by tacit's default, and Fashion-MNIST against what is not.

    python benchmarks/anomalies.py adbench
    python benchmarks/anomalies.py images runs/flow-images-realnvp-fashion

`adbench`: the area under the ROC curve and the average precision on twelve tables, means over three seeds, in two
protocols. Contaminated: 70 % of all rows are learned from, anomalies among them, and the others are told apart.
Normal-only: half of the normal rows are learned from, all others are told apart. Beside tacit's default, without a
model, stand scikit-learn's isolation forest, k-NN (distance to the fifth neighbour) and LOF (20 neighbours), and ECOD,
all on columns scaled to [0, 1] by the learning rows. The default was chosen on every second set with other seeds. Then
the share of false alarms at 5 % among fresh normal rows, over 20 splits of each set.

`images`: a density of Fashion-MNIST, given by its run, tells Fashion-MNIST's test images from MNIST's, from noise, from
constant images, and from its own images inverted and upside down; the area by the default score and, beside it, by the
naive likelihood.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from scipy.stats import rankdata
from sklearn.ensemble import IsolationForest
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.neighbors import LocalOutlierFactor, NearestNeighbors

import tacit
from record import record
from tacit.metrics.outliers import Scaled
from tacit.tasks.detector import Detector

SETS = (
    "2_annthyroid",
    "4_breastw",
    "6_cardio",
    "12_fault",
    "18_Ionosphere",
    "23_mammography",
    "25_musk",
    "26_optdigits",
    "28_pendigits",
    "30_satellite",
    "32_shuttle",
    "38_thyroid",
)
PROTOCOLS = {"normal-only": "trained on half the normal rows", "contaminated": "70/30, anomalies in both"}
TARGETS = {"normal-only": 0.955, "contaminated": 0.862}
Score = Callable[[np.ndarray, np.ndarray, int], np.ndarray]


def forest(train: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    return -IsolationForest(random_state=seed).fit(train).score_samples(test)


def neighbours(train: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    return NearestNeighbors(n_neighbors=5).fit(train).kneighbors(test)[0][:, -1]


def lof(train: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    return -LocalOutlierFactor(n_neighbors=20, novelty=True).fit(train).score_samples(test)


def ecod(train: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    """ECOD (Li et al. 2022, arXiv:2201.00382) as PyOD computes it: all rows together, each column by its rarer tail."""
    whole = np.concatenate([train, test])
    left, right = (-np.log(rankdata(sign * whole, "max", axis=0) / len(whole)) for sign in (1, -1))
    return np.maximum(left, right).sum(1)[len(train) :]


def default(train: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    return Detector(seed=seed).fit(train, train[:1]).decision_function(test)


SCORES: dict[str, Score] = {
    "anomalies": default,
    "isolation-forest": forest,
    "nearest-neighbours": neighbours,
    "local-outlier-factor": lof,
    "ecod": ecod,
}


def split(y: np.ndarray, protocol: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to learn from and rows to tell apart."""
    rng = np.random.default_rng(seed)
    if protocol == "normal-only":
        normal = rng.permutation(np.flatnonzero(y == 0))
        train = normal[: len(normal) // 2]
        return train, np.setdiff1d(np.arange(len(y)), train)
    order = np.concatenate([rng.permutation(np.flatnonzero(y == kind)) for kind in (0, 1)])
    first = np.concatenate([np.arange(np.sum(y == kind)) < round(0.7 * np.sum(y == kind)) for kind in (0, 1)])
    return rng.permutation(order[first]), order[~first]


def table(name: str) -> tuple[np.ndarray, np.ndarray]:
    data = tacit.load(f"adbench/{name}")
    return data.x.double().numpy(), data.label.numpy()  # type: ignore[union-attr]


def adbench(seeds: list[int]) -> None:
    started = time.perf_counter()
    found: dict[tuple[str, str, str], np.ndarray] = {}
    for name in SETS:
        x, y = table(name)
        for protocol in PROTOCOLS:
            each: dict[str, list[tuple[float, float]]] = {score: [] for score in SCORES}
            for seed in seeds:
                train, test = split(y, protocol, seed)
                scale = Scaled(x[train])
                for score, function in SCORES.items():
                    s = function(scale(x[train]), scale(x[test]), seed)
                    each[score].append((roc_auc_score(y[test], s), average_precision_score(y[test], s)))
            for score, figures in each.items():
                found[score, protocol, name] = np.array(figures)
            line = ", ".join(
                f"{score} {figures[:, 0].mean():.3f}" for score in SCORES for figures in [found[score, protocol, name]]
            )
            print(f"{name}, {protocol}: {line} ({time.perf_counter() - started:.0f} s)", flush=True)
    _record(found, seeds, started)


def _record(found: dict[tuple[str, str, str], np.ndarray], seeds: list[int], started: float) -> None:
    peers = [score for score in SCORES if score != "anomalies"]
    common: dict[str, Any] = {"better": "higher", "seed": seeds, "packages": ("scikit-learn", "scipy")}
    for protocol, words in PROTOCOLS.items():
        area = {score: [found[score, protocol, name][:, 0].mean() for name in SETS] for score in SCORES}
        precision = {score: [found[score, protocol, name][:, 1].mean() for name in SETS] for score in SCORES}
        ranks = dict(zip(SCORES, rankdata(-np.array(list(area.values())), axis=0).mean(1), strict=True))
        best = max(peers, key=lambda score: np.mean(area[score]))
        gap = min((float(a - max(area[p][i] for p in peers)), SETS[i]) for i, a in enumerate(area["anomalies"]))
        for i, name in enumerate(SETS):
            nearest = max(peers, key=lambda score: area[score][i])
            record(
                "anomalies",
                f"adbench-{name}",
                f"auroc-{protocol}",
                area["anomalies"][i],
                split=words,
                unit="area",
                uncertainty=float(found["anomalies", protocol, name][:, 0].std(ddof=1)),
                reference={"value": area[nearest][i], "source": f"{nearest}, the best peer, this run"},
                seconds=time.perf_counter() - started,
                note="means over seeds, whose deviation is the uncertainty; average precision "
                f"{precision['anomalies'][i]:.3f}; " + ", ".join(f"{p} {area[p][i]:.3f}" for p in peers),
                **common,
            )
        others = ", ".join(f"{p} {np.mean(area[p]):.3f}" for p in peers)
        record(
            "anomalies",
            "adbench",
            f"auroc-{protocol}",
            float(np.mean(area["anomalies"])),
            split=words,
            unit="area",
            target=TARGETS[protocol],
            reference={"value": float(np.mean(area[best])), "source": f"{best}, the best peer, this run"},
            seconds=time.perf_counter() - started,
            note=f"mean over 12 sets; {others}; average precision {np.mean(precision['anomalies']):.3f}; mean ranks "
            + ", ".join(f"{score} {rank:.2f}" for score, rank in ranks.items())
            + f"; furthest below a set's best peer {gap[0]:.3f} on {gap[1]}",
            reason="on each set the best of four peers, which no one can know beforehand, has a mean of "
            f"{np.mean(np.max([area[p] for p in peers], 0)):.3f}",
            **common,
        )
        record(
            "anomalies",
            "adbench",
            f"worst-gap-{protocol}",
            gap[0],
            split=words,
            unit="area",
            target=-0.05,
            reference=None,
            seconds=time.perf_counter() - started,
            note=f"AUROC less that of the best of {', '.join(peers)} on the set, on the worst of 12: {gap[1]}",
            reason=f"{max(peers, key=lambda p: area[p][SETS.index(gap[1])])} suits that set better",
            **common,
        )


def false_alarms() -> None:
    """Of fresh normal rows, the share with p ≤ 0.05; means over 20 splits."""
    started = time.perf_counter()
    shares = {}
    for name in SETS:
        x, y = table(name)
        normal = x[y == 0]
        each = []
        for seed in range(20):
            rows = np.random.default_rng(seed).permutation(len(normal))[:3000]
            train, calibration, fresh = np.split(rows, [len(rows) // 2, 3 * len(rows) // 4])
            detector = Detector(seed=seed).fit(normal[train], normal[calibration])
            each.append(float((detector.p_values(normal[fresh]) <= 0.05).mean()))
        shares[name] = float(np.mean(each))
        print(f"{name}: {shares[name]:.4f} ({time.perf_counter() - started:.0f} s)", flush=True)
    off = max(shares, key=lambda name: abs(shares[name] - 0.05))
    record(
        "anomalies",
        "adbench",
        "false-alarms-off",
        abs(shares[off] - 0.05),
        split="fresh normal rows, 20 splits of at most 3000: half learned from, a quarter calibrates",
        unit="share",
        better="lower",
        target=0.015,
        seed=list(range(20)),
        seconds=time.perf_counter() - started,
        note=f"how far the share of p ≤ 0.05 is from 0.05 on the worst set, {off} ({shares[off]:.4f}); mean of 12 sets "
        f"{np.mean(list(shares.values())):.4f}",
        packages=("scikit-learn",),
    )


def images(run: Path, rows: int, seed: int) -> None:
    started = time.perf_counter()
    found = tacit.Run(run)
    detector = found.detector(seed=seed)
    test = tacit.load("fashion-mnist").parts()[2].observations(rows)
    generator = torch.Generator().manual_seed(seed)
    strange = {
        "mnist": tacit.load("mnist").parts()[2].observations(rows),
        "noise": torch.randint(256, test.shape, generator=generator, dtype=torch.uint8),
        "constant": torch.randint(256, (len(test), 1, 1, 1), generator=generator, dtype=torch.uint8).expand_as(test),
        "inverted": 255 - test,
        "upside-down": test.flip(2),
    }
    targets = {"mnist": 0.99, "noise": 0.98, "constant": 0.98, "inverted": 0.99, "upside-down": 0.80}
    usual = detector.scores(test)
    truth = np.repeat([0, 1], len(test))
    for name, x in strange.items():
        scores = detector.scores(x)
        area = {
            score: float(roc_auc_score(truth, rankdata(torch.cat([usual[score], scores[score]])))) for score in scores
        }
        model = found.record["model"]
        record(
            f"anomalies-{model}",
            "fashion-mnist",
            f"auroc-{name}",
            area["default"],
            split=f"{len(test)} test images and as many of {name}",
            unit="area",
            better="higher",
            target=targets[name],
            reference={"value": area.get("nll", float("nan")), "source": "the naive likelihood of the same model"},
            seed=seed,
            seconds=time.perf_counter() - started,
            note=f"{model}, {found.record.get('step')} steps; the mean of {' and '.join(detector.default_of())}; "
            + ", ".join(f"{score} {value:.3f}" for score, value in area.items() if score != "default"),
            packages=("scikit-learn", "pillow"),
        )


def main(
    what: tyro.conf.Positional[str],
    run: tyro.conf.Positional[Path | None] = None,
    *,
    rows: int = 2000,
    seeds: tuple[int, ...] = (0, 1, 2),
) -> None:
    """Measure and record.

    Args:
        what: adbench, or images.
        run: of a model of Fashion-MNIST, for images.
        rows: images of each kind, at most.
        seeds: of the splits; the first of everything else.
    """
    torch.set_num_threads(1)
    if what == "adbench":
        adbench(list(seeds))
        false_alarms()
    elif what == "images" and run is not None:
        images(run, rows, seeds[0])
    else:
        raise SystemExit("say what: adbench, or images and a run")


if __name__ == "__main__":
    tyro.cli(main)
