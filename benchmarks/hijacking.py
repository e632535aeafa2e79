"""Who answers when a registry is poisoned: the share of honest queries that attackers' uploads get into, without and with
the defences.

    python benchmarks/hijacking.py [--data DIR] [--copies 500] [--json FILE]

DIR holds `tasks` and `zoo`, and second runs in `zoo_seeds` if there are any; the default is what the package ships. Every
attack is uploaded through `comgrad add` into a copy of the honest registry. Queries: each honest task's description (its own
entry left out of the results, or of the registry) for search and suggestions, each honest vector for neighbours. Hijacked is
a query with an attacker's entry first, or among the first five. "changed" is the share of queries whose first answer is
another one than without attackers.

Without defences: cosine of embeddings; lexical scores without room for fields; the same prediction rule on all vectors and
gradients as they come; cosine, inner product, and numpy's argmax for neighbours. With: what comgrad ships.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from comgrad.atlas.collection import Collection
from comgrad.describe.encoder import load_encoder
from comgrad.predict.evidence import Evidence
from comgrad.predict.functional import FEWEST, Functional
from comgrad.predict.rules import RULES
from comgrad.predict.start import combination
from comgrad.registry import search as lexical
from comgrad.registry.names import name_key
from comgrad.vectors.delta import LowRank
from comgrad.vectors.task_vector import TaskVector
from comgrad.workflows.adding import CARD_FILE, AddRequest, add_paths, fine_tunes
from comgrad.workflows.bench.corpus import Corpus, open_corpus
from comgrad.workflows.bench.score import wilson
from comgrad.workflows.gradients import GRADIENT_FILE
from comgrad.workflows.known import Known
from comgrad.workflows.registry import Entry, Registry
from comgrad.workflows.resolve import VECTOR_FILE, collection
from comgrad.workflows.searching import Counted, Found, by_meaning, by_words, counted, search, settled
from comgrad.workflows.standing import standing

GRADIENT_FILES = (GRADIENT_FILE, GRADIENT_FILE.replace("safetensors", "json"))
Answers = list[list[str]]  # per query, ids best first


@dataclass(frozen=True)
class Row:
    """One attack on one path: shares of the queries, and the 95 % interval of the first."""

    attack: str
    path: str
    defended: bool
    queries: int
    first: float
    first_high: float
    among_five: float
    changed: float


@dataclass
class Honest:
    """The registry without attackers, and what attackers can see of it."""

    home: Path
    ids: list[str]
    texts: list[str]
    names: list[str]
    families: list[str]
    vectors: list[TaskVector]
    folders: list[Path]
    target: int

    def keywords(self) -> str:
        """Every name and family there is."""
        return " ".join(dict.fromkeys(w for n in [*self.names, *self.families] for w in lexical.words(n)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--copies", type=int, default=500)
    parser.add_argument("--json", type=Path, default=None, help="write everything there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = run(open_corpus(options.data), Path(folder), copies=options.copies, say=print)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def run(corpus: Corpus, work: Path, *, copies: int, say: Callable[[str], Any] = print) -> dict[str, Any]:
    """All attacks, uploaded and measured; see the module's words."""
    honest = _honest(corpus, work)
    clean = Registry(honest.home)
    plain = dict(_measured(clean, honest))
    out: dict[str, Any] = {"vectors": len(honest.ids), "copies": copies, "rows": [], "uploads": {}}
    out["cost"] = _cost(clean, plain)
    out["second_runs"] = _second_runs(corpus, honest, work)
    for line in (f"{len(honest.ids)} honest vectors", f"cost: {out['cost']}", f"second runs: {out['second_runs']}"):
        say(line)
    out["refused"] = _refused(honest, work)
    say(f"NaN and infinity: {out['refused']}")
    say(
        f"\n{'attack':34} {'path':26} {'without: first':>15} {'five':>6} {'changed':>8}   {'with: first':>12} {'five':>6} {'changed':>8}"
    )
    for attack, make in attacks(copies).items():
        registry, ids, statuses = _uploaded(honest, work, make)
        out["uploads"][attack] = statuses
        rows = []
        for (path, defended), answers in _measured(registry, honest):
            rows.append(_row(attack, path, defended, answers, set(ids), plain[path, defended]))
        if attack.startswith("the mean"):
            rows.append(_argmax(honest))
        out["rows"] += [asdict(r) for r in rows]
        _print(rows, say)
        registry.store.close()
        shutil.rmtree(registry.store.path)
    return out


