"""The results page: Markdown made from the rows; no figure and no verdict in it is typed by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from comgrad.geometry.table import MEASURES
from comgrad.workflows.bench_similarity.maps import COMPARED, PROFILED, best_of
from comgrad.workflows.bench_similarity.plan import NEARNESS, Study
from comgrad.workflows.bench_similarity.pool import POOLINGS, is_whole
from comgrad.workflows.bench_similarity.score import HONEST, TARGET, Row
from comgrad.workflows.bench_similarity.words import counted, summary

Find = Callable[..., Row | None]

HEAD = """# How near are two tasks? Similarity of task vectors

Written by `{command}`; no figure and no verdict here was typed by hand.

T(i, j, l) is a measure of the vectors of tasks i and j on tensor l. Distances change sign, so that larger is nearer
everywhere; directed measures are the mean of both directions. Poolings over tensors: `mean` is T̄ = 1/L Σ_l T(i, j, l);
`null` is the mean of (T − μ_l)/s_l, μ_l and s_l the mean and standard deviation of the same measure between the same vectors
when each has random singular vectors and keeps its singular values; `whole` is the formula on the whole vector, for measures
made of inner products. {measures} measures order pairs; {described} describe a pair and order nothing, so they are left out.

| figure | what it is |
|---|---|
| kNN (k = 1, 5) | share of tasks whose k nearest vote for its family, among tasks that any neighbour could be right for |
| honest kNN | the same with all neighbours of the task's own source of texts left out |
| ARI, NMI | adjusted Rand index and normalised mutual information of families and {families} clusters (as many as families) |
| most frequent | the baseline: always answer the most frequent family among the others |
| top-1, MRR | share of further vectors whose task's zoo vector is the nearest of all, and mean of 1/rank |
| AUC | chance that a further vector is nearer to its own task's zoo vector than one is to another task's |

