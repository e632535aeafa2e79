"""Waiting that ends, when what is waited for does not come."""

from __future__ import annotations

import os
import threading

import pytest

from bounded import joined, next_line, started


def test_a_line_is_read_and_silence_and_an_end_are_noticed() -> None:
    out, into = os.pipe()
    with os.fdopen(out) as stream:
        os.write(into, b"one\ntwo")
        assert next_line(stream) == "one\n"
        with pytest.raises(AssertionError, match=r"no line came in 0 s"):
            next_line(stream, 0.2)
        os.close(into)  # as when the other side dies: the waiting reader goes on


def test_the_end_of_a_pipe_is_an_empty_line() -> None:
    out, into = os.pipe()
    os.close(into)
    with os.fdopen(out) as stream:
        assert next_line(stream) == ""


def test_a_thread_that_does_not_end_is_a_failure_and_keeps_no_process_alive() -> None:
    over = threading.Event()
    threads = started([threading.Thread(target=over.wait)])
    assert threads[0].daemon
    with pytest.raises(AssertionError, match="did not end"):
        joined(threads, 0.1)
    over.set()
    joined(threads)