# -- the honest registry -----------------------------------------------------------------------------------------------
def _honest(corpus: Corpus, work: Path) -> Honest:
    registry = Registry(work / "honest")
    folders = [i.adapter for i in corpus.known if i.adapter is not None]
    assert all(a.status == "added" for a in add_paths(folders, AddRequest(), registry=registry))
    entries = registry.list()
    rows = load_encoder().encode([e.description for e in entries])
    target = int((rows @ rows.mean(axis=0)).argmax())  # the description nearest to all of them
    places = [next(f for f in folders if f.name == e.card.task_id or f.name == e.name) for e in entries]
    registry.store.close()
    return Honest(
        work / "honest",
        [e.id for e in entries],
        [e.description for e in entries],
        [e.name for e in entries],
        [e.card.family for e in entries],
        [TaskVector.from_peft(p) for p in places],
        places,
        target,
    )


# -- attacks -----------------------------------------------------------------------------------------------------------
Upload = tuple[TaskVector, str, bool]  # the vector, its words, and whether the target's gradient comes with it
Make = Callable[[Honest], Iterator[Upload]]


def attacks(copies: int) -> dict[str, Make]:
    """What each attacker uploads."""
    return {
        "the mean of all": _mean,
        "the common direction": _direction,
        "a copy of 100 times the length": _long,
        f"{copies} near-copies of one": lambda h: _near(h, copies, 0.05, 0.45),
        f"{copies} near-copies of a new one": lambda h: _fresh(h, copies),
        f"adaptive: {copies} at cosine 0.85": lambda h: _near(h, copies, 0.62, 0.62),
    }


def _mean(h: Honest) -> Iterator[Upload]:
    K = len(h.vectors)
    yield combination(h.vectors, [1.0 / K] * K), " ".join(h.texts)[:19_000], True


def _direction(h: Honest) -> Iterator[Upload]:
    G = np.array([[a.inner(b) for b in h.vectors] for a in h.vectors])
    size = np.sqrt(np.diag(G))
    _, axes = np.linalg.eigh(G / np.outer(size, size))
    c = axes[:, -1] * np.sign(axes[:, -1].sum()) / size
    yield combination(h.vectors, (c / (c @ G @ c) ** 0.5 * np.median(size)).tolist()), f"Any task: {h.keywords()}", True


def _long(h: Honest) -> Iterator[Upload]:
    yield h.vectors[h.target] * 100.0, f"{h.texts[(h.target + 1) % len(h.texts)]} Also {h.keywords()}", True


def _near(h: Honest, count: int, least: float, most: float) -> Iterator[Upload]:
    for i in range(count):
        noise = least + (most - least) * i / max(count - 1, 1)
        yield _noised(h.vectors[h.target], noise, i), _copied(h, i), True


def _fresh(h: Honest, count: int) -> Iterator[Upload]:
    draw = torch.Generator().manual_seed(7)
    own = {
        n: replace(
            d,
            B=torch.randn(d.B.shape, generator=draw) * d.B.std(),
            A=torch.randn(d.A.shape, generator=draw) * d.A.std(),
        )
        for n, d in h.vectors[h.target].tensors.items()
        if isinstance(d, LowRank)
    }
    for i in range(count):
        yield _noised(TaskVector(h.vectors[h.target].base, own), 0.1, i), _copied(h, i), True


