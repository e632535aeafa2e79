"""The vectors of descriptions in PostgreSQL: pgvector chooses candidates, `nearest.ranked` decides."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, Engine, delete, func, select
from sqlalchemy.dialects.postgresql import insert

from comgrad.registry.database import repeated, transaction
from comgrad.registry.nearest import Vector, same_length
from comgrad.registry.served_tables import description_vectors as table

# The scan's distances are sums of 32-bit products; with at most 16 000 of them they err by less than this.
_ERROR = 1e-4
_MARGIN = 32


class PgVectorIndex:
    """Rows in a column of type `vector`, read by an exact scan: no index that could miss a neighbour."""

    def __init__(self, engine: Engine, what: str) -> None:
        self._engine = engine
        self._what = what

    def put(self, model: str, rows: Mapping[str, Vector]) -> None:
        """Insert or replace. Raises StorageError, ComgradError (another length)."""

        def work() -> None:
            with transaction(self._engine, write=True, what=self._what) as connection:
                length = self._length(connection, model)
                for vector in rows.values():
                    length = vector.size if length is None else length
                    same_length(model, vector.size, length)
                statement = insert(table)
                statement = statement.on_conflict_do_update(
                    index_elements=["vector_id", "model"], set_={"numbers": statement.excluded.numbers}
                )
                values = [{"vector_id": i, "model": model, "numbers": v} for i, v in rows.items()]
                connection.execute(statement, values)

        if rows:
            repeated(self._engine, work)

    def _length(self, connection: Connection, model: str) -> int | None:
        query = select(func.vector_dims(table.c.numbers)).where(table.c.model == model).limit(1)
        return connection.execute(query).scalar()

    def ids(self, model: str) -> set[str]:
        """The ids that have a vector of the model."""

        def work() -> set[str]:
            with transaction(self._engine, write=False, what=self._what) as connection:
                return set(connection.execute(select(table.c.vector_id).where(table.c.model == model)).scalars())

        return repeated(self._engine, work)

    def candidates(
        self, model: str, unit: Vector, k: int, allowed: Collection[str] | None
    ) -> tuple[list[str], NDArray[np.float32]]:
        """The nearest by the database's arithmetic, and all that are so near to the k-th that it may be mistaken."""

        def work() -> tuple[list[str], NDArray[np.float32]]:
            with transaction(self._engine, write=False, what=self._what) as connection:
                length = self._length(connection, model)
                if length is None:
                    return [], np.zeros((0, 0), dtype=np.float32)
                same_length(model, unit.size, length)
                return self._scan(connection, model, unit, k, allowed)

        return repeated(self._engine, work)

    def _scan(
        self, connection: Connection, model: str, unit: Vector, k: int, allowed: Collection[str] | None
    ) -> tuple[list[str], NDArray[np.float32]]:
        distance = table.c.numbers.cosine_distance(unit).label("distance")
        query = select(table.c.vector_id, table.c.numbers, distance).where(table.c.model == model)
        if allowed is not None:
            query = query.where(table.c.vector_id == func.any(sorted(allowed)))
        limit = k + _MARGIN
        while True:
            found = connection.execute(query.order_by("distance").limit(limit)).all()
            if len(found) < limit or found[-1].distance > found[k - 1].distance + 2 * _ERROR:
                break
            limit *= 4
        rows = np.array([row.numbers for row in found], dtype=np.float32)
        return [row.vector_id for row in found], rows

    def forget(self, identities: Iterable[str]) -> None:
        """Delete the vectors of these ids."""
        gone = sorted(identities)

        def work() -> None:
            with transaction(self._engine, write=True, what=self._what) as connection:
                connection.execute(delete(table).where(table.c.vector_id == func.any(gone)))

        repeated(self._engine, work)

    def close(self) -> None:
        """Nothing of its own is open."""
