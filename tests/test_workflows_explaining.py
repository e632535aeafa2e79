"""Explaining: real adapters are told by their weights, odd vectors get sensible words, and the page says it safely."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from comgrad.errors import ComgradError, NotFound
from comgrad.explain.explanation import Claim, Explanation, Neighbour
from comgrad.types import BaseRef
from comgrad.vectors.delta import Dense, LowRank
from comgrad.vectors.peft_write import write_peft
from comgrad.vectors.task_vector import TaskVector
from comgrad.workflows.adding import AddRequest, add_paths
from comgrad.workflows.atlas import Atlas
from comgrad.workflows.explain_known import reference_of
from comgrad.workflows.explain_report import page
from comgrad.workflows.explaining import explain
from comgrad.workflows.registry import Registry
from explain_models import BASE, dense_noise, embeddings, labels, noise, planted

HELD_OUT = "intent-banking"
CLAIM = "Sort questions that people ask their bank into 15 intents."
WRONG = "Tell whether a tweet is hateful towards a group of people."


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, zoo: list[Path]) -> Path:
    """A registry of all shipped adapters but one."""
    folder = tmp_path_factory.mktemp("registry")
    added = add_paths([p for p in zoo if p.name != HELD_OUT], AddRequest(), registry=Registry(folder))
    assert sum(a.status == "added" for a in added) == 37
    return folder


@pytest.fixture
def known(filled: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setenv("COMGRAD_HOME", str(filled))
    return Registry()


@pytest.fixture(scope="module")
def atlas(filled: Path) -> Atlas:
    return Atlas(Registry(filled))


@pytest.fixture(scope="module")
def adapter(zoo: list[Path]) -> Path:
    return next(p for p in zoo if p.name == HELD_OUT)


@pytest.fixture(scope="module")
def told(atlas: Atlas, adapter: Path) -> Explanation:
    """The explanation of the adapter that is not in the registry."""
    return atlas.explain(TaskVector.from_peft(adapter), claim=CLAIM)


def plain(x: Explanation) -> dict[str, Any]:
    """As JSON, which has no NaN; nothing in it says that a vector is safe."""
    text = json.dumps(x.as_dict(), allow_nan=False)
    assert "is safe" not in text.replace("no result here means that a vector is safe", "")
    return json.loads(text)


def shaped(like: TaskVector, make: Callable[[tuple[int, ...]], Any]) -> TaskVector:
    return TaskVector(like.base, {n: make(d.shape) for n, d in like.tensors.items()})


# -- a real adapter ------------------------------------------------------------------------------------------------
def test_an_unknown_adapter_is_told_by_its_weights(known: Registry, adapter: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    found = explain(str(adapter), html=out)
    assert found.verdict == "consistent" and found.family == "intent"
    assert found.neighbours[0].family == "intent"
    assert found.base.status == "verified"
    assert found.claim is not None and found.claim.status == "consistent"
    assert found.family_odds is not None and 2 * found.family_odds[0] > found.family_odds[1]
    assert found.residual_random is not None and found.residual < found.residual_random.low
    assert sum(s.share for s in found.sources) + found.residual == pytest.approx(1.0)
    assert all(s.coefficient > 0 for s in found.sources)
    data = plain(found)
    assert {"sources", "residual", "description", "evidence", "verdict", "neighbours", "base", "claim"} <= set(data)
    assert {"id", "name", "coefficient"} <= set(data["sources"][0])
    assert [x["name"] for x in data["evidence"]][:3] == ["base", "explained by known vectors", "nearest known vector"]
    assert all(e["figure"] and e["null"] and e["meaning"] for e in data["evidence"])
    assert len(data["layers"]) == 6 and sum(x["energy"] for x in data["layers"]) == pytest.approx(1.0)
    assert data["path"] == str(out) and out.stat().st_size < 60_000


def test_a_wrong_claim_is_contradicted_and_the_decomposition_is_that_of_the_vectors(
    known: Registry, adapter: Path
) -> None:
    found, tau = explain(str(adapter), claim=WRONG), TaskVector.from_peft(adapter)
    assert found.claim is not None and found.claim.text == WRONG
    assert found.claim.status == "contradictory" and found.verdict == "suspicious"
    assert found.family == "intent"  # what it is does not depend on what is said
    assert min(rank for _, rank in found.claim.like) > 5
    rest = tau
    for s in found.sources:
        rest = rest - s.coefficient * known.get(s.id).vector()
    assert found.residual == pytest.approx(rest.inner(rest) / tau.inner(tau), abs=1e-6)
    cosines = {n.id: tau.cosine(known.get(n.id).vector()) for n in found.neighbours}
    assert {n.id: n.cosine for n in found.neighbours} == pytest.approx(cosines, abs=1e-6)


def test_a_known_vector_is_left_out_of_its_own_explanation(known: Registry, zoo: list[Path]) -> None:
    by_name, by_path = explain("intent-home"), explain(str(next(p for p in zoo if p.name == "intent-home")))
    for found in (by_name, by_path):
        assert found.known == 36
        assert "intent-home" not in {n.name for n in found.neighbours} | {s.name for s in found.sources}
        assert found.family == "intent"
    assert by_name.neighbours == by_path.neighbours
    assert [e.figure for e in by_path.evidence if e.name == "copy"] == [
        "the same vector as 'intent-home' of the registry"
    ]
    assert by_path.reasons[0].startswith("it is the same vector as 'intent-home' of the registry")
    assert by_path.reasons[1:] == by_name.reasons
    assert not [e for e in by_name.evidence if e.name == "copy"]


def test_the_cache_of_subspaces_changes_nothing_and_grows(filled: Path, adapter: Path, tmp_path: Path) -> None:
    home = Path(shutil.copytree(filled, tmp_path / "home"))
    cache = Registry(home).store.cache_dir
    tau = TaskVector.from_peft(adapter)
    first = Atlas(Registry(home)).explain(tau)
    (file,) = cache.glob("subspaces-*.npz")
    again = Atlas(Registry(home)).explain(tau)
    assert rounded(plain(first)) == rounded(plain(again))
    add_paths([adapter], AddRequest(), registry=Registry(home))
    other = TaskVector.from_peft(adapter.parent / "sexism-category")
    grown = Atlas(Registry(home)).explain(other)
    file.write_bytes(b"broken")
    assert rounded(plain(Atlas(Registry(home)).explain(other))) == rounded(plain(grown))


# -- laws ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("factor", [0.25, 3.0])
def test_length_changes_the_coefficients_and_the_line_about_length_only(
    atlas: Atlas, adapter: Path, told: Explanation, factor: float
) -> None:
    tau = TaskVector.from_peft(adapter)
    a, b = plain(told), plain(atlas.explain(tau * factor, claim=CLAIM))
    for x, y in zip(a.pop("sources"), b.pop("sources"), strict=True):
        assert y["coefficient"] == pytest.approx(factor * x["coefficient"], rel=1e-4)
        assert y["share"] == pytest.approx(x["share"], rel=1e-4)
    assert b.pop("norm") == pytest.approx(factor * a.pop("norm"), rel=1e-5)
    lines = [[e for e in x.pop("evidence") if e["name"] != "length"] for x in (a, b)]
    assert lines[0] == lines[1]
    assert rounded(a) == rounded(b)


def test_gauge_changes_nothing(atlas: Atlas, adapter: Path, told: Explanation) -> None:
    tau = TaskVector.from_peft(adapter)
    g = torch.Generator().manual_seed(0)

    def turned(d: Any) -> LowRank:
        R = torch.randn(d.rank, d.rank, generator=g, dtype=torch.float64)
        B, A = d.B.double() @ R, torch.linalg.inv(R) @ d.A.double()
        return replace(d, B=B.float(), A=A.float())

    same = TaskVector(tau.base, {n: turned(d) for n, d in tau.tensors.items()})
    assert rounded(plain(told), 3) == rounded(plain(atlas.explain(same, claim=CLAIM)), 3)


def rounded(value: Any, digits: int = 4) -> Any:
    """Numbers to so many significant digits."""
    if isinstance(value, dict):
        return {k: rounded(v, digits) for k, v in value.items() if k != "evidence"}
    if isinstance(value, list):
        return [rounded(v, digits) for v in value]
    return pytest.approx(value, rel=10.0**-digits, abs=1e-5) if isinstance(value, float) else value


# -- odd vectors ---------------------------------------------------------------------------------------------------
def test_noise_is_like_nothing(atlas: Atlas, adapter: Path) -> None:
    tau, g = TaskVector.from_peft(adapter), torch.Generator().manual_seed(1)
    low = shaped(tau, lambda s: LowRank(torch.randn(s[0], 8, generator=g), torch.randn(8, s[1], generator=g), 0.001))
    dense = shaped(tau, lambda s: Dense(0.001 * torch.randn(s, generator=g)))
    for vector in (low, dense):
        found = atlas.explain(vector, claim=CLAIM)
        assert found.verdict == "unexplained"
        assert found.description == "Nothing in it is like any of the 37 known tasks."
        assert "no more of it than of random vectors" in found.reasons[0]
        assert (found.family, found.family_odds, found.words) == ("", None, ())
        assert found.residual > 0.999 and found.like_random and found.candidates == ()
        text = page(found)
        assert "these are chance" in text and "What the explained part is made of" not in text
        plain(found)


def test_another_base_other_shapes_and_no_change_are_refused(atlas: Atlas, adapter: Path) -> None:
    tau = TaskVector.from_peft(adapter)
    other = atlas.explain(TaskVector(BaseRef("org/else", "ab" * 32), dict(tau.tensors)))
    assert other.verdict == "refused" and other.base.status == "contradictory"
    assert "fingerprint abababab" in other.reasons[0] and other.sources == () and other.description == ""
    small = atlas.explain(shaped(tau, lambda s: LowRank(torch.ones(10, 2), torch.ones(2, 12), 1.0)))
    assert small.verdict == "refused" and "(10, 12)" in small.base.detail
    zero = atlas.explain(tau * 0.0)
    assert zero.verdict == "refused" and "the fine-tune equals its base" in zero.reasons[0]
    for x in (other, small, zero):
        plain(x)
        assert "Refused" in page(x)


def test_a_base_that_was_only_named_is_declared(atlas: Atlas, adapter: Path) -> None:
    tau = TaskVector.from_peft(adapter)
    found = atlas.explain(TaskVector(BaseRef(tau.base.name), dict(tau.tensors)))
    assert found.base.status == "declared" and found.family == "intent"


def test_a_card_that_records_another_base_is_contradicted(known: Registry, adapter: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(adapter, tmp_path / "moved"))
    card = json.loads((folder / "task_card.json").read_text())
    (folder / "task_card.json").write_text(json.dumps({**card, "base_fingerprint": "cd" * 32}))
    found = explain(str(folder))
    assert found.verdict == "refused" and "its card records" in found.base.detail
    (folder / "task_card.json").write_text("{broken")
    found = explain(str(folder))
    assert found.family == "intent" and found.claim is None
    assert any("its card is not used" in w for w in found.warnings)


def test_full_rank_rank_one_long_opposite_and_mean_vectors(atlas: Atlas, adapter: Path) -> None:
    tau, g = TaskVector.from_peft(adapter), torch.Generator().manual_seed(2)
    full = TaskVector(
        tau.base, {n: Dense(d.dense() + 1e-4 * torch.randn(d.shape, generator=g)) for n, d in tau.tensors.items()}
    )
    found = atlas.explain(full)
    assert (found.kind, found.rank, found.family) == ("dense", None, "intent")
    one = atlas.explain(tau.compress(1)[0])
    assert one.rank == 1 and one.family == "intent"
    assert any("rank 1" in e.meaning for e in one.evidence)
    long = atlas.explain(tau * 100.0)
    assert long.verdict == "suspicious" and "times as long" in long.reasons[0]
    against = atlas.explain(-atlas.collection.members[5].load())
    assert against.verdict == "suspicious"
    assert f"points away from '{atlas.collection.members[5].name}'" in against.reasons[0]
    mean = sum(m.load() / m.load().norm() for m in atlas.collection.members)
    hub = atlas.explain(mean)
    assert hub.verdict == "suspicious" and "nearly the mean" in hub.reasons[0]
    for x in (found, one, long, against, hub):
        plain(x)


def test_a_sum_of_known_vectors_is_called_one(atlas: Atlas) -> None:
    a, b = (m.load() for m in atlas.collection.members[3:5])
    found = atlas.explain(0.5 * a + 2.0 * b)
    assert found.residual < 1e-6
    assert {s.name: round(s.coefficient, 3) for s in found.sources} == {
        atlas.collection.members[3].name: 0.5,
        atlas.collection.members[4].name: 2.0,
    }
    assert found.description.startswith("Most of it is a sum of known vectors: 2 × ")


def test_tensors_that_nobody_knows_are_said(atlas: Atlas, adapter: Path) -> None:
    tau = TaskVector.from_peft(adapter)
    extra = LowRank(torch.ones(20, 1), torch.ones(1, 20), 1.0)
    found = atlas.explain(TaskVector(tau.base, {**tau.tensors, "other.weight": extra}))
    assert found.verdict == "unexplained" and "tensors that no known vector changes" in found.reasons[0]
    assert sum(s.share for s in found.sources) + found.residual == pytest.approx(1.0)
    alone = atlas.explain(TaskVector(tau.base, {"other.weight": extra}))
    assert alone.verdict == "unexplained" and alone.residual == 1.0
    plain(alone)


def test_copies_and_the_mean_of_the_known_vectors_take_nothing_over() -> None:
    vectors, cards = planted(), [{"description": x.description, "family": x.family} for x in labels()]
    plain_answer = Atlas(vectors[1:], cards[1:]).explain(vectors[0])
    hub = sum(v / v.norm() for v in vectors[1:])
    lie = {"description": "Anything at all", "family": "hijacked"}
    g = torch.Generator().manual_seed(9)

    def copy(v: TaskVector) -> TaskVector:
        moved = {
            n: LowRank(d.B + 1e-4 * torch.randn(d.B.shape, generator=g), d.A, d.scale) for n, d in v.tensors.items()
        }
        return TaskVector(v.base, moved)

    crowd = [*vectors[1:], hub, hub * 100.0, *(copy(vectors[7]) for _ in range(40))]
    found = Atlas(crowd, [*cards[1:], *([lie] * 42)]).explain(vectors[0])
    assert found.known == 19
    assert found.family == plain_answer.family == "family0"
    assert [n.name for n in found.neighbours] == [n.name for n in plain_answer.neighbours]
    assert any("does not count" in w for w in found.warnings) and any("near-copy" in w for w in found.warnings)


# -- small registries ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("count", [1, 2, 9])
def test_few_known_vectors_are_too_few_to_judge_by(count: int) -> None:
    vectors, cards = planted(), [{"description": x.description, "family": x.family} for x in labels()]
    atlas = Atlas(vectors[:count], cards[:count])
    copy = vectors[0] * 2.0
    for vector in (vectors[count], noise(1), noise(2, rank=1), dense_noise(3), copy):
        found = atlas.explain(vector, claim="Decide about the weather.")
        assert found.verdict == "unexplained"
        *copied, why = found.reasons[:2] if vector is copy and count > 1 else found.reasons[:1]
        assert re.search(r"only (one|\d) described vectors? (is|are) known", why)
        assert all(x.startswith("it is the same vector as 'vector 0' of the registry") for x in copied)
        assert found.residual_known is None and found.family_odds is None
        plain(found)
        page(found)


def test_an_empty_registry_and_one_without_descriptions_say_what_to_do(adapter: Path) -> None:
    with pytest.raises(ComgradError, match="a registry with no vectors; .*; add adapters with: comgrad add PATH") as e:
        explain(str(adapter))
    assert e.value.code == "empty-registry"
    atlas = Atlas(planted()[:1], [{"description": ""}])
    with pytest.raises(ComgradError, match="no other described vector over its base; .*--describe"):
        atlas.explain(noise(1))


def test_what_is_not_there_is_not_found(known: Registry) -> None:
    with pytest.raises(NotFound, match="no such path, and no vector of that name"):
        explain("./nowhere")
    with pytest.raises(NotFound):
        explain("nobody-of-that-name")
    with pytest.raises(NotFound, match="an empty name"):
        explain(" ")
    with pytest.raises(ComgradError, match="an empty description"):
        explain("intent-home", claim=" ")


def test_nan_is_refused_by_name(atlas: Atlas, adapter: Path) -> None:
    tau = TaskVector.from_peft(adapter)
    bad = shaped(tau, lambda s: Dense(torch.full(s, math.nan)))
    with pytest.raises(ComgradError, match="NaN or infinite") as e:
        atlas.explain(bad)
    assert e.value.code == "not-finite"


def test_a_reference_of_loose_vectors_has_their_gram_in_layers() -> None:
    vectors = planted(each=2)
    ref = reference_of(vectors, labels(each=2), embeddings(each=2))
    assert ref.layers == ("0", "1")
    expected = np.array([[a.inner(b) for b in vectors] for a in vectors])
    np.testing.assert_allclose(ref.total, expected, rtol=1e-5, atol=1e-3)


def test_a_vector_over_another_base_of_the_registry_meets_its_own(
    filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Path(shutil.copytree(filled, tmp_path / "home"))
    for i, v in enumerate(planted(each=1)[:3]):
        named = TaskVector(BaseRef("planted/base"), dict(v.tensors))
        card = {"schema": 1, "description": f"Planted task number {i}", "name": f"planted-{i}"}
        write_peft(named, tmp_path / f"p{i}", extra_files={"task_card.json": json.dumps(card).encode()})
    add_paths([tmp_path / "p0", tmp_path / "p1"], AddRequest(), registry=Registry(home))
    monkeypatch.setenv("COMGRAD_HOME", str(home))
    found = explain(str(tmp_path / "p2"))
    assert found.known == 2 and {n.name for n in found.neighbours} == {"planted-0", "planted-1"}
    assert found.base.status == "declared"
    stranger = TaskVector(replace(BASE, name="org/unknown", fingerprint=None), dict(planted()[0].tensors))
    write_peft(stranger, tmp_path / "s")
    refused = explain(str(tmp_path / "s"))
    assert refused.verdict == "refused" and "it names the base 'org/unknown'" in refused.reasons[0]


# -- the page ------------------------------------------------------------------------------------------------------
HOSTILE = "\"><script>alert(1)</script><img src=x onerror=alert(1)>'{{7*7}}${1}</style></svg>"


class Tags(HTMLParser):
    """Every tag and attribute of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in {"meta", "br", "rect"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"


def test_the_page_needs_nothing_and_runs_nothing(told: Explanation) -> None:
    text = page(told)
    found = Tags(text)
    assert found.open == []
    assert not {"script", "link", "iframe", "object", "img", "base", "form"} & set(found.tags)
    assert not [a for a, _ in found.attributes if a.startswith("on") or a in ("href", "src", "xlink:href", "style")]
    assert "http" not in text.replace("http-equiv", "") and "url(" not in text and "@import" not in text
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text
    for heading in ("Nearest known tasks", "The claim", "The base", "Layer by layer", "What this cannot tell"):
        assert heading in text
    assert "nan" not in re.sub(r"[a-z]nan|nan[a-z]", "", text.lower())
    widths = [float(v) for a, v in found.attributes if a == "width" and v is not None and "-" not in v]
    assert len(widths) > 20 and all(0 <= w <= 100 for w in widths)


def test_hostile_words_stay_words(told: Explanation) -> None:
    assert told.claim is not None
    clean = replace(told, warnings=("one",), reasons=("one",))
    dirty = replace(
        clean,
        subject=HOSTILE,
        description=HOSTILE,
        family=HOSTILE,
        reasons=(HOSTILE,),
        warnings=(HOSTILE,),
        base=replace(clean.base, name=HOSTILE, detail=HOSTILE, fingerprint=HOSTILE),
        claim=replace(told.claim, text=HOSTILE, like=((HOSTILE, 1),)),
        neighbours=tuple(replace(n, name=HOSTILE, family=HOSTILE, description=HOSTILE) for n in clean.neighbours),
        sources=tuple(replace(s, name=HOSTILE) for s in clean.sources),
        candidates=tuple(replace(c, name=HOSTILE, description=HOSTILE) for c in clean.candidates),
        words=tuple(replace(w, word=HOSTILE) for w in clean.words),
        layers=tuple(replace(x, name=HOSTILE, nearest=HOSTILE) for x in clean.layers),
        evidence=tuple(replace(e, name=HOSTILE, figure=HOSTILE, null=HOSTILE, meaning=HOSTILE) for e in clean.evidence),
    )
    text = page(dirty)
    assert text.count("alert(1)") > 60  # all of it is shown
    assert Tags(text).tags == Tags(page(clean)).tags
    assert "<script" not in text and "<img" not in text and "49" not in re.findall(r"\{\{.{0,9}", text)


def test_the_page_holds_without_figures() -> None:
    atlas = Atlas(planted(), [{"description": x.description, "family": x.family} for x in labels()])
    found = atlas.explain(noise(5))
    bare = replace(found, neighbours=(), sources=(), layers=(), candidates=(), evidence=(), residual_random=None)
    assert Tags(page(bare)).open == []
    assert "Not checked" in page(bare)
    odd = replace(
        found,
        neighbours=(Neighbour("i", "n", "", "d", -0.5, None, -0.1, 0.0),),
        claim=Claim("c", "unexplained", 0.0, None, None, (), 3),
    )
    assert Tags(page(odd)).open == []
