import threading
import time

import pytest
import torch

from comgrad.engine.local import map_ordered, map_sum, one_thread_per_task


def _product(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(120, 90, generator=generator)
    return X.T @ X / 7


def test_serial_and_parallel_sums_are_the_same_bits() -> None:
    sums = [map_sum(_product, range(37), workers) for workers in (1, 2, 5)]
    assert sums[0] is not None
    assert all(s is not None and torch.equal(sums[0], s) for s in sums)
    by_hand = _product(0)
    for seed in range(1, 37):
        by_hand = by_hand + _product(seed)
    torch.testing.assert_close(sums[0], by_hand, rtol=1e-5, atol=1e-4)


def test_results_come_in_the_order_of_the_tasks() -> None:
    def slow_first(i: int) -> int:
        time.sleep(0.02 if i == 0 else 0.0)
        return i

    assert list(map_ordered(slow_first, range(20), 4)) == list(range(20))


def test_two_workers_really_overlap() -> None:
    together = threading.Barrier(2, timeout=10)  # breaks unless two tasks are inside at one time
    assert len(list(map_ordered(lambda _: together.wait(), range(2), 2))) == 2


def test_no_more_than_workers_and_one_results_wait_for_the_reader() -> None:
    started: list[int] = []
    results = map_ordered(lambda i: started.append(i) or i, range(100), 2)
    next(results)
    time.sleep(0.05)
    assert len(started) <= 4
    results.close()  # type: ignore[attr-defined]


def test_torch_threads_are_one_inside_and_restored_after_even_when_a_task_fails() -> None:
    before = torch.get_num_threads()
    assert set(map_ordered(lambda _: torch.get_num_threads(), range(4), 2)) == {1}

    def fail(_: int) -> int:
        raise ValueError("inside a task")

    with pytest.raises(ValueError, match="inside a task"):
        map_sum(fail, range(3), 2)
    with one_thread_per_task(), one_thread_per_task():
        pass
    assert torch.get_num_threads() == before


def test_no_tasks_have_no_sum() -> None:
    assert map_sum(_product, [], 2) is None
