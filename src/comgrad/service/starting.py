"""A starting adapter from the geometry of some listings, written as the files that are downloaded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from comgrad.errors import ComgradError
from comgrad.service.files import README
from comgrad.service.modelcard import suggestion_card
from comgrad.service.scope import Matrix
from comgrad.service.warm import Warm

MOST = 100  # sources that are told
SHOWN = "suggestion.json"


@dataclass(frozen=True)
class Question:
    """What a starting adapter is asked for.

    Args:
        description: the task in words. meaning: their unit row, by the encoder of this key.
        reader: who alone may read the answer; None: whoever may read its sources.
    """

    description: str
    meaning: Matrix
    encoder: str
    rank: int | None
    rule: str | None
    dare: bool
    reader: str | None


def make(question: Question, warm: Warm, folder: Path) -> None:
    """Predict from the listings and write the answer to a new folder. Raises ComgradError."""
    from comgrad.predict.evidence import Query
    from comgrad.workflows.profile import layer_profile
    from comgrad.workflows.suggesting import predict, write_suggestion

    asked = question
    query = Query(asked.description, asked.meaning.astype(np.float64))
    known = warm.known(asked.encoder)
    made = predict(known, asked.description, rank=asked.rank, rule=asked.rule, dare=asked.dare, query=query)
    listed = {x.id: x for x in warm.listings}
    sources: list[dict[str, Any]] = []
    for s in made.sources[:MOST]:
        x = listed[s.id]
        words = {"description": x.description, "owner": x.owner}
        sources.append({"id": s.id, "name": x.full_name, "coefficient": s.coefficient, **words})
    told = [(s["id"], s["name"], s["coefficient"]) for s in sources]
    readme = suggestion_card(made.description, made.base, told, made.confidence).encode()
    shown = {
        "reader": asked.reader,
        "description": made.description,
        "made": {k: v for k, v in made.as_dict().items() if k not in ("path", "sources")},
        "sources": sources,
        "layers": [x.as_dict() for x in layer_profile(made.vector)],
    }
    try:
        write_suggestion(made, folder, extra_files={README: readme, SHOWN: json.dumps(shown).encode()})
    except ComgradError as error:
        if error.code != "exists":  # another thread or process answered the same question
            raise
