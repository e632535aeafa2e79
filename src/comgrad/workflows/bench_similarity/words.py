"""What the page says in sentences: each chosen by the figures it reports."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from comgrad.workflows.bench_similarity.maps import COMPARED, best_of
from comgrad.workflows.bench_similarity.plan import NEARNESS, Study
from comgrad.workflows.bench_similarity.score import HONEST, TARGET, Row

Find = Callable[..., Row | None]
LEVEL = 0.05
TIMES = 3.0  # the majority baseline, that leave-one-out family accuracy is to reach
CLOSE = 0.8  # of a rank correlation whose whole interval is above it


def summary(study: Study, rows: Sequence[Row], find: Find) -> list[str]:
    """The findings, a sentence or two each."""
    best, pooling = best_of(rows)
    out = [*_families(find, best, pooling), *_choice(rows, find, best, pooling), *_null(find), *_agree(find)]
    return out + list(_further(study, find, best, pooling))


def _families(find: Find, best: str, pooling: str) -> Iterator[str]:
    found, base = find("best", HONEST, best, pooling=pooling), find("families", "majority-disjoint", "")
    if found is None or base is None:
        return
    word = "Families cluster" if found["p"] < LEVEL else "Families are not shown to cluster"
    times = found["value"] / base["value"] if base["value"] > 0 else float("inf")
    met = "met" if times >= TIMES else "not met"
    yield (
        f"{word}: the nearest vector of another source has the task's family {found['value']:.2f} [{found['low']:.2f}, "
        f"{found['high']:.2f}] of the time by the best measure, `{best}` ({pooling}), against {found['null']:.2f} for the best "
        f"measure of shuffled families (p = {found['p']:.3f}, so corrected for the choice among all) and {base['value']:.2f} for "
        f"the most frequent family: {times:.1f} times. The target of {TIMES:.0f} times is {met}."
    )
    ari = [find("clusters", f, best, pooling=pooling) for f in ("ari-linkage", "ari-spectral")]
    if all(ari):
        told = " and ".join(f"{r['value']:.2f} (p = {r['p']:.3f})" for r in ari if r is not None)
        yield f"Its clusters agree with families to an adjusted Rand index of {told} by average linkage and by spectrum."


def _choice(rows: Sequence[Row], find: Find, best: str, pooling: str) -> Iterator[str]:
    chosen = find("best", "chosen-on-others", "")
    behind = [r for r in rows if r["figure"] == "behind-the-best" and (r["measure"], r["pooling"]) != (best, pooling)]
    if chosen is None or not behind:
        return
    clear = [r for r in behind if r["low"] > 0]
    even = list(dict.fromkeys(f"`{r['measure']}`" for r in behind if r["low"] <= 0))
    yield (
        f"The best measure was chosen on the figures reported here. Chosen on all other sources of texts and scored on the one "
        f"left out, the accuracy is {chosen['value']:.2f} [{chosen['low']:.2f}, {chosen['high']:.2f}]. Of {len(behind)} other "
        f"measures and poolings {len(clear)} are behind it with the whole interval; not so: {', '.join(even) or 'none'}."
    )


def _null(find: Find) -> Iterator[str]:
    pairs = [(m, find("families", HONEST, m), find("families", HONEST, m, pooling="null")) for m in NEARNESS]
    gaps = {m: b["value"] - a["value"] for m, a, b in pairs if a is not None and b is not None}
    if gaps:
        most = max(gaps, key=lambda m: abs(gaps[m]))
        same = sum(abs(g) < 1e-12 for g in gaps.values())
        yield (
            f"Correcting for the random null before pooling leaves the honest accuracy of {same} of {len(gaps)} measures as it is; "
            f"the largest change is {gaps[most]:+.3f} (`{most}`)."
        )
    control = [r for m in NEARNESS if (r := find("families", HONEST, m, pooling="random")) is not None]
    if control:
        wrong = sum(r["p"] < LEVEL for r in control)
        yield (
            f"Negative control: of {len(control)} measures of vectors with random singular vectors {wrong} find families at "
            f"p < {LEVEL}; the largest accuracy there is {max(r['value'] for r in control):.2f}."
        )


def _agree(find: Find) -> Iterator[str]:
    one, two = COMPARED
    found = find("agreement", "spearman", one, kind=two) or find("agreement", "spearman", two, kind=one)
    near = find("agreement", "same-nearest", one, kind=two) or find("agreement", "same-nearest", two, kind=one)
    if found is None or near is None:
        return
    close = (
        "close"
        if found["low"] > CLOSE
        else "related but not close"
        if found["p"] < LEVEL
        else "not shown to be related"
    )
    yield (
        f"`{one}` and `{two}` are {close}: ρ = {found['value']:.2f} [{found['low']:.2f}, {found['high']:.2f}] over all pairs "
        f"(Mantel p = {found['p']:.3f}; close means an interval above {CLOSE}). They name the same nearest task for "
        f"{near['value']:.2f} [{near['low']:.2f}, {near['high']:.2f}] of the tasks (chance {near['null']:.3f})."
    )


def _further(study: Study, find: Find, best: str, pooling: str) -> Iterator[str]:
    if not study.kinds:
        yield "No further vectors of the zoo's tasks were given: nothing is said about seeds and identification."
        return
    for kind in study.kinds:
        found = {m: r for m in NEARNESS if (r := find("identify", "top1", m, kind=kind)) is not None}
        own = find("identify", "top1", best, pooling=pooling, kind=kind)
        if not found or own is None:
            continue
        most = max(r["value"] for r in found.values())
        first = [f"`{m}`" for m, r in found.items() if r["value"] == most]
        lost = [f"`{m}`" for m, r in found.items() if r["value"] < TARGET]
        met = "met" if most >= TARGET else "not met"
        sure = min(r["low"] for r in found.values() if r["value"] == most)
        yield (
            f"Identification of `{kind}` ({counted(study, kind)}): the best top-1 is {most:.2f} (Wilson from {sure:.2f}), by "
            f"{', '.join(first)}; `{best}`, chosen for families, has {own['value']:.2f}. The target of {TARGET:.0%} with the best "
            f"measure is {met}. Below it: {', '.join(lost) or 'none'}."
        )


def counted(study: Study, kind: str) -> str:
    """How many further vectors of a kind, in words."""
    n = len(study.rows(kind))
    return f"{n} vector" if n == 1 else f"{n} vectors"