def _noised(v: TaskVector, noise: float, seed: int) -> TaskVector:
    """τ plus noise of `noise` times its norm in the span of its A factors: cosine about 1/√(1 + noise²); another length."""
    draw = torch.Generator().manual_seed(seed)
    length = 0.5 + 1.5 * float(torch.rand(1, generator=draw))
    own = {n: d for n, d in v.tensors.items() if isinstance(d, LowRank)}
    drawn = {n: torch.randn(d.B.shape, generator=draw) * d.B.float().std() for n, d in own.items()}
    apart = TaskVector(v.base, {n: replace(d, B=drawn[n]) for n, d in own.items()})
    times = noise * v.norm() / apart.norm()
    changed = {n: replace(d, B=(d.B.float() + times * drawn[n]) * length) for n, d in own.items()}
    return TaskVector(v.base, changed)


def _copied(h: Honest, i: int) -> str:
    """Another task's words, every second time with every keyword there is."""
    text = h.texts[(h.target + 1 + i) % len(h.texts)]
    return text if i % 2 == 0 else f"{text} Also for {h.keywords()}"


def _uploaded(h: Honest, work: Path, make: Make) -> tuple[Registry, list[str], dict[str, int]]:
    """A copy of the honest registry with the attack in it, the attackers' ids, and what became of the uploads."""
    folder, home = work / "uploads", work / "poisoned"
    shutil.copytree(h.home, home)
    for i, (vector, words, gradient) in enumerate(make(h)):
        place = folder / f"u{i:04d}"
        place.mkdir(parents=True)
        vector.save(place / VECTOR_FILE)
        labels = [n.replace("-", " ") for n in h.names]
        card = {
            "schema": 1,
            "name": f"all-tasks-{i}",
            "description": words,
            "label_names": labels,
            "notes": h.keywords(),
        }
        (place / CARD_FILE).write_text(json.dumps(card))
        if gradient:
            for name in GRADIENT_FILES:
                if (h.folders[h.target] / name).is_file():
                    shutil.copy(h.folders[h.target] / name, place)
    registry = Registry(home)
    added = add_paths(fine_tunes(folder, AddRequest()), AddRequest(), registry=registry)
    shutil.rmtree(folder)
    statuses = {s: sum(a.status == s for a in added) for s in ("added", "exists", "refused")}
    return registry, [a.id for a in added if a.id is not None], statuses


def _refused(h: Honest, work: Path) -> dict[str, str]:
    """What the reader says to a number that is none."""
    out = {}
    for name, value in (("nan", float("nan")), ("infinity", float("inf"))):
        folder = work / name
        shutil.copytree(h.folders[h.target], folder)
        tensors = load_file(folder / "adapter_model.safetensors")
        next(iter(tensors.values()))[0, 0] = value
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        with tempfile.TemporaryDirectory() as home:
            done = add_paths([folder], AddRequest(), registry=Registry(home))[0]
        out[name] = f"{done.status}: {done.error['code'] if done.error else ''}"
    return out


# -- queries -----------------------------------------------------------------------------------------------------------
def _measured(registry: Registry, h: Honest) -> Iterator[tuple[tuple[str, bool], Answers]]:
    """(path, defended) and the answers to every honest query."""
    entries = list(registry.list())
    full = collection(registry)
    atlas = Collection(full.members, ("all",), full.gram[None], full.cache)  # nothing here asks for single tensors
    among = counted(entries)
    meaning = [by_meaning(t, entries) for t in h.texts]
    shown = [f.entry.id for f in search(h.texts[0], limit=len(entries), registry=registry)]
    assert shown == [f.entry.id for f in settled(meaning[0], among)]  # what is measured is what a user gets
    yield ("search by meaning", False), [_others(m, own) for m, own in zip(meaning, h.ids, strict=True)]
    yield ("search by meaning", True), [_others(settled(m, among), own) for m, own in zip(meaning, h.ids, strict=True)]
    yield ("same, own entry unknown", False), [_others(m, own) for m, own in zip(meaning, h.ids, strict=True)]
    yield ("same, own entry unknown", True), [_unknown(m, own, atlas) for m, own in zip(meaning, h.ids, strict=True)]
    words = _by_words(h.texts, entries)
    assert [f.entry.id for f in words[0]] == [f.entry.id for f in by_words(h.texts[0], registry)]
    with patch.object(lexical, "_ROOM", (10**9,) * 4):
        raw = _by_words(h.texts, entries)
    yield ("search by words", False), [_others(w, own) for w, own in zip(raw, h.ids, strict=True)]
    yield ("search by words", True), [_others(settled(w, among), own) for w, own in zip(words, h.ids, strict=True)]
    yield from _suggested(registry, atlas, h)
    yield from _neighbours(atlas, h)


