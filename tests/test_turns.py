"""Chapter 10, turns: the loop in which many echoes take turns, driven with tasks of the tests' own."""

from __future__ import annotations

import contextlib
import itertools
import select
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from leaks import no_more_files, nothing_left_behind
from rawpeer import RawPeer

import dicom_echo as echo
from dicom_echo import _Stream, _take_turns, _Wait

Task = Any  # a generator that yields what it waits for, or an outcome
Pairs = list[tuple[socket.socket, socket.socket]]


def pause(seconds: float) -> _Wait:
    return _Wait(None, 0, time.perf_counter() + seconds)


def readable(sock: socket.socket) -> _Wait:
    return _Wait(sock, selectors.EVENT_READ, time.perf_counter() + 60)


def task(*steps: object, at_end: Callable[[], object] = lambda: None) -> Task:
    """A task that yields these in turn; an exception is raised."""
    try:
        for step in steps:
            if isinstance(step, Exception):
                raise step
            yield step
    finally:
        at_end()


@pytest.fixture
def pairs() -> Iterator[Pairs]:
    with contextlib.ExitStack() as stack:
        every = [socket.socketpair() for _ in range(8)]
        for sock in itertools.chain(*every):
            stack.enter_context(sock)
        yield every


# --- With a clock of its own -----------------------------------------------------------------------------------------


