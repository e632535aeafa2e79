"""What the API reads: every body as a model with bounded fields; what is not named is refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def _text(value: str) -> str:
    if "\x00" in value or any(0xD800 <= ord(c) <= 0xDFFF for c in value):
        raise ValueError("it is no text: a NUL or a lone surrogate")
    return value


Short = Annotated[str, Field(max_length=200), AfterValidator(_text)]
Line = Annotated[str, Field(max_length=1_000), AfterValidator(_text)]
Text = Annotated[str, Field(max_length=20_000), AfterValidator(_text)]
Secret = Annotated[str, Field(max_length=600), AfterValidator(_text)]
Visibility = Literal["public", "private"]


class Body(BaseModel):
    """A body: a JSON object of the fields named, of these types."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Credentials(Body):
    """Handle and password."""

    handle: Short
    password: Secret


class WithSecret(Credentials):
    """Handle and password, with the secret that lets choose them."""

    secret: Secret


class Handle(Body):
    """A handle."""

    handle: Short


class NewPassword(Body):
    """The old and the new password."""

    old: Secret
    new: Secret


class TokenBody(Body):
    """A new token."""

    name: Short
    scopes: list[Literal["read", "write", "admin"]] = Field(max_length=3)
    days: int = Field(90, ge=1, le=366)


class OrgBody(Body):
    """A new organisation."""

    handle: Short
    title: Short = ""


class RoleBody(Body):
    """A member's role."""

    role: Literal["member", "admin"]


class DisabledBody(Body):
    """Whether an account is shut out."""

    disabled: bool


class PatchBody(Body):
    """What changes of a listing; what is not given stays."""

    visibility: Visibility | None = None
    description: Text | None = None
    tags: list[Short] | None = Field(None, max_length=20)


class SearchBody(Body):
    """A search."""

    text: Text
    limit: int = Field(20, ge=1, le=100)
    words: bool = False


class SuggestBody(Body):
    """A task in words."""

    text: Text
    base: Short | None = None
    rank: int | None = Field(None, ge=1, le=256)
    rule: Short | None = None
    dare: bool = False


class PartBody(Body):
    """One file to come."""

    name: Short
    size: int = Field(ge=1, le=2**50)
    sha256: Annotated[str, Field(min_length=64, max_length=64, pattern=r"^[0-9a-f]{64}$")]


class UploadBody(Body):
    """A new upload session."""

    purpose: Literal["share", "explain"] = "share"
    parts: list[PartBody] = Field(min_length=1, max_length=5)
    owner: Short | None = None
    name: Short = ""
    description: Text = ""
    base: Short | None = None
    visibility: Visibility = "private"
    tags: list[Short] = Field(default_factory=list, max_length=20)
    card: dict[str, Any] | None = None
    claim: Text = ""
