"""Coefficients of known task vectors from a description: a table of rules with one interface.

`RULES[name](evidence, query)` gives a `Prediction`. With K known vectors, their Gram matrix G, ḡ the mean of its
diagonal, their descriptions' embeddings e_k, the query's e, and p_k = ⟨h(e), h(e_k)⟩ + offset the cosine that the learned
embedding predicts:

| rule | coefficients |
|---|---|
| `zero` | 0 |
| `mean` | 1/K |
| `nearest`, `tfidf-nearest` | 1 for the nearest description (by e, by TF-IDF), else 0 |
| `softmax3`, `softmax5`, `softmax10` | softmax of ⟨e, e_k⟩/0.1 over the nearest 3, 5, 10 |
| `eq1` | the note's Eq. 1: p_k √ḡ/‖τ_k‖, the coordinate of τ_q on τ_k for a τ_q of usual norm; h learned on cosines |
| `eq1-centred` | the same with h learned on centred cosines, and the mean added |
| `gram-corrected` | (R + λI)⁻¹p for p, R the cosines of the known vectors, λ = 1: coordinates in the span, not one by one |
| `ridge` | kernel ridge on the centred vectors; λ and scale by leave-one-out (`ridge.py`) |
| `functional` | gains predicted, risk and size charged; abstains (`functional.py`) |
| `functional-fixed` | the same with the text encoder's similarity alone, nothing learned |

Only the functional rules abstain. They fall back to `ridge` where too few tasks have gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from comgrad.describe import targets
from comgrad.describe.head import fit_head
from comgrad.predict import ridge
from comgrad.predict.evidence import Evidence, Prediction, Query, Vector
from comgrad.predict.functional import FEWEST, Functional

TEMPERATURE = 0.1
Rule = Callable[[Evidence, Query], Prediction]


def zero(evidence: Evidence, query: Query) -> Prediction:
    """No vector at all."""
    del query
    return Prediction(np.zeros(len(evidence)), "zero")


def mean(evidence: Evidence, query: Query) -> Prediction:
    """The mean of all vectors, whatever the description."""
    del query
    return Prediction(np.full(len(evidence), 1.0 / len(evidence)), "mean")


def nearest(evidence: Evidence, query: Query) -> Prediction:
    """The vector with the nearest description."""
    return Prediction(_one(evidence, evidence.embeddings @ query.embedding), "nearest")


def tfidf_nearest(evidence: Evidence, query: Query) -> Prediction:
    """The vector whose description shares most words, rare words weighing more; zero where none is shared."""
    from sklearn.feature_extraction.text import TfidfVectorizer  # a second of imports

    texts = TfidfVectorizer(sublinear_tf=True, stop_words="english", token_pattern=r"(?u)\b\w+\b")
    try:
        known = texts.fit_transform(evidence.texts)
    except ValueError:  # nothing but stop words anywhere
        return Prediction(np.zeros(len(evidence)), "tfidf-nearest")
    shared = np.asarray((known @ texts.transform([query.text]).T).todense()).ravel()
    return Prediction(_one(evidence, shared) * (shared.max() > 0.0), "tfidf-nearest")


def softmax(evidence: Evidence, query: Query, *, top: int) -> Prediction:
    """A softmax of the similarity over the `top` nearest descriptions."""
    score = evidence.embeddings @ query.embedding
    best = np.argsort(-score, kind="stable")[:top]
    weights = np.exp((score[best] - score[best[0]]) / TEMPERATURE)
    c = np.zeros(len(evidence))
    c[best] = weights / weights.sum()
    return Prediction(c, f"softmax{top}")


def eq1(evidence: Evidence, query: Query) -> Prediction:
    """The note's Eq. 1 as written: every known vector times its predicted coordinate."""
    head = fit_head(evidence.embeddings, targets.frobenius(evidence.gram))
    return Prediction(_coordinates(evidence, head.similarity(query.embedding[None], evidence.embeddings)[0]), "eq1")


def eq1_centred(evidence: Evidence, query: Query) -> Prediction:
    """Eq. 1 around the mean: h is taught what is left of the cosines when the mean vector is taken out."""
    head = fit_head(evidence.embeddings, targets.centred(evidence.gram))
    p = head.similarity(query.embedding[None], evidence.embeddings)[0]
    c = _coordinates(evidence, p)
    return Prediction(c - c.mean() + 1.0 / len(evidence), "eq1-centred")


def gram_corrected(evidence: Evidence, query: Query) -> Prediction:
    """Predicted inner products solved for coordinates in the span."""
    head = fit_head(evidence.embeddings, targets.frobenius(evidence.gram))
    cosine = head.similarity(query.embedding[None], evidence.embeddings)[0]
    system = targets.frobenius(evidence.gram) + np.eye(len(evidence))
    return Prediction(_coordinates(evidence, np.linalg.solve(system, cosine)), "gram-corrected")


def kernel_ridge(evidence: Evidence, query: Query) -> Prediction:
    """Ridge on the vectors themselves; λ, scale, and whether to use it at all, by leave-one-out."""
    return Prediction(ridge.fit(evidence.embeddings, evidence.gram).coefficients(query.embedding), "ridge")


def functional(evidence: Evidence, query: Query, *, learned: bool = True) -> Prediction:
    """Predicted gains, charged for risk; abstains. See `functional.Functional`."""
    if evidence.with_gradient.sum() < FEWEST:
        return kernel_ridge(evidence, query)
    return Functional.of(evidence, learned=learned).predict(query)


RULES: Mapping[str, Rule] = {
    "zero": zero,
    "mean": mean,
    "nearest": nearest,
    "tfidf-nearest": tfidf_nearest,
    "softmax3": partial(softmax, top=3),
    "softmax5": partial(softmax, top=5),
    "softmax10": partial(softmax, top=10),
    "eq1": eq1,
    "eq1-centred": eq1_centred,
    "gram-corrected": gram_corrected,
    "ridge": kernel_ridge,
    "functional": functional,
    "functional-fixed": partial(functional, learned=False),
}


def _one(evidence: Evidence, score: Vector) -> Vector:
    c = np.zeros(len(evidence))
    c[int(np.argmax(score))] = 1.0
    return c


def _coordinates(evidence: Evidence, cosine: Vector) -> Vector:
    """Predicted cosines as coordinates p_k √ḡ/‖τ_k‖."""
    own = np.maximum(np.diag(evidence.gram), 1e-300)
    c: Vector = cosine * np.sqrt(own.mean() / own)
    return c
