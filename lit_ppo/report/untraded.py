"""Who decided, why a run never traded, and what to try: for the terminal, the page and the verdict. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lit_ppo.scoring.power import visible_sharpe
from lit_ppo.store.results import NOT_TRAINED, PRIOR_DECIDES, FoldRecord, Run
from lit_ppo.words import plural


class ScreenedFeature(NamedTuple):
    """A feature over the folds of a run: in how many it passed, its median score, and what it needed (median)."""

    name: str
    passed: int
    folds: int
    score: float
    threshold: float


def screened(folds: Sequence[FoldRecord]) -> list[ScreenedFeature]:
    """Every feature that the screen looked at, best first; empty for a run without a screen."""
    records = [fold.details["screen"] for fold in folds if fold.details.get("screen")]
    names = list(dict.fromkeys(name for record in records for name in record["score"]))
    found = []
    for name in names:
        own = [record for record in records if name in record["score"]]
        score, threshold = (float(np.median([r[key][name] for r in own])) for key in ("score", "threshold"))
        found.append(ScreenedFeature(name, sum(name in r["passed"] for r in own), len(own), score, threshold))
    return sorted(found, key=lambda feature: (-feature.passed, -feature.score / max(feature.threshold, 1e-12)))


def seen_sharpe(folds: Sequence[FoldRecord]) -> float | None:
    """Annual Sharpe ratio, before costs, of what passes the screen in one of two folds (median); None: not known."""
    records = [fold.details["screen"] for fold in folds if fold.details.get("screen", {}).get("years")]
    needs = [visible_sharpe(min(record["threshold"].values()), record["years"]) for record in records]
    return float(np.median(needs)) if needs else None


def price_of_screen(folds: Sequence[FoldRecord]) -> str:
    """The screen's price in one sentence; "" where it is not known."""
    least = seen_sharpe(folds)
    if least is None:
        return ""
    return (
        f"In windows of this length a feature passes every second time if what it says is worth an annual Sharpe ratio "
        f"of {least:.1f} before costs; weaker ones mostly stay unseen."
    )


def unmirrored(folds: Sequence[FoldRecord]) -> str:
    """In which folds the train bars told up from down, and by what, in one sentence; "" where in none."""
    records = [fold.details["mirror"] for fold in folds if "mirror" in fold.details]
    sided = [record for record in records if not record["mirrored"]]
    if not sided:
        return ""
    names = [name for r in sided for name in r["score"] if r["score"][name] > r["threshold"][name]]
    found = ", ".join(f"{name} in {names.count(name)}" for name in dict.fromkeys(names))
    return (
        f"In {len(sided)} of {plural(len(records), 'fold')} the market was not learnt from upside down as well "
        f"(model.mirror: auto): {found or 'the positions are not symmetric'}."
    )


def untrained(folds: Sequence[FoldRecord]) -> int:
    """Number of folds that were not trained, because no feature passed the screen."""
    return sum(fold.stop_reason == NOT_TRAINED for fold in folds)


def reason(folds: Sequence[FoldRecord]) -> str:
    """Why nothing was traded, in one sentence."""
    blind, of = untrained(folds), len(folds)
    if of and blind == of:
        best = screened(folds)[0]
        where = "the only fold" if of == 1 else f"all {of} folds"
        return (
            f"In {where} no feature passed the screen, so nothing was trained: on the train bars none of them "
            f"goes with the next return beyond chance (best: {best.name}, median score {best.score:.1f}, needs "
            f"{best.threshold:.1f}). {price_of_screen(folds)}"
        ).strip()
    if blind:
        return (
            f"In {blind} of {of} folds no feature passed the screen and nothing was trained; in the others the trained "
            "policy found nothing that pays the costs."
        )
    if of and all(record.stop_reason == PRIOR_DECIDES for record in folds):
        return "The weights it starts from decided in every fold, and found nothing that pays the costs."
    return "The policy was trained in every fold and found nothing that pays the costs."


def remedies(folds: Sequence[FoldRecord]) -> list[str]:
    """What to try next, most promising first."""
    tries = ["a longer window (data.train_size, data.expand_train: true): what a feature says shows with the bars"]
    if untrained(folds):
        tries.insert(0, "the prior trader, which no window has to teach: --config walk_forward")
        tries.append("other features (data.features: full, or your own)")
        tries.append("model.screen_features: false: train on all of them, and let the test judge")
        tries.append("model.mirror: false, if you know of a drift or of hours that differ: it takes evidence otherwise")
    else:
        if folds and all(record.stop_reason == PRIOR_DECIDES for record in folds):
            tries = ["a training that begins with these weights (model.total_timesteps above 0)"]
        tries.append("lower costs, if yours are lower: data.costs.*")
    return tries


def decided_by(run: Run) -> str:
    """Which policy decided where nothing was trained, and what its card says it has seen; "" where some was."""
    if not run.folds or any(record.stop_reason != PRIOR_DECIDES for record in run.folds):
        return ""
    start = run.record.get("start", {})
    name = start.get("weights") or (run.settings.get("model") or {}).get("start") or "prior"
    policy = "the released prior trader" if name == "prior" else f"the policy of {name}"
    card = start.get("card", {})
    if card.get("real_bars_seen") == 0:
        seen = "By its card it saw synthetic markets only, so never these bars"
    else:
        seen = "Its weights learnt nothing from these bars in this run; what they saw before is not on a card"
    size = f" ({card['timesteps']:,} timesteps of training)" if isinstance(card.get("timesteps"), int) else ""
    return f"Nothing was trained: {policy}{size} decided in every fold. {seen}."