class World:
    """A clock that only the tests move, and a selector to which sockets become ready at times that they set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.ready: dict[Any, float] = {}
        self.waited: dict[Any, Any] = {}
        self.unregister = self.waited.pop
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(time, "sleep", self.sleep)
        monkeypatch.setattr(echo, "_selector", lambda _: contextlib.nullcontext(self))

    def register(self, sock: Any, _events: int, data: Any) -> None:
        assert sock not in self.waited
        self.waited[sock] = data

    def get_map(self) -> dict[Any, Any]:
        return self.waited

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def select(self, timeout: float) -> list[tuple[Any, int]]:
        self.now += 0.001  # what it costs to look
        due = min((self.ready[sock] for sock in self.waited), default=self.now)
        if due > self.now:
            self.now = min(due, self.now + timeout)
        keys = [(sock, data) for sock, data in self.waited.items() if self.ready[sock] <= self.now]
        return [(selectors.SelectorKey(sock, 0, 0, data), 0) for sock, data in keys]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    yield (world := World(monkeypatch))
    assert world.waited == {}, "whoever is closed lets go"


def test_a_time_ends_when_the_socket_was_ready_not_when_its_turn_came(world: World) -> None:
    """The false alarm of a fleet, without a clock that a busy machine could turn: each turn costs 3 ms of computing."""

    def ask(name: Any) -> Task:
        world.now += 0.003
        start = world.now
        world.ready[name] = start + 0.02
        at = yield _Wait(name, selectors.EVENT_READ, start + 10)
        world.now += 0.003  # to make sense of the answer
        yield at - start

    for jobs in (1, 32, 128):
        world.now, world.ready = 0.0, {}
        times = sorted(_take_turns(map(ask, range(1, 301)), jobs))
        assert times[0] > 0.018
        assert times[285] < 0.022 * 1.35


def test_deadlines_come_in_their_order_and_at_their_time(world: World) -> None:
    def wait(name: Any, seconds: float) -> Task:
        world.ready[name] = 1000.0
        at = yield _Wait(name, selectors.EVENT_READ, seconds)
        yield seconds, at, round(world.now)

    for names in (("a", "b", None), (None, None, None)):  # the latter are only time to wait for
        world.now = 0.0
        tasks = map(wait, names, (3.0, 1.0, 2.0))
        assert list(_take_turns(tasks, 3)) == [(1.0, None, 1), (2.0, None, 2), (3.0, None, 3)]


def test_the_answer_counts_where_it_and_the_deadline_come_together(world: World) -> None:
    world.ready["it"] = 1.0

    def wait(name: Any) -> Task:
        yield (yield _Wait(name, selectors.EVENT_READ, 1.0))

    [at] = _take_turns([wait("it")], 1)
    assert at == pytest.approx(1.0, abs=0.01)


# --- With real sockets -----------------------------------------------------------------------------------------------


def test_no_more_at_once_than_asked_for_and_tasks_are_read_as_needed() -> None:
    under_way, most, read = 0, 0, 0

    def work() -> Task:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        for _ in range(3):
            yield pause(0.001)
        under_way -= 1
        yield "done"

    def tasks() -> Iterator[Task]:
        nonlocal read
        while True:
            read += 1
            yield work()

    with contextlib.closing(_take_turns(tasks(), 4)) as outcomes:
        assert list(itertools.islice(outcomes, 20)) == ["done"] * 20
    assert most == 4
    assert read <= 20 + 4


def test_those_under_way_go_before_fresh_ones() -> None:
    order = []

    def work(name: str) -> Task:
        for step in "12":
            order.append(name + step)
            yield pause(0)
        yield name

    list(_take_turns(map(work, "abc"), 1))
    assert order == ["a1", "a2", "b1", "b2", "c1", "c2"]


def test_no_task_is_starved_by_one_that_is_always_ready(pairs: Pairs) -> None:
    (busy, feeder), (other, sender), *_ = pairs
    feeder.sendall(b"x")
    sender.sendall(b"y")
    turns = 0

    def greedy() -> Task:
        nonlocal turns
        while turns < 10_000:
            turns += 1
            yield readable(busy)

    def modest() -> Task:
        for _ in range(10):
            yield readable(other)
        yield turns

    with contextlib.closing(_take_turns([greedy(), modest()], 2)) as outcomes:
        assert next(outcomes) < 50


def test_an_exception_of_a_task_closes_the_others_and_is_raised_where_outcomes_are_read() -> None:
    closed: list[int] = []
    for run in (_take_turns, lambda tasks, at_once: _Stream(tasks, at_once).outcomes()):
        others = [task(pause(60), at_end=lambda: closed.append(1)) for _ in range(3)]
        with nothing_left_behind(), pytest.raises(KeyError, match="mine"):
            list(run([*others, task("begun", pause(0.001), KeyError("mine"))], 4))
    assert closed == [1] * 6


def test_a_byte_closes_all(pairs: Pairs) -> None:
    (stop, stopper), *others = pairs
    closed: list[int] = []
    waiting = [task(readable(ours), at_end=lambda: closed.append(1)) for ours, _ in others]

    def stopping() -> Task:
        yield "begun"
        stopper.sendall(b"\0")
        yield pause(60)

    with nothing_left_behind():
        assert list(_take_turns([*waiting, stopping()], 10, stop)) == ["begun"]
    assert closed == [1] * 7


# --- Streams ---------------------------------------------------------------------------------------------------------


def test_a_stream_ends_from_any_thread_more_than_once_and_before_its_start() -> None:
    stream, seen = _Stream([task("begun", pause(60))], 1), []
    with nothing_left_behind(patience=5):
        for outcome in stream.outcomes():
            seen.append(outcome)
            for _ in range(2):
                threading.Thread(target=stream.end).start()
    assert seen == ["begun"]
    unread = _Stream([task("begun", pause(60))], 1)
    unread.end()
    assert list(unread.outcomes()) == []


def test_an_interruption_while_the_thread_starts_leaves_none_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with nothing_left_behind(patience=5), pytest.raises(KeyboardInterrupt):
        list(_Stream([task(pause(60)), task(pause(60))], 2).outcomes())


def test_idle_seconds_are_told() -> None:
    told: list[int] = []
    assert list(_Stream([task(pause(1.1), "done")], 1).outcomes(lambda: told.append(1))) == ["done"]
    assert told == [1]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
def test_without_a_descriptor_or_a_thread_to_be_had(pairs: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pairs[0]
    theirs.sendall(b"x")

    def wait() -> Task:
        yield (yield readable(ours))

    def no_thread(_: object) -> None:
        raise RuntimeError("no thread")

    with no_more_files():
        outcomes = [*_take_turns([wait()], 8), *_Stream([wait()], 8).outcomes()]
    monkeypatch.setattr(threading.Thread, "start", no_thread)
    outcomes += _Stream([wait()], 8).outcomes()
    assert list(map(type, outcomes)) == [float] * 3


# --- Whole echoes ----------------------------------------------------------------------------------------------------


def test_the_time_of_an_echo_ends_when_its_socket_was_ready(monkeypatch: pytest.MonkeyPatch, peer: RawPeer) -> None:
    """Each of its turns comes an hour after that, for the fleet is large."""
    clock, hours = time.perf_counter, 0
    monkeypatch.setattr(time, "perf_counter", lambda: clock() + 3600 * hours)
    request = echo._Request(peer.address, "ANY-SCP", "ME")
    task: Task = echo._alone(echo._probe(request, 1, 86400))
    said = next(task)
    while isinstance(said, _Wait):
        sock: Any = said.sock
        select.select([sock], [sock] if said.events == selectors.EVENT_WRITE else [], [])
        at = time.perf_counter()
        hours += 1
        said = task.send(at)
    assert hours >= 3
    assert said.ok
    assert sum(said.timings.values()) < 3600
