"""Suggestions from neighbourhoods, made in a process beside the service: the same answers, and no process left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from comgrad.errors import ComgradError
from comgrad.service.auth.identity import ANONYMOUS
from comgrad.service.core import Service
from comgrad.service.errors import Busy
from comgrad.service.insight import Insight
from comgrad.service.scope import Group
from comgrad.service.suggestions import Suggested
from comgrad.vectors.task_vector import TaskVector
from service_site import Site, running

TEXT = "decide whether a sentence is acceptable"
COUNT = 10


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, zoo: list[Path]) -> Iterator[Site]:
    """Ten public vectors with embedded descriptions."""
    folder = tmp_path_factory.mktemp("apart")
    with running(folder, vectors=zoo[:COUNT], workers="none", publish_unowned=True) as made:
        made.service.jobs.run(made.service.jobs.submit("relate", {}, key="relate").id)
        yield made


@contextmanager
def insight(service: Service, tmp_path: Path, **more: object) -> Iterator[Insight]:
    """Questions over the same vectors, with neighbourhoods of eight, and a folder of its own for suggestions."""
    settings = service.settings.model_copy(update={"whole_scope": 6, "neighbourhood": 8, **more})
    made = Insight(service.scopes, service.listings, service.nearness, settings)
    made.suggestions.folder = tmp_path / ("beside" if settings.beside else "here")
    made.suggestions.folder.mkdir(exist_ok=True)
    try:
        yield made
    finally:
        made.close()


def asked(found: Insight, text: str = TEXT) -> Suggested:
    return found.suggest(ANONYMOUS, text, dare=True)


def process_of(found: Insight) -> int:
    """The one beside."""
    pool = found.suggestions._apart._pool
    assert pool is not None
    (pid,) = pool._processes
    return pid


def gone(pid: int) -> bool:
    """Whether a process has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def soon(true: Callable[[], bool]) -> bool:
    until = time.monotonic() + 60
    while not true() and time.monotonic() < until:
        time.sleep(0.05)
    return true()


def test_the_process_beside_answers_as_a_thread_does(site: Site, tmp_path: Path) -> None:
    """To rounding: the test's own process may add up on several threads."""
    with insight(site.service, tmp_path) as one, insight(site.service, tmp_path, beside=False) as two:
        there, here = asked(one), asked(two)
        assert process_of(one) != os.getpid()
        assert two.suggestions._apart._pool is None
        vectors = [TaskVector.from_peft(x.suggestions.folder / f.id) for x, f in ((one, there), (two, here))]
    assert (there.id, there.description, there.reader) == (here.id, here.description, here.reader)
    assert {f.name for f in there.files} == {f.name for f in here.files} > {"README.md", "adapter_model.safetensors"}
    assert {s["id"]: s["coefficient"] for s in there.sources} == pytest.approx(
        {s["id"]: s["coefficient"] for s in here.sources}, rel=1e-6
    )
    assert (vectors[0] - vectors[1]).norm() < 1e-5 * vectors[1].norm()
    assert len(there.sources) == 8 and [x.keys() for x in there.layers] == [x.keys() for x in here.layers]


def test_where_too_few_gains_are_known_the_nearer_half_takes_part(site: Site, tmp_path: Path) -> None:
    """The shipped vectors have gradients, and predicting gains takes eight."""
    scope = site.service.scopes.scope(ANONYMOUS)
    group = scope.group(None)
    assert len(site.service.registry.store.gradients([x.id for x in group])) == COUNT
    near: dict[int, Group] = {}
    for most in (9, 8, 7):
        with insight(site.service, tmp_path, neighbourhood=most) as found:
            near[most] = found.suggestions._neighbourhood(TEXT, group, scope)
            nearest = found.finding.nearest(TEXT, group, scope)
            assert nearest in near[most]
    assert [len(near[most]) for most in near] == [9, 8, 4]
    assert near[7].ids < near[8].ids < near[9].ids


def test_what_cannot_be_is_refused_from_beside_as_from_here(site: Site, tmp_path: Path) -> None:
    said = []
    for beside in (True, False):
        with insight(site.service, tmp_path, beside=beside) as found, pytest.raises(ComgradError) as refused:
            found.suggest(ANONYMOUS, TEXT, rule="none-such")
        said.append((type(refused.value), refused.value.as_dict()))
    assert said[0] == said[1] and "none-such" in said[0][1]["given"]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_it_goes_on_while_the_service_does(site: Site, tmp_path: Path, how: signal.Signals) -> None:
    """A terminal and an init system send their signals to all processes of a service."""
    with insight(site.service, tmp_path) as found:
        asked(found)
        first = process_of(found)
        os.kill(first, how)
        assert asked(found, "tell which of two sentences is good grammar").sources
        assert process_of(found) == first


def test_a_killed_process_is_started_anew(site: Site, tmp_path: Path) -> None:
    with insight(site.service, tmp_path) as found:
        asked(found)
        first = process_of(found)
        os.kill(first, signal.SIGKILL)
        assert soon(lambda: gone(first))
        assert asked(found, "tell which of two sentences is good grammar").sources
        assert process_of(found) != first


def test_what_kills_it_each_time_is_busy_and_not_a_mistake(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with insight(site.service, tmp_path) as found:
        apart, killed, timers = found.suggestions._apart, list[int](), list[threading.Timer]()
        opened = apart._opened

        def killed_soon() -> ProcessPoolExecutor:
            pool = opened()
            pool.submit(os.getpid).result(timeout=60)
            (pid,) = pool._processes
            os.kill(pid, signal.SIGSTOP)  # so that it is killed with the question in hand
            killed.append(pid)
            timers.append(threading.Timer(0.5, os.kill, (pid, signal.SIGKILL)))
            timers[-1].start()
            return pool

        with monkeypatch.context() as patched:
            patched.setattr(apart, "_opened", killed_soon)
            with pytest.raises(Busy, match="ended from outside"):
                asked(found)
        for timer in timers:
            timer.join()
        assert len(set(killed)) == 2
        assert asked(found).sources


def test_nothing_begins_once_it_is_closed(site: Site, tmp_path: Path) -> None:
    with insight(site.service, tmp_path) as found:
        asked(found)
        pid = process_of(found)
    assert soon(lambda: gone(pid))
    with pytest.raises(Busy, match="stopping"):
        found.suggestions._apart.prepare()


PARENT = """
import sys, time
from pathlib import Path
from comgrad.service.apart import Apart
from comgrad.service.settings import Settings
if __name__ == "__main__":
    apart = Apart(Settings.from_environment(data=Path(sys.argv[1])))
    apart._opened().submit(max, 1, 2).result()
    print(*apart._pool._processes, flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_it_ends_with_the_service_however_that_ends(tmp_path: Path, how: signal.Signals) -> None:
    command = [sys.executable, "-c", PARENT, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as service:
        try:
            assert service.stdout is not None
            pid = int(service.stdout.readline())
            assert not gone(pid)
            service.send_signal(how)
            assert soon(lambda: gone(pid))
        finally:
            service.kill()


@pytest.mark.parametrize(
    "module", ["service.serve", "service.worker", "service.beside", "service.process", "cli.serve_cmd"]
)
def test_threads_are_settled_before_anything_computes(module: str) -> None:
    """Matrix libraries read how many threads they may use when they are loaded, and threads that wait spin."""
    program = f"import sys, comgrad.{module}; print({{'numpy', 'scipy', 'torch'}} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
