"""Chapter 10, turns: the loop in which many echoes take turns, driven with tasks of the tests' own."""

from __future__ import annotations

import contextlib
import itertools
import os
import selectors
import socket
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from leaks import nothing_left_behind
from rawpeer import GOOD_SCRIPT, Pause, RawPeer

import dicom_echo as echo
from dicom_echo import _Stream, _take_turns, _Wait

Task = Any  # a generator that yields what it waits for, or an outcome


def pause(seconds: float) -> _Wait:
    return _Wait(None, 0, time.perf_counter() + seconds)


def readable(sock: socket.socket, until: float) -> _Wait:
    return _Wait(sock, selectors.EVENT_READ, until)


@pytest.fixture
def pairs() -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    with contextlib.ExitStack() as stack:
        yield [
            (stack.enter_context(ours), stack.enter_context(theirs))
            for ours, theirs in (socket.socketpair() for _ in range(8))
        ]


# --- With a clock of its own -----------------------------------------------------------------------------------------


class World:
    """A clock that only the tests move, and a selector to which sockets become ready at times that they set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.ready: dict[Any, float] = {}
        self.waited: dict[Any, Any] = {}
        self.step = 0.001  # what it costs to look
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(time, "sleep", self.sleep)
        monkeypatch.setattr(echo, "_selector", lambda _: self)

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.waited == {}, "whoever is closed lets go"

    def register(self, sock: Any, _events: int, data: Any = None) -> None:
        assert sock not in self.waited
        self.waited[sock] = data

    def unregister(self, sock: Any) -> None:
        del self.waited[sock]

    def get_map(self) -> dict[Any, Any]:
        return self.waited

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def select(self, timeout: float) -> list[tuple[Any, int]]:
        self.now += self.step
        due = min((self.ready[sock] for sock in self.waited), default=self.now)
        if due > self.now:
            self.now = min(due, self.now + timeout)
        keys = [(sock, data) for sock, data in self.waited.items() if self.ready[sock] <= self.now]
        return [(selectors.SelectorKey(sock, 0, 0, data), 0) for sock, data in keys]


class Reported(NamedTuple):
    """What a task with a stopwatch says in the end."""

    name: int
    seconds: float | None


def test_a_time_ends_when_the_socket_was_ready_not_when_its_turn_came(monkeypatch: pytest.MonkeyPatch) -> None:
    """The false alarm of a fleet, without a clock that a busy machine could turn: each turn costs 3 ms of computing."""
    world = World(monkeypatch)

    def ask(name: int, latency: float) -> Task:
        world.now += 0.003
        start = world.now
        world.ready[name] = start + latency
        at = yield _Wait(name, selectors.EVENT_READ, start + 10)  # type: ignore[arg-type]  # a number is a socket here
        world.now += 0.003  # to make sense of the answer
        yield Reported(name, at - start)

    def median(jobs: int) -> tuple[float, float]:
        world.now, world.ready = 0.0, {}
        times = sorted(each.seconds for each in _take_turns((ask(n, 0.02) for n in range(1, 301)), jobs))
        return statistics.median(times), times[285]

    alone, _ = median(1)
    assert alone == pytest.approx(0.02, abs=0.002)
    for jobs in (32, 128):
        middle, high = median(jobs)
        assert middle < alone * 1.35
        assert high < alone * 1.35


def test_deadlines_come_in_their_order_and_at_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)

    def wait(name: int, seconds: float) -> Task:
        world.ready[name] = 1000.0
        at = yield _Wait(name, selectors.EVENT_READ, seconds)  # type: ignore[arg-type]  # a number is a socket here
        yield Reported(name, at)
        yield world.now

    outcomes = list(_take_turns([wait(1, 3.0), wait(2, 1.0), wait(3, 2.0)], 3))
    assert [outcome for outcome in outcomes if isinstance(outcome, Reported)] == [(2, None), (3, None), (1, None)]
    assert [outcome for outcome in outcomes if isinstance(outcome, float)] == pytest.approx([1, 2, 3], abs=0.01)


def test_a_task_that_waits_for_time_alone_lets_the_clock_run(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)

    def sleep(seconds: float) -> Task:
        yield pause(seconds)
        yield world.now

    assert list(_take_turns([sleep(5), sleep(2)], 2)) == pytest.approx([2, 5], abs=0.01)


def test_the_answer_counts_where_it_and_the_deadline_come_together(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    world.ready["it"] = 1.0

    def wait() -> Task:
        yield (yield _Wait("it", selectors.EVENT_READ, 1.0))  # type: ignore[arg-type]  # a text is a socket here

    [at] = _take_turns([wait()], 1)
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


def test_no_task_is_starved_by_one_that_is_always_ready(pairs: list[tuple[socket.socket, socket.socket]]) -> None:
    (busy, feeder), (other, sender), *_ = pairs
    feeder.sendall(b"x")
    sender.sendall(b"y")
    turns = 0

    def greedy() -> Task:
        nonlocal turns
        while turns < 10_000:
            turns += 1
            yield readable(busy, time.perf_counter() + 60)

    def modest() -> Task:
        for _ in range(10):
            yield readable(other, time.perf_counter() + 60)
        yield turns

    with contextlib.closing(_take_turns([greedy(), modest()], 2)) as outcomes:
        assert next(outcomes) < 50


@pytest.mark.parametrize("at_once", [1, 4])
def test_an_exception_of_a_task_closes_the_others(at_once: int) -> None:
    closed = []

    def waiting(name: str) -> Task:
        try:
            yield pause(60)
        finally:
            closed.append(name)

    def failing() -> Task:
        yield pause(0.001)
        raise KeyError("mine")

    tasks = [failing(), *map(waiting, "abc")] if at_once == 1 else [*map(waiting, "abc"), failing()]
    with nothing_left_behind(), pytest.raises(KeyError, match="mine"):
        list(_take_turns(tasks, at_once))
    assert sorted(closed) == ([] if at_once == 1 else ["a", "b", "c"])


def test_a_byte_closes_all(pairs: list[tuple[socket.socket, socket.socket]]) -> None:
    (stop, stopper), *others = pairs
    closed = []

    def waiting(sock: socket.socket) -> Task:
        try:
            yield readable(sock, time.perf_counter() + 60)
        finally:
            closed.append(sock)

    def stopping() -> Task:
        yield "begun"
        stopper.sendall(b"\0")
        yield pause(60)

    with nothing_left_behind():
        assert list(_take_turns([*(waiting(ours) for ours, _ in others), stopping()], 10, stop)) == ["begun"]
    assert closed == [ours for ours, _ in others]


def test_a_stream_whose_reader_has_time_and_one_that_ends_early() -> None:
    released = threading.Event()

    def endless() -> Task:
        try:
            for number in itertools.count():
                yield number
                yield pause(0.0001)
        finally:
            released.set()

    with nothing_left_behind(), contextlib.closing(_Stream([endless()], 1).outcomes()) as outcomes:
        first = next(outcomes)
        time.sleep(0.2)
        assert list(itertools.islice(outcomes, 50)) == list(range(first + 1, first + 51))
    assert released.is_set()


def test_a_stream_ends_from_any_thread_more_than_once_and_before_its_start() -> None:
    def silent() -> Task:
        yield "begun"
        yield pause(60)

    stream = _Stream([silent()], 1)
    seen = []
    with nothing_left_behind(patience=5):
        for outcome in stream.outcomes():
            seen.append(outcome)
            for _ in range(2):
                threading.Thread(target=stream.end).start()
    assert seen == ["begun"]
    unread = _Stream([silent()], 1)
    unread.end()
    assert list(unread.outcomes()) == []


def test_an_exception_in_the_loop_is_raised_where_outcomes_are_read() -> None:
    def failing() -> Task:
        yield "begun"
        raise KeyError("mine")

    with nothing_left_behind(), pytest.raises(KeyError, match="mine"):
        list(_Stream([failing()], 1).outcomes())


def test_idle_seconds_are_told() -> None:
    told = []

    def slow() -> Task:
        yield pause(1.3)
        yield "done"

    assert list(_Stream([slow()], 1).outcomes(lambda: told.append(1))) == ["done"]
    assert told == [1]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
@pytest.mark.parametrize("threads", [True, False])
def test_without_a_descriptor_to_be_had(
    pairs: list[tuple[socket.socket, socket.socket]], monkeypatch: pytest.MonkeyPatch, threads: bool
) -> None:
    """The loop needs none of its own then; nor a thread."""
    import resource

    ours, theirs = pairs[0]
    theirs.sendall(b"x")

    def wait() -> Task:
        yield (yield readable(ours, time.perf_counter() + 60))

    if not threads:
        monkeypatch.setattr(threading.Thread, "start", lambda _: (_ for _ in ()).throw(RuntimeError("no thread")))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(int(each.name) for each in Path("/dev/fd").iterdir()) + 8, hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                held.append(os.dup(0))
        outcomes = [*_take_turns([wait(), wait()][:1], 8), *_Stream([wait()], 8).outcomes()]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for each in held:
            os.close(each)
    assert [isinstance(at, float) for at in outcomes] == [True, True]


# --- Whole echoes ----------------------------------------------------------------------------------------------------


def test_times_in_a_fleet_are_those_of_one_at_a_time() -> None:
    """Compared within one run, by their medians: what keeps the machine busy makes both slow."""
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(RawPeer((Pause(0.02), *GOOD_SCRIPT))).address for _ in range(24)]
        echo.send(peers[0])
        alone, together = (
            statistics.median(result.total for result in echo.probe_many(peers, jobs=jobs)) for jobs in (1, 24)
        )
    assert alone >= 0.02
    assert together < alone * 3
