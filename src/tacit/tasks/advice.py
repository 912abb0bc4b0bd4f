"""What a comparison advises: who wins at what, and whether the old rules of thumb held on this data.

Every sentence is made from measured figures. Models that two standard errors do not part are named together.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from tacit.tasks.quality import Figure
from tacit.tasks.table import BASELINE, COLUMN, Row, apart, competing, density_mark, leaders

Verdict = Literal["held", "did not hold", "undecided", "not checked"]


@dataclass(frozen=True)
class Rule:
    """A rule of thumb of the field, and what became of it here."""

    claim: str
    verdict: Verdict
    evidence: str


@dataclass(frozen=True)
class Advice:
    """One plain sentence, and the rules of thumb checked."""

    summary: str
    rules: tuple[Rule, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def advise(rows: list[Row], data: str) -> Advice:
    """The advice that the figures of `rows` support."""
    measured = [row for row in rows if row.status == "measured"]
    if not [row for row in measured if row.model != BASELINE]:
        return Advice(f"No model was measured on {data}, so there is nothing to advise.")
    quality = quality_of(measured)
    parts = [
        _best(measured, "bits", "describes the data best", "describe the data best"),
        _best(measured, quality, "draws the best samples", "draw the best samples"),
        _features(measured),
        _anomalies(measured),
    ]
    said = [part for part in parts if part]
    if not said:
        return Advice(f"Nothing measured on {data} can be compared between models.")
    summary = f"On {data}, {'; '.join(said)}."
    return Advice(summary, (_density_rule(measured), _both_rule(measured, quality), _sharp_rule(measured)))


def quality_of(rows: list[Row]) -> str:
    """The column that ranks samples on this kind of data."""
    return next((key for key in ("wasserstein", "ngrams") if competing(rows, key)), "frechet")


def _figure(row: Row, key: str) -> str:
    column, figure = COLUMN[key], row.figures[key]
    unit = {"bits": " bits/dim", "ngrams": " bits"}.get(key, " %" if column.percent else "")
    exact = ", exact" if key == "bits" and figure.note == "exact" else ""
    return f"{density_mark(column, figure)}{column.show(figure)}{unit}{exact}"


def _list(words: list[str], joint: str = "and") -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {joint} {words[-1]}"


_MEASURE = {
    "frechet": "Fréchet ",
    "wasserstein": "sliced W₂² ",
    "ngrams": "bigrams ",
    "auroc": "AUROC ",
    "knn": "k-NN ",
    "probe": "probe ",
}


def _shown(row: Row, key: str) -> str:
    return f"{row.model} ({_MEASURE.get(key, '')}{_figure(row, key)})"


def _best(rows: list[Row], key: str, one: str, several: str) -> str:
    """Who leads a column, in words; empty where nobody competes."""
    first = leaders(rows, key)
    if not first:
        return ""
    if len(first) == 1:
        alone = ", with no other to compare" if len(competing(rows, key)) == 1 else ""
        return f"{_shown(first[0], key)} {one}{alone}"
    more = [f"{len(first) - 3} more"] if len(first) > 3 else []
    return f"{_list([_shown(row, key) for row in first[:3]] + more)} {several}, too close to call"


def _features(rows: list[Row]) -> str:
    """Who has the best features, and whether they are better than none."""
    key = "probe" if competing(rows, "probe") else "knn"
    first = leaders(rows, key)
    base = next((row.figures.get(key) for row in rows if row.model == BASELINE), None)
    if first and base is not None:
        best, floor = first[0].figures[key], f"{COLUMN[key].show(base)} %"
        if not apart(best, base):
            return (
                f"no model's features are clearly better than raw values ({floor}): the best is {_shown(first[0], key)}"
            )
        if best.value < base.value:
            return f"raw values ({floor}) are better features than those of the best model, {_shown(first[0], key)}"
    text = _best(rows, key, "learns the best features", "learn the best features")
    return text if not text or base is None else f"{text}, against {floor} of raw values"


def _anomalies(rows: list[Row]) -> str:
    first = leaders(rows, "auroc")
    if first and not apart(first[0].figures["auroc"], Figure(0.5)):
        return "no model tells spoilt rows from sound ones"
    return _best(rows, "auroc", "finds anomalies best", "find anomalies best")


# -- the rules of thumb ------------------------------------------------------------------------------------------------


def _rule(claim: str, rows: list[Row], key: str, chosen: list[Row], what: str) -> Rule:
    """Whether one of `chosen` leads a column, alone or with others."""
    able = competing(rows, key)
    mine = [row for row in chosen if row in able]
    if not mine or len(able) < 2:
        return Rule(claim, "not checked", f"{'No' if not mine else 'Only one'} such model has a measured {what}.")
    first = leaders(rows, key)
    evidence = f"Best {what}: {_list([_shown(row, key) for row in first[:4]])}"
    if all(row in mine for row in first):
        return Rule(claim, "held", f"{evidence}.")
    if any(row in mine for row in first):
        return Rule(claim, "undecided", f"{evidence}, too close to call.")
    best = (max if COLUMN[key].better == "higher" else min)(mine, key=lambda row: row.figures[key].value)
    return Rule(claim, "did not hold", f"{evidence}; {best.model} has {_figure(best, key)}.")


def _density_rule(rows: list[Row]) -> Rule:
    mine = [row for row in rows if row.family == "autoregressive" and not row.exact]
    rule = _rule("For density alone, take an autoregressive model.", rows, "bits", mine, "density")
    bounds = [row for row in competing(rows, "bits") if row.figures["bits"].note == "an upper bound"]
    if rule.verdict == "held" and bounds:
        names = _list([_shown(row, "bits") for row in bounds])
        return Rule(rule.claim, rule.verdict, f"{rule.evidence} Bounds, behind which may be better values: {names}.")
    return rule


def _both_rule(rows: list[Row], quality: str) -> Rule:
    claim = "For features and samples from one model, take a VAE."
    key = "probe" if competing(rows, "probe") else "knn"
    able = [row for row in competing(rows, quality) if row in competing(rows, key)]
    mine = [row for row in able if _is_vae(row)]
    if not competing(rows, key):
        return Rule(claim, "not checked", "No features were measured: that takes labels.")
    if not mine or len(able) < 2:
        evidence = (
            f"{mine[0].model} alone has both samples and features measured." if mine else "No VAE has both measured."
        )
        return Rule(claim, "not checked", evidence)
    vae, heading = mine[0], COLUMN[quality].heading

    def shown(row: Row) -> str:
        return f"{row.model} ({_figure(row, key)} right by {COLUMN[key].heading}, {heading} {_figure(row, quality)})"

    # Both at once: nobody may be better at one without being worse at the other.
    others = [row for row in able if row is not vae]
    above = [row for row in others if _dominates(row, vae, (key, quality))]
    if above:
        names = _list([shown(row) for row in above[:3]])
        return Rule(claim, "did not hold", f"Better at one and no worse at the other than {shown(vae)}: {names}.")
    below = _list([shown(row) for row in others[:3]])
    return Rule(claim, "held", f"Nobody did better at one and no worse at the other: {shown(vae)}, beside {below}.")


def _dominates(a: Row, b: Row, keys: tuple[str, ...]) -> bool:
    return any(_beats(a, b, key) for key in keys) and not any(_beats(b, a, key) for key in keys)


def _beats(a: Row, b: Row, key: str) -> bool:
    sign = 1 if COLUMN[key].better == "higher" else -1
    first, second = a.figures[key], b.figures[key]
    return sign * (first.value - second.value) > 0 and apart(first, second)


def _is_vae(row: Row) -> bool:
    return row.family == "latent" and "vae" in row.model


def _sharp_rule(rows: list[Row]) -> Rule:
    mine = [row for row in rows if row.family == "adversarial"]
    claim = "For sharp samples (read as precision: the share that fall among real ones), take a GAN."
    rule = _rule(claim, rows, "precision", mine, "precision")
    sharp = [row for row in leaders(rows, "precision") if row in mine]
    if not sharp or rule.verdict not in ("held", "undecided"):
        return rule
    # Precision is cheap for a model that draws little but its best: recall tells.
    widest = max(competing(rows, "recall"), key=lambda row: row.figures["recall"].value)
    recalls = _list([f"{row.model} {_figure(row, 'recall')}" for row in sharp])
    more = f" Their recall: {recalls}, where {widest.model} has the best with {_figure(widest, 'recall')}."
    return Rule(claim, rule.verdict, rule.evidence + more)
