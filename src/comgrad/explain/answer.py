"""The explanation of a vector, from numbers: neighbours, decomposition, words, claim, verdict."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from comgrad.explain.calibration import FEWEST, Calibration, calibrate, towards_mean
from comgrad.explain.decomposition import LITTLE, Decomposition, decompose
from comgrad.explain.evidence import Measured, base_line, evidence_lines, named, spread_of
from comgrad.explain.explanation import (
    Base,
    Candidate,
    Claim,
    Explanation,
    LayerShare,
    Neighbour,
    Source,
    Word,
)
from comgrad.explain.layers import layer_profile
from comgrad.explain.null import random_residuals, share_at_most
from comgrad.explain.reference import Probe, Reference, Similar, by_subspace, by_weights, cosines
from comgrad.explain.verdict import CHANCE, Figures, claim_status, judge, points_away
from comgrad.explain.words import backwards, cosines_with, family_vote, fit_of, ranks, shared_words

MOST_NEIGHBOURS = 8
MOST_CANDIDATES = 5
CLAIM_LIKE = 3
MOST_TERMS = 4

LIMITS = (
    "It compares weights. It does not run the model, and no result here means that a vector is safe to use.",
    "It can only name what the registry describes. A task that is like none of the known ones stays unexplained.",
    "A hidden second behaviour, on a trigger word say, can be too small a part of the weights to show here.",
    "Names and descriptions of known vectors are their contributors' words; they were not checked either.",
)


@dataclass(frozen=True)
class Asked:
    """The vector in question, and what its card says.

    Args:
        spread: (L, K, K) covariance of a random vector's inner products, see `null`.
        z: (K,) of the overlaps against random subspaces.
        claim: its description; `claim_embedding` (d,) of norm 1, None without a claim or an encoder.
        twins: names of known vectors that it is a copy of, and that are left out.
    """

    subject: str
    base: Base
    kind: str
    rank: int | None
    probe: Probe
    spread: Float[np.ndarray, "l k k"]
    z: Float[np.ndarray, "j"]
    claim: str = ""
    claim_embedding: Float[np.ndarray, "d"] | None = None
    twins: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def explain(reference: Reference, asked: Asked, *, seed: int = 0) -> Explanation:
    """Explain one vector by the described ones. `seed` is of the random vectors that the residual is measured against."""
    probe = asked.probe
    near, inner = by_subspace(reference, probe), probe.inner.sum(axis=0)
    found = decompose(reference.total, inner, probe.total)
    random = random_residuals(reference.total, asked.spread.sum(axis=0), probe.total, seed=seed)
    calibration = calibrate(reference, group=True)  # relatives would make the unknown look unlike the known
    m = _measured(reference, asked, near, found, random)
    claim = _claim(reference, asked, near, calibration)
    figures = _figures(reference, asked, m, calibration, claim)
    verdict, reasons = judge(figures)
    if asked.twins:
        copied = f"it is the same vector as {named(asked.twins)} of the registry, which all the rest leaves out."
        reasons = (copied, *reasons)
    chance = m.beyond_random > CHANCE
    vote = family_vote(reference, near.row)
    family = "" if chance else vote.family
    odds = calibration.family_odds(vote.support) if calibration is not None and family else None
    neighbours = _neighbours(reference, asked, near)
    sources = _sources(reference, found, inner, probe.total)
    return Explanation(
        subject=asked.subject,
        verdict=verdict,
        reasons=reasons,
        description=_description(figures, family, odds, neighbours, sources),
        base=asked.base,
        known=len(reference),
        kind=asked.kind,
        rank=asked.rank,
        norm=probe.norm,
        residual=found.residual,
        like_random=chance,
        residual_random=spread_of(found.residual, random),
        residual_known=None if calibration is None else spread_of(found.residual, calibration.residual),
        nearest_known=None if calibration is None else spread_of(m.nearest, calibration.nearest),
        family=family,
        family_odds=odds,
        sources=sources,
        neighbours=neighbours,
        candidates=() if chance else _candidates(reference, near),
        words=() if chance else tuple(Word(**vars(w)) for w in shared_words(reference, near.row)),
        claim=claim,
        layers=_layers(reference, asked, seed),
        evidence=evidence_lines(reference, asked, m, calibration, claim, figures, family, odds),
        warnings=asked.warnings,
        limits=LIMITS,
    )


def _measured(
    reference: Reference, asked: Asked, near: Similar, found: Decomposition, random: Float[np.ndarray, "n"]
) -> Measured:
    probe, first = asked.probe, int(near.row.argmax())
    plain, pairs = cosines(reference, probe), _pairs(reference)
    return Measured(
        beyond_random=share_at_most(random, found.residual),
        random=random,
        residual=found.residual,
        nearest=float(near.row[first]),
        nearest_name=reference.labels[first].name,
        nearest_z=float(asked.z[first]),
        norm=probe.norm,
        mean=towards_mean(reference.total, probe.inner.sum(axis=0), probe.total),
        closest_cosine=float(plain.max()),
        closest_name=reference.labels[int(plain.argmax())].name,
        closest_usual=max(pairs, default=None),
        least=float(plain.min()),
        least_name=reference.labels[int(plain.argmin())].name,
        least_usual=min(pairs, default=0.0),
        twins=asked.twins,
        centred=near.centred,
    )


def _figures(
    reference: Reference, asked: Asked, m: Measured, calibration: Calibration | None, claim: Claim | None
) -> Figures:
    low, usual = None, 1.0
    if calibration is not None:
        low = share_at_most(calibration.nearest, m.nearest)
        usual = float((np.maximum(calibration.towards_mean, 0.0) ** 2).max())
    return Figures(
        known=len(reference),
        beyond_random=m.beyond_random,
        nearest_low=low,
        length=m.norm / float(reference.norms.max()),
        mean_share=max(m.mean, 0.0) ** 2,
        mean_usual=usual,
        claim=None if claim is None else claim.status,
        opposite=m.least_name if points_away(m.least, m.least_usual) else "",
        outside=asked.probe.outside / asked.probe.total,
    )


def refused(
    subject: str, base: Base, known: int, kind: str, rank: int | None, norm: float, reasons: tuple[str, ...]
) -> Explanation:
    """The explanation of a vector that cannot be compared."""
    return Explanation(
        subject, "refused", reasons, "", base, known, kind, rank, norm, evidence=(base_line(base),), limits=LIMITS
    )


def _description(
    f: Figures,
    family: str,
    odds: tuple[int, int] | None,
    neighbours: tuple[Neighbour, ...],
    sources: tuple[Source, ...],
) -> str:
    """What it most likely does, no surer than the figures are."""
    if f.opposite:
        return f"It points away from '{f.opposite}': adding it would undo what that vector does."
    if f.beyond_random > CHANCE:
        return f"Nothing in it is like {'the one known task' if f.known == 1 else f'any of the {f.known} known tasks'}."
    first = neighbours[0]
    told = first.description if len(first.description) <= 300 else first.description[:299].rstrip() + "…"
    also = [f"'{n.name}'" for n in neighbours[1:3] if n.subspace > 0.5 * first.subspace]
    beside = f" (then {' and '.join(also)})" if also else ""
    nearest = f"'{first.name}'{beside}, described as: “{told}”"
    if len(sources) > 1 and sum(x.share for x in sources) > 0.5 and sources[1].share > LITTLE:
        terms = " + ".join(f"{x.coefficient:.3g} × '{x.name}'" for x in sources[:MOST_TERMS])
        return f"Most of it is a sum of known vectors: {terms}. The nearest is {nearest}"
    weak = f.nearest_low is not None and f.nearest_low <= CHANCE
    if weak or f.known < FEWEST:
        few = f"the {f.known} known tasks" if f.known > 1 else "the one known task"
        start = "It is unlike the known tasks; the nearest guess is" if weak else f"Of {few}, it is nearest to"
        return f"{start} {nearest}"
    if not family:
        return f"It is most like {nearest}"
    sure = odds is not None and 2 * odds[0] > odds[1]
    return f"{'Most likely' if sure else 'Perhaps'} a task of the family '{family}', most like {nearest}"


def _pairs(reference: Reference) -> list[float]:
    """Cosines between the described vectors."""
    size = np.where(reference.norms > 0, reference.norms, np.inf)
    found: list[float] = (reference.total / np.outer(size, size))[np.triu_indices(len(reference), 1)].tolist()
    return found


def _sources(
    reference: Reference, found: Decomposition, inner: Float[np.ndarray, "k"], energy: float
) -> tuple[Source, ...]:
    share = found.coefficients * inner / energy  # at the optimum Σ c_k⟨τ, τ_k⟩ = ‖Σ c_k τ_k‖²
    order = sorted(found.order.tolist(), key=lambda k: -share[k])
    return tuple(
        Source(reference.labels[k].id, reference.labels[k].name, float(found.coefficients[k]), float(share[k]))
        for k in order
    )


def _neighbours(reference: Reference, asked: Asked, near: Similar) -> tuple[Neighbour, ...]:
    plain, light = cosines(reference, asked.probe), by_weights(reference, asked.probe)
    out = []
    for j in np.argsort(-near.row, kind="stable")[:MOST_NEIGHBOURS].tolist():
        x, z = reference.labels[j], float(asked.z[j])
        out.append(
            Neighbour(
                x.id,
                x.name,
                x.family,
                x.description,
                float(near.row[j]),
                z if np.isfinite(z) else None,
                float(light.row[j]),
                float(plain[j]),
            )
        )
    return tuple(out)


def _candidates(reference: Reference, near: Similar) -> tuple[Candidate, ...]:
    """Known descriptions by how well they fit: the mean rank of both ways from weights to words."""
    if not reference.embeddings.shape[1] or len(reference) < 2:
        return ()
    fit = fit_of(reference, near, reference.embeddings)
    back = cosines_with(reference, backwards(reference, near))
    order = np.argsort(ranks(fit) + ranks(back), kind="stable")[:MOST_CANDIDATES]
    return tuple(
        Candidate(
            reference.labels[j].id,
            reference.labels[j].name,
            reference.labels[j].description,
            float(fit[j]),
            float(back[j]),
        )
        for j in order.tolist()
    )


def _claim(reference: Reference, asked: Asked, near: Similar, calibration: Calibration | None) -> Claim | None:
    if asked.claim_embedding is None or not asked.claim:
        return None
    e = asked.claim_embedding
    fit = float(fit_of(reference, near, e[None])[0])
    place = ranks(near.row)
    like = np.argsort(-(reference.embeddings @ e), kind="stable")[:CLAIM_LIKE].tolist()
    return Claim(
        asked.claim,
        claim_status(calibration, fit, float(near.row.max())),
        fit,
        None if calibration is None else calibration.above_swapped(fit),
        None if calibration is None else calibration.below_true(fit),
        tuple((reference.labels[j].name, int(place[j])) for j in like),
        len(reference),
    )


def _layers(reference: Reference, asked: Asked, seed: int) -> tuple[LayerShare, ...]:
    return tuple(
        LayerShare(
            x.name,
            x.energy,
            x.usual,
            x.explained,
            x.random,
            "" if x.nearest is None else reference.labels[x.nearest].name,
        )
        for x in layer_profile(reference, asked.probe, asked.spread, seed=seed)
    )
