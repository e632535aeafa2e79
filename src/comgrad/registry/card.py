"""The card: what people say about a task vector, with a versioned schema. Facts are measured; a card is claimed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from comgrad.errors import FileRefused
from comgrad.registry import names
from comgrad.registry.cardfile import checked_json, checked_text, read_json, upgraded

SCHEMA = 1
MAX_DESCRIPTION = 20_000
MAX_EXTRA_BYTES = 16_384
MAX_LABELS = 20_000

Scalar = str | int | float | bool | None
Line = Annotated[str, Field(max_length=1_000)]
Text = Annotated[str, Field(max_length=MAX_DESCRIPTION)]
Labels = Annotated[tuple[Line, ...], Field(strict=False, max_length=MAX_LABELS)]


def _small(extra: dict[str, Any]) -> None:
    """Unknown keys must be JSON and small."""
    size = len(json.dumps(checked_json(extra), ensure_ascii=False).encode())
    if size > MAX_EXTRA_BYTES:
        raise ValueError(f"the unknown keys take {size} bytes and {MAX_EXTRA_BYTES} are allowed")


class _Model(BaseModel):
    """Immutable, strictly typed; a NaN or an infinity is refused."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False, populate_by_name=True, extra="forbid")

    @field_validator("*", mode="after")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        """Refuse characters that a reader cannot see or that change how the text reads."""
        return checked_text(value)


class Training(_Model):
    """How the vector was made. Other keys are kept if their values are JSON scalars."""

    model_config = ConfigDict(extra="allow")

    recipe: Line | None = None
    base_model: Line | None = None
    rank: int | None = Field(None, ge=0)
    alpha: float | None = None
    target: Line | None = None
    a_seed: int | None = None
    data_seed: int | None = None
    steps: int | None = Field(None, ge=0)
    batch_size: int | None = Field(None, ge=0)
    learning_rate: float | None = None
    optimizer: Line | None = None
    weight_decay: float | None = None
    max_length: int | None = Field(None, ge=0)
    logit_scale: float | None = None
    loss_before: float | None = None
    loss_after: float | None = None
    accuracy_before: float | None = None
    accuracy_after: float | None = None
    test_examples: int | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _scalars(self) -> Training:
        extra = self.__pydantic_extra__ or {}
        for key, value in extra.items():
            if not isinstance(value, str | int | float | bool | None):
                why = f"the unknown key {key!r} holds a {type(value).__name__}; only plain values are kept"
                raise ValueError(why)  # noqa: TRY004 - pydantic reports a ValueError as the field's, not a TypeError
        checked_text(extra)
        _small(extra)
        return self


class Parent(_Model):
    """A vector that this one was made from."""

    id: Annotated[str, Field(min_length=1, max_length=200)]
    role: Annotated[str, Field(min_length=1, max_length=40)]  # merge, suggest, train, ...
    coefficient: float | None = None


def _parsed_name(value: Any) -> Any:
    return names.checked_name(value) if isinstance(value, str) and value else value


class Card(_Model):
    """What people say about a task vector.

    `name` may be empty (the registry then asks for one). Text has no control characters but newline and tab, and no
    direction overrides; anything else is refused, never silently changed, except that CR LF becomes LF. Unknown
    top-level keys are kept in `extra` (at most 16 KiB as JSON).
    """

    schema_version: int = Field(SCHEMA, alias="schema", ge=SCHEMA, le=SCHEMA)
    name: Annotated[str, BeforeValidator(_parsed_name)] = ""
    task_id: Annotated[str, Field(max_length=200)] = ""
    description: Text = ""
    label_names: Labels = ()
    label_prompts: Labels = ()
    family: Annotated[str, Field(max_length=200)] = ""
    pair: bool | None = None
    licence: Annotated[str, Field(max_length=200)] = ""
    licence_class: Annotated[str, Field(max_length=40)] = ""
    base_model: Annotated[str, Field(max_length=500)] = ""
    source_repo: Line = ""
    source_commit: Annotated[str, Field(max_length=200)] = ""
    source_path: Line = ""
    source_group: Annotated[str, Field(max_length=200)] = ""
    notes: Text = ""
    training: Training | None = None
    seeds: dict[Line, int] = {}
    metrics: dict[Line, Scalar] = {}
    parents: Annotated[tuple[Parent, ...], Field(strict=False, max_length=1_000)] = ()
    created_by: Annotated[str, Field(max_length=200)] = ""
    extra: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _unknown_to_extra(cls, data: Any) -> Any:
        """Move unknown top-level keys into `extra`."""
        if not isinstance(data, Mapping):
            return data
        known = set(cls.model_fields) | {"schema"}
        unknown = {key: value for key, value in data.items() if key not in known}
        if not unknown:
            return data
        extra = data.get("extra", {})
        if not isinstance(extra, Mapping):
            return data  # refused by the field's own type
        return {**{k: v for k, v in data.items() if k in known}, "extra": {**extra, **unknown}}

    @model_validator(mode="after")
    def _bounded(self) -> Card:
        if len(self.seeds) > 1_000 or len(self.metrics) > 1_000:
            raise ValueError("more than 1000 seeds or metrics")
        checked_json(self.metrics)
        _small(self.extra)
        if self.label_names and self.label_prompts and len(self.label_names) != len(self.label_prompts):
            raise ValueError(f"{len(self.label_names)} label names but {len(self.label_prompts)} label prompts")
        return self

    # -- in ------------------------------------------------------------------------------------------------------
    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, what: str = "the card") -> Card:
        """A card from parsed JSON of this or an older schema.

        Raises:
            FileRefused: (`card-refused`, `card-newer`) not a card, or of a newer schema.
            ComgradError: (`name-refused`) its name cannot be one; see `names.checked_name`.
        """
        try:
            return cls.model_validate(upgraded(data, SCHEMA, what))
        except ValidationError as error:
            raise FileRefused(what, _first(error), "correct the card", code="card-refused") from error

    @classmethod
    def make(cls, **fields: Any) -> Card:
        """A card from keyword arguments. Raises FileRefused as `from_dict` does."""
        return cls.from_dict({"schema": SCHEMA, **fields})

    @classmethod
    def from_file(cls, path: str | Path) -> Card:
        """Read a `task_card.json`: strict JSON (no NaN, no duplicate key), at most 1 MiB, not a link.

        Raises:
            NotFound: there is no such file.
            FileRefused: (`card-refused`, `card-newer`, `linked`) it is not a card.
        """
        return cls.from_dict(read_json(Path(path)), what=f"'{path}'")

    def replaced(self, **changes: Any) -> Card:
        """The card with some fields changed, checked like a new one."""
        return Card.from_dict({**self.to_dict(), **changes})

    # -- out -----------------------------------------------------------------------------------------------------
    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; fields at their defaults are left out; `Card.from_dict` reads it back unchanged."""
        data = self.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        return {"schema": self.schema_version, **data}

    def to_json(self) -> str:
        """The card as `task_card.json` holds it."""
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _first(error: ValidationError) -> str:
    """The first complaint, with the place it is about."""
    problem = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    more = error.error_count() - 1
    return (f"'{place}': " if place else "") + message + (f" (and {more} more)" if more else "")