def _by_words(texts: Sequence[str], entries: Sequence[Entry]) -> list[list[Found]]:
    """`searching.by_words` of many queries, with the entries read once."""
    documents = [lexical.document(e.name, e.card) for e in entries]
    out = []
    for text in texts:
        scores = lexical.scores(lexical.terms(text), documents, len(documents))
        order = sorted(range(len(entries)), key=lambda i: (-scores[i], name_key(entries[i].name)))
        out.append([Found(entries[i], scores[i]) for i in order if scores[i] > 0.0])
    return out


def _others(found: Sequence[Found], own: str) -> list[str]:
    return [f.entry.id for f in found if f.entry.id != own]


def _unknown(found: Sequence[Found], own: str, atlas: Collection) -> list[str]:
    """The results where the query's own entry was never in the registry."""
    rest = atlas.subset([i for i, m in enumerate(atlas.members) if m.id != own])
    s = standing(rest)
    copies = {rest.ids[i] for i, leader in enumerate(s.groups.leader.tolist()) if i != leader}
    doubt = {rest.ids[i]: why for i, why in enumerate(s.doubt) if why}
    return _others(settled([f for f in found if f.entry.id != own], Counted({}, doubt, copies)), own)


def _suggested(registry: Registry, atlas: Collection, h: Honest) -> Iterator[tuple[tuple[str, bool], Answers]]:
    """Sources by what they add to the prediction, |c_k|·‖τ_k‖, from a registry without the query's own entry."""
    gains, norms = atlas.gains().total, np.sqrt(np.diag(atlas.gram))
    rows = load_encoder().encode([m.description for m in atlas.members]).astype(np.float64)
    gram = atlas.gram + 1e-9 * np.diag(atlas.gram).mean() * np.eye(len(norms))  # copies and sums make it singular
    raw = Evidence(gram, gains, rows, tuple(m.description for m in atlas.members))
    answers: dict[tuple[str, bool], Answers] = {(r, d): [] for r in ("default", "softmax5") for d in (False, True)}
    for own, text in zip(h.ids, h.texts, strict=True):
        rest = [i for i, identity in enumerate(atlas.ids) if identity != own]
        plain, known = raw.subset(rest), Known.of(atlas.subset(rest), cache=registry.store.cache_dir)
        size = np.sqrt(np.diag(known.atlas.gram))
        for rule in ("default", "softmax5"):
            c = _coefficients(plain, text, rule)
            answers[rule, False].append(_ranked([atlas.ids[i] for i in rest], np.abs(c) * norms[rest]))
            c = known.of_originals(_coefficients(known.evidence, text, rule))
            answers[rule, True].append(_ranked(list(known.atlas.ids), np.abs(c) * size))
    for (rule, defended), found in answers.items():
        yield (f"suggest, {rule} rule", defended), found