Brackets are 95 % bootstrap intervals that draw whole sources of texts (of top-1: Wilson's; of MRR and AUC: tasks drawn). Shuffled is
the mean for families dealt to other tasks, source by source; p = (1 + draws at least as good)/(1 + draws). Vectors were trained
once each: intervals are over tasks.
"""


def page(study: Study, rows: Sequence[Row], environment: Mapping[str, Any], images: Mapping[str, str]) -> str:
    """The whole page. `images`: name's end → file beside the page."""
    find = finder(rows)
    described = [m for m in MEASURES if m not in NEARNESS]
    head = HEAD.format(
        command=study.request.command,
        measures=len(NEARNESS),
        described=", ".join(f"`{m}`" for m in described),
        families=len(set(study.families.tolist())),
    )
    parts = [
        head,
        "## What holds and what does not\n\n" + "\n".join(f"- {s}" for s in summary(study, rows, find)) + "\n",
        _families(find, rows, images),
        _profile(study, find, best_of(rows)[0], images),
        _agreement(find, best_of(rows)[0]),
        _seeds(study, find, best_of(rows)[0], images),
        _identify(study, find, images),
        _environment(environment),
    ]
    return "\n".join(p for p in parts if p).rstrip() + "\n"


def finder(rows: Sequence[Row]) -> Find:
    """find(section, figure, measure, pooling=, scope=, kind=): the row, or None."""
    keys = ("section", "figure", "measure", "pooling", "scope", "kind")
    table = {tuple(r[k] for k in keys): r for r in rows}

    def find(section: str, figure: str, measure: str, *, pooling: str = "mean", scope: str = "all", kind: str = "zoo"):  # type: ignore[no-untyped-def]
        return table.get((section, figure, measure, pooling, scope, kind))

    return find


# -- sections ----------------------------------------------------------------------------------------------------------
def _families(find: Find, rows: Sequence[Row], images: Mapping[str, str]) -> str:
    lines = []
    for pooling in POOLINGS:
        for m in NEARNESS:
            if pooling == "whole" and not is_whole(m):
                continue
            honest = find("families", HONEST, m, pooling=pooling)
            if honest is None:
                continue
            rest = [find("families", f, m, pooling=pooling) for f in ("knn5-disjoint", "knn1", "knn5")]
            clusters = [
                find("clusters", f, m, pooling=pooling)
                for f in ("ari-linkage", "nmi-linkage", "ari-spectral", "nmi-spectral")
            ]
            null = "–" if honest["null"] is None else f"{honest['null']:.2f}"
            lines.append(
                (
                    honest["value"],
                    [f"`{m}`", pooling, span(honest), null, p_of(honest), *map(num, rest), *map(num, clusters)],
                )
            )
    if not lines:
        return ""
    control = [find("families", HONEST, m, pooling="random") for m in NEARNESS]
    told = [f"`{m}` {r['value']:.2f} (p {p_of(r)})" for m, r in zip(NEARNESS, control, strict=True) if r is not None]
    lines.sort(key=lambda x: -x[0])
    head = ("measure", "pooling", "honest kNN, k = 1", "shuffled", "p", "honest, k = 5", "kNN 1", "kNN 5", "ARI linkage",
            "NMI linkage", "ARI spectral", "NMI spectral")  # fmt: skip
    base = [f"{r['value']:.2f} {ends(r)}" for f in ("majority-disjoint", "majority") if (r := find("families", f, ""))]
    chance = [r for r in rows if r["section"] == "clusters" and r["null_high"] is not None]
    most = (
        {f: max(r["null_high"] for r in chance if r["figure"].startswith(f)) for f in ("ari", "nmi")} if chance else {}
    )
    limit = (
        f" Of shuffled families the ARI stays below {most['ari']:.2f} and the NMI below {most['nmi']:.2f} (97.5 %)."
        if most
        else ""
    )
    return (
        f"## Do families cluster, and by which measure\n\n{table(head, [x for _, x in lines])}\nMost frequent family: "
        f"{base[0]} honest, {base[1]} plain.{limit} Clusters by average linkage and by the spectrum of the graph of 10 nearest.\n\n"
        f"Negative control, honest kNN of vectors with random singular vectors: {', '.join(told)}.\n"
        + "".join(f"\n![Map of tasks]({images[name]})\n" for name in images if name.startswith("map-"))
        + image(images, "matrix", "Pairs ordered by family")
    )


def _profile(study: Study, find: Find, best: str, images: Mapping[str, str]) -> str:
    scopes = list(study.scopes)
    chosen = [m for m in dict.fromkeys((best, *PROFILED)) if find("families", HONEST, m)]
    if len(scopes) < 2 or not chosen:
        return ""
    lines = [[f"`{m}`", *(num(find("families", HONEST, m, scope=s)) for s in scopes)] for m in chosen]
    more = ""
    if study.kinds:
        names = [m for m in chosen if m in (best, *COMPARED)]
        tops = [
            [f"`{m}`", kind, *(num(find("identify", "top1", m, scope=s, kind=kind)) for s in scopes)]
            for m in names
            for kind in study.kinds
        ]
        more = f"\nTop-1 of further vectors from the same tensors:\n\n{table(('measure', 'vectors', *scopes), tops)}"
    return (
        f"## Layers and roles\n\nHonest kNN (k = 1, `mean`) from the tensors of one layer or role alone. All measures are in "
        f"results.csv.\n\n{table(('measure', *scopes), lines)}{more}{image(images, 'profile', 'Layers and roles')}"
    )


def _agreement(find: Find, best: str) -> str:
    columns = list(dict.fromkeys([*COMPARED, best]))
    both = [_pair(find, a, b) for a in NEARNESS for b in columns]
    if not any(both):
        return ""
    lines = []
    for m in NEARNESS:
        cells = []
        for c in columns:
            found = _pair(find, m, c)
            cells += ["–", "–", "–"] if found is None else [span(found[0]), p_of(found[0]), num(found[1])]
        lines.append([f"`{m}`", *cells])
    head = ["measure"] + [t for c in columns for t in (f"ρ with `{c}`", "p", "same nearest")]
    return (
        "## Do measures agree\n\nSpearman's ρ of T̄ over all pairs of zoo vectors, Mantel's p (rows and columns permuted together), "
        f"and the share of tasks whose nearest other is the same by both.\n\n{table(head, lines)}"
    )


def _pair(find: Find, a: str, b: str) -> tuple[Row, Row | None] | None:
    for one, two in ((a, b), (b, a)):
        found = find("agreement", "spearman", one, kind=two)
        if found is not None:
            return found, find("agreement", "same-nearest", one, kind=two)
    return None


def _seeds(study: Study, find: Find, best: str, images: Mapping[str, str]) -> str:
    lines = []
    for m in dict.fromkeys((best, *PROFILED)):
        for kind in study.kinds:
            r = [find("seeds", f, m, kind=kind) for f in ("same-task", "other-task", "auc")]
            lines.append([f"`{m}`", kind, *(range_of(x) for x in r[:2]), "–" if r[2] is None else span(r[2], 3)])
    if not lines:
        return ""
    head = ("measure", "further vectors", "T̄ with the same task", "T̄ with other tasks", "AUC")
    return (
        "## How far do seeds matter\n\nMedian T̄ and 5–95 % range of pairs of a further vector and a zoo vector.\n\n"
        f"{table(head, lines)}{image(images, 'seeds', 'Same task and other tasks')}"
    )


def _identify(study: Study, find: Find, images: Mapping[str, str]) -> str:
    if not study.kinds:
        return ""
    parts = []
    for kind in study.kinds:
        lines = []
        for m in NEARNESS:
            cells = []
            for pooling in POOLINGS:
                top, mrr = (find("identify", f, m, pooling=pooling, kind=kind) for f in ("top1", "mrr"))
                cells += ["–", "–"] if top is None or mrr is None else [span(top), num(mrr)]
            met = [
                p for p in POOLINGS if (r := find("identify", "top1", m, pooling=p, kind=kind)) and r["value"] >= TARGET
            ]
            gone = find("seeds", "undefined", m, kind=kind)
            lines.append([f"`{m}`", *cells, ", ".join(met) or "no", "0" if gone is None else f"{gone['value']:.0f}"])
        head = ("measure", *(t for p in POOLINGS for t in (f"top-1, {p}", "MRR")), f"≥ {TARGET:.0%}", "undefined")
        top = find("identify", "top1", NEARNESS[0], kind=kind)
        mrr = find("identify", "mrr", NEARNESS[0], kind=kind)
        chance = f"chance {top['null']:.3f} and {mrr['null']:.3f}" if top and mrr else ""
        parts.append(f"### `{kind}`, {counted(study, kind)} ({chance})\n\n{table(head, lines)}")
    said = "\n".join(parts)
    return (
        f"## Identification\n\nThe further vector's task among {len(study.zoo)}: {', '.join(study.kinds)}. Vectors with other tensors "
        "than the zoo's are compared on the zoo's. A pair without a value (undefined) is last.\n"
        f"{image(images, 'identify', 'Top-1')}\n{said}"
    )


def _environment(environment: Mapping[str, Any]) -> str:
    lines = [[k.replace("_", " "), f"`{v}`" if k == "command" else str(v)] for k, v in environment.items()]
    return f"## Made with\n\n{table(('', ''), lines)}"


# -- cells -------------------------------------------------------------------------------------------------------------
def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "".join("| " + " | ".join(r) + " |\n" for r in rows)


def num(r: Row | None, digits: int = 2) -> str:
    return "–" if r is None or r["value"] != r["value"] else f"{r['value']:.{digits}f}"


def ends(r: Row, digits: int = 2) -> str:
    return "" if r["low"] is None else f"[{r['low']:.{digits}f}, {r['high']:.{digits}f}]"


def span(r: Row, digits: int = 2) -> str:
    return f"{num(r, digits)} {ends(r, digits)}".strip()


def range_of(r: Row | None) -> str:
    return "–" if r is None else f"{r['value']:.3g} [{r['low']:.3g}, {r['high']:.3g}]"


def p_of(r: Row) -> str:
    return "–" if r["p"] is None else f"{r['p']:.3f}"


def image(images: Mapping[str, str], name: str, text: str) -> str:
    return f"\n![{text}]({images[name]})\n" if name in images else ""
