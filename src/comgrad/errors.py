"""Every error for a user's mistake says three things: what was given, why it is refused, what to do."""

from __future__ import annotations


class ComgradError(Exception):
    """Base of every error that a user's input can cause.

    Args:
        given: what the user gave, quoted where it is a name.
        why: why it is refused.
        remedy: what to do instead.
        code: a stable word for programs; it never changes once released.
    """

    default_code = "refused"

    def __init__(self, given: str, why: str, remedy: str, *, code: str | None = None) -> None:
        super().__init__(given, why, remedy)
        self.given = given
        self.why = why
        self.remedy = remedy
        self.code = code or self.default_code

    def __str__(self) -> str:
        return f"{self.given}; {self.why}; {self.remedy}"

    def as_dict(self) -> dict[str, str]:
        """The error for JSON output: `code`, `given`, `why`, `remedy`."""
        return {"code": self.code, "given": self.given, "why": self.why, "remedy": self.remedy}


class FileRefused(ComgradError):
    """A file is not what it claims to be, or breaks the strict profile."""

    default_code = "file-refused"


class UnsupportedAdapter(ComgradError):
    """An adapter of a kind whose task vector cannot be computed exactly from what was given."""

    default_code = "adapter-unsupported"


class BaseMismatch(ComgradError):
    """Two task vectors, or a vector and a checkpoint, stand on different base models."""

    default_code = "base-mismatch"


class ShapeMismatch(ComgradError):
    """Tensors that must have one shape do not."""

    default_code = "shape-mismatch"


class Undefined(ComgradError):
    """The quantity asked for has no value on this input (the angle to a zero vector, say)."""

    default_code = "undefined"


class NotFound(ComgradError):
    """No file, model or registry entry of that name."""

    default_code = "not-found"


class NameTaken(ComgradError):
    """The name belongs, or once belonged, to another vector."""

    default_code = "name-taken"


class StorageError(ComgradError):
    """The disk or the database cannot do what was asked."""

    default_code = "storage"
