import pytest
from hypothesis import given
from hypothesis import strategies as st

from comgrad.engine.plan import plan_blocks
from comgrad.errors import ComgradError


@given(st.integers(0, 300), st.integers(1, 1000), st.integers(1, 5000))
def test_blocks_cover_every_item_once_in_order_within_the_budget(count: int, size: int, budget: int) -> None:
    blocks = plan_blocks(count, size, budget)
    assert [i for b in blocks for i in range(b.start, b.stop)] == list(range(count))
    assert all(len(b) == 1 or len(b) * size <= budget for b in blocks)
    assert not blocks or max(map(len, blocks)) - min(map(len, blocks)) <= 1
    fewest = -(-count // max(1, budget // size))
    assert len(blocks) == fewest


@pytest.mark.parametrize("args", [(-1, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_senseless_sizes_are_refused(args: tuple[int, int, int]) -> None:
    with pytest.raises(ComgradError, match="sizes must be positive"):
        plan_blocks(*args)
