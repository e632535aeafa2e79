"""Block plans: how a long axis is cut so that the work on one piece fits a memory budget."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from comgrad.errors import ComgradError

CACHE_BUDGET = 4 << 20  # bytes; a block whose intermediates fit the second-level cache is several times faster
MEMORY_BUDGET = 1 << 30  # bytes of deltas held at one time per worker


@dataclass(frozen=True)
class Block:
    """The half-open range [start, stop) of items."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def slice(self) -> slice:
        return slice(self.start, self.stop)


def plan_blocks(count: int, bytes_per_item: int, budget: int = MEMORY_BUDGET) -> list[Block]:
    """Cut `count` items into the fewest blocks of at most `budget` bytes each, of nearly equal length.

    An item larger than the budget gets a block of its own: the plan never fails, it only stops sharing. The plan
    depends on nothing but its arguments, so every machine and every number of workers cuts alike.

    Raises:
        ComgradError: a negative count, or sizes that are not positive.
    """
    if count < 0 or bytes_per_item < 1 or budget < 1:
        raise ComgradError(
            f"a plan for {count} items of {bytes_per_item} bytes in {budget} bytes",
            "counts cannot be negative and sizes must be positive",
            "check the collection and the budget",
        )
    if count == 0:
        return []
    per_block = max(1, budget // bytes_per_item)
    blocks = -(-count // per_block)
    edges = [count * i // blocks for i in range(blocks + 1)]
    return [Block(a, b) for a, b in pairwise(edges)]