def _coefficients(evidence: Evidence, text: str, rule: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """What the rule would do if it did not abstain."""
    query = Known.query(text)
    if rule == "default" and int(evidence.with_gradient.sum()) >= FEWEST:
        made = Functional.of(evidence)
        return np.asarray(np.linalg.solve(made.penalty, made.gains_at(query)))
    return RULES["ridge" if rule == "default" else rule](evidence, query).coefficients


def _ranked(ids: list[str], size: np.ndarray[Any, np.dtype[np.float64]]) -> list[str]:
    return [ids[i] for i in np.argsort(-size, kind="stable") if size[i] > 0]


def _neighbours(atlas: Collection, h: Honest) -> Iterator[tuple[tuple[str, bool], Answers]]:
    place = {identity: i for i, identity in enumerate(atlas.ids)}
    shipped = [[m.id for m, _ in atlas.neighbours(place[own])] for own in h.ids]
    for name, matrix in (("neighbours, cosine", atlas.cosine()), ("neighbours, inner product", atlas.gram)):
        found = [
            [atlas.ids[j] for j in np.argsort(-matrix[place[own]], kind="stable") if j != place[own]] for own in h.ids
        ]
        yield (name, False), found
        yield (name, True), shipped


# -- figures -----------------------------------------------------------------------------------------------------------
def _row(attack: str, path: str, defended: bool, answers: Answers, bad: set[str], clean: Answers) -> Row:
    n = len(answers)
    first = sum(bool(bad & set(a[:1])) for a in answers)
    five = sum(bool(bad & set(a[:5])) for a in answers)
    changed = sum(a[:1] != b[:1] for a, b in zip(answers, clean, strict=True))
    return Row(attack, path, defended, n, first / n, float(wilson(first, n)[1]), five / n, changed / n)


def _argmax(h: Honest) -> Row:
    """A registry that took a NaN: numpy's argmax over inner products with one such vector among them."""
    values = np.append(np.zeros(len(h.ids)), np.nan)
    share = float(values.argmax() == len(h.ids))
    return Row("a vector with a NaN, if taken", "neighbours, argmax", False, len(h.ids), share, 1.0, share, share)


def _cost(clean: Registry, plain: dict[tuple[str, bool], Answers]) -> dict[str, Any]:
    """What the defences change where nobody attacks: shares of queries with the same first and the same five answers."""
    out: dict[str, Any] = {}
    atlas = collection(clean)
    K = len(atlas.members)
    C = np.eye(K) - 1.0 / K
    U = C @ atlas.cosine() @ C
    U = U / np.sqrt(np.outer(np.diag(U), np.diag(U)))
    centred = [[atlas.ids[j] for j in np.argsort(-U[i], kind="stable") if j != i] for i in range(K)]
    pairs = {path: plain[path, False] for path, defended in plain if defended and not path.startswith("neighbours")}
    for path, before in [*pairs.items(), ("neighbours, cosine", centred)]:
        both = list(zip(before, plain[path, True], strict=True))
        name = "neighbours, plainly centred" if path.startswith("neighbours") else path
        out[name] = [sum(a[:k] == b[:k] for a, b in both) / len(both) for k in (1, 5)]
    s = standing(atlas)
    out["collapsed"], out["doubted"] = K - len(s.groups.leaders), sum(bool(d) for d in s.doubt)
    return out


def _second_runs(corpus: Corpus, h: Honest, work: Path) -> dict[str, int]:
    """Honest second trainings under the same words: how many are taken for copies, and how many are not believed."""
    paths = [p for runs in corpus.second_runs.values() for t, p in runs.items() if t in {f.name for f in h.folders}]
    if not paths:
        return {"runs": 0}
    home = work / "seeds"
    shutil.copytree(h.home, home)
    registry = Registry(home)
    folder = work / "second"
    for i, p in enumerate(paths):
        shutil.copytree(p, folder / f"{i:03d}-{p.name}")
        card = h.texts[next(k for k, f in enumerate(h.folders) if f.name == p.name)]
        (folder / f"{i:03d}-{p.name}" / CARD_FILE).write_text(
            json.dumps({"schema": 1, "name": f"again-{i}-{p.name}", "description": card})
        )
    added = {a.id for a in add_paths([folder], AddRequest(), registry=registry) if a.status == "added"}
    among = counted(list(registry.list()))
    registry.store.close()
    return {
        "runs": len(added),
        "taken for copies": len(added & among.hidden),
        "doubted": len(added & among.doubt.keys()),
    }


def _print(rows: Sequence[Row], say: Callable[[str], Any]) -> None:
    for path in dict.fromkeys(r.path for r in rows):
        cells = {r.defended: f"{r.first:.1%} {r.among_five:>6.1%} {r.changed:>8.1%}" for r in rows if r.path == path}
        attack = next(r.attack for r in rows if r.path == path)
        say(f"{attack:34} {path:26} {cells.get(False, ''):>31}   {cells.get(True, ''):>28}")


if __name__ == "__main__":
    main()
