"""Text encoders: a description becomes a unit vector."""

from __future__ import annotations

import hashlib
import logging
import threading
from functools import lru_cache
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from comgrad.weights.bases import resolve_base
from comgrad.weights.fingerprint import fingerprint

DEFAULT_ENCODER = "sentence-transformers/all-MiniLM-L6-v2"


@runtime_checkable
class TextEncoder(Protocol):
    """Anything that turns texts into unit vectors, always the same ones for the same text."""

    name: str
    digest: str

    def encode(self, texts: list[str]) -> Float[np.ndarray, "n d"]:
        """(n, d) fp32 rows of norm 1."""
        ...


def key_of(encoder: TextEncoder) -> str:
    """64 hex digits that differ wherever embeddings may."""
    return hashlib.sha256(f"{encoder.name} {encoder.digest}".encode()).hexdigest()


class SentenceEncoder:
    """Any sentence-transformers model, frozen, in evaluation mode."""

    def __init__(self, name: str, path: str, *, digest: str = "", batch_size: int = 64) -> None:
        logging.getLogger("sentence_transformers").setLevel(logging.WARNING)
        from sentence_transformers import SentenceTransformer  # several seconds of imports: only when texts are encoded
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()  # a bar for loading one small file, on stderr, is no news

        self.name = name
        self.digest = digest
        self._batch_size = batch_size
        self._model = SentenceTransformer(path, local_files_only=True)

    def encode(self, texts: list[str]) -> Float[np.ndarray, "n d"]:
        vectors = self._model.encode(
            texts,
            batch_size=self._batch_size,
            convert_to_numpy=True,
            normalize_embeddings=True,
            show_progress_bar=False,
        )
        return np.asarray(vectors, dtype=np.float32)


def load_encoder(name: str = DEFAULT_ENCODER) -> TextEncoder:
    """The encoder of that name, from this machine; read once, however many threads ask at the same time.

    Raises:
        NotFound: the model is neither installed as a package, nor a folder, nor in the local hub cache.
    """
    with _loading:
        return _loaded(name)


_loading = threading.Lock()


@lru_cache(maxsize=2)
def _loaded(name: str) -> TextEncoder:
    base = resolve_base(name)
    digest = fingerprint(base.path).root
    from comgrad.describe.mean_pooled import MeanPooledBert  # torch: only when texts are encoded

    if MeanPooledBert.reads(base.path):
        return MeanPooledBert(base.name, base.path, digest=digest)
    return SentenceEncoder(base.name, str(base.path), digest=digest)
