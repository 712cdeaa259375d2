"""Chapter 11, campaigns: repeats, intervals, retries, one association or many, who is asked when, and statistics."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pytest
import rawpeer
from command import Outcome, run_main
from rawpeer import GOOD_SCRIPT, RawPeer, Script, close, closed_port, pause, reset, script

import dicom_echo as echo

Capsys = pytest.CaptureFixture[str]

RQ, DATA, RELEASE = rawpeer.A_ASSOCIATE_RQ, rawpeer.P_DATA_TF, rawpeer.A_RELEASE_RQ
CONGESTED = script(accept=rawpeer.associate_rj(2, 3, 2))
ANSWERED = (RQ, rawpeer.accept_proposal, DATA, rawpeer.answer_echo)


class Ran(NamedTuple):
    """A run with JSON Lines."""

    code: int
    echoes: list[dict[str, Any]]
    summary: dict[str, Any]


def repeat(capsys: Capsys, *arguments: object) -> Ran:
    code, out, err = run_main(capsys, "--format", "json", *arguments)
    assert err == ""
    *echoes, summary = map(json.loads, out.splitlines())
    assert ([each["type"] for each in echoes], summary["type"]) == (["echo"] * len(echoes), "summary")
    return Ran(code, echoes, summary)


class Clock:
    """Notes when each connection comes. For what is waited without a socket, it leaps instead: nobody has to wait."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.times: list[float] = []
        self.leaps: list[float] = []
        real = time.perf_counter
        monkeypatch.setattr(time, "perf_counter", lambda: real() + sum(self.leaps))
        monkeypatch.setattr(time, "sleep", self.leaps.append)

    def __call__(self, _link: rawpeer.Link) -> None:
        self.times.append(time.perf_counter())


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def carry_out(address: str, **plan: Any) -> list[echo.EchoResult]:
    """The results of a plan for one target."""
    request = echo._Request(address, "ANY-SCP", "ME", timeout=60)
    outcomes = echo._take_turns([echo._rounds(request, echo._Plan(**plan))], 1)
    return [outcome.result for outcome in outcomes if isinstance(outcome, echo._Echoed)]


@contextlib.contextmanager
def several(*scripts: Sequence[Script]) -> Iterator[list[RawPeer]]:
    """A raw peer for each of these rows of scripts."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(RawPeer(*each)) for each in scripts]


# --- Repeats ---------------------------------------------------------------------------------------------------------


def test_each_echo_has_an_association_and_a_message_id_of_its_own_a_second_apart(capsys: Capsys, peer: RawPeer) -> None:
    begun = time.monotonic()
    ran = repeat(capsys, peer.address, "-c", 2, "-id", 65535)
    assert (ran.code, [each["message_id"] for each in ran.echoes]) == (0, [65535, 1])
    assert time.monotonic() - begun > 0.95
    sent = [peer.conversation(number) for number in range(len(peer.received))]
    types = [RQ, DATA, RELEASE]
    assert [(each.types, each.message_ids) for each in sent] == [(types, [65535]), (types, [1])]
    first_ids = {first: list(itertools.islice(echo._message_ids(first), 3)) for first in (0, 1, 65534)}
    assert first_ids == {0: [0, 1, 2], 1: [1, 2, 3], 65534: [65534, 65535, 1]}


def test_a_failing_echo_is_a_loss_and_decides_the_exit_code(capsys: Capsys) -> None:
    with RawPeer(GOOD_SCRIPT, script(echo=rawpeer.abort()), GOOD_SCRIPT) as peer:
        code, echoes, summary = repeat(capsys, peer.address, "-c", 4, "-i", 0)
    assert [each["ok"] for each in echoes] == [True, False, True, True]
    assert (code, summary["sent"], summary["succeeded"], summary["loss_percent"]) == (1, 4, 3, 25)


def test_the_interval_is_from_start_to_start_and_slots_that_are_missed_are_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    times = iter([100, 106, 130.5, 131])  # the start, and the end of each echo but the last
    monkeypatch.setattr(time, "perf_counter", lambda: next(times))
    starts = [(last, pause.until) for last, pause in echo._pauses(echo._Plan(echoes=4, interval=10))]
    assert starts == [(False, 100), (False, 110), (False, 140), (True, 150)]


# --- One association -------------------------------------------------------------------------------------------------


def test_reuse_sends_all_over_one_association(capsys: Capsys, peer: RawPeer) -> None:
    code, echoes, _ = repeat(capsys, peer.address, "-c", 4, "-i", 0, "--reuse")
    assert (code, len(peer.received)) == (0, 1)
    assert peer.conversation().types == [RQ, *[DATA] * 4, RELEASE]
    phases = [list(each["phases_ms"]) for each in echoes]
    assert phases == [["resolve", "connect", "associate", "echo"], ["echo"], ["echo"], ["echo"]]
    assert len({each["local"] for each in echoes}) == 1
    assert all(each["peer"] for each in echoes)


ENDINGS: dict[str, tuple[list[rawpeer.Step], str, list[int]]] = {
    "closes": ([close], "closed by the peer", []),
    "resets": ([pause(0.05), reset], "(reset|closed) by the peer", []),
    "aborts": ([rawpeer.abort(2, 2)], "A-ABORT", []),
    "aborts and closes": ([pause(0.05), rawpeer.abort(0, 0), close], "A-ABORT", []),
    "releases at once": ([rawpeer.release_rq()], "A-RELEASE-RQ", [rawpeer.A_RELEASE_RP]),
    "releases": ([pause(0.05), rawpeer.release_rq()], "A-RELEASE-RQ", [rawpeer.A_RELEASE_RP]),
}


def test_an_association_that_the_peer_ends_between_two_echoes_is_no_loss(capsys: Capsys) -> None:
    scripts: list[list[Script]] = [[[*ANSWERED, *endings], GOOD_SCRIPT] for endings, _, _ in ENDINGS.values()]
    with several(*scripts) as peers:
        addresses = [peer.address for peer in peers]
        code, echoes, summary = repeat(capsys, *addresses, "-c", 3, "-i", 0.4, "--reuse")
        for peer, (name, (_, how, goodbye)) in zip(peers, ENDINGS.items()):
            types = [peer.conversation(number).types for number in range(len(peer.received))]
            expected = [RQ, DATA, *goodbye], [RQ, DATA, DATA, RELEASE]
            assert (name, *types) == (name, *expected)
            notes = [each["notes"] for each in echoes if each["target"] == peer.address]
            ended = rf"the peer ended the association within \d\.\d s after the last echo \({how}\); opened a new one"
            assert re.fullmatch(rf"\[\[\], \['{ended}'\], \[\]\]", str(notes)), name
    assert (code, summary["sent"], summary["succeeded"], summary["loss_percent"]) == (0, 18, 18, 0)


def test_an_association_that_ends_in_the_middle_of_an_echo_is_a_loss_and_another_is_opened(capsys: Capsys) -> None:
    with RawPeer((*ANSWERED, DATA, close), GOOD_SCRIPT) as peer:
        code, echoes, _ = repeat(capsys, peer.address, "-c", 3, "-i", 0.05, "--reuse")
        assert len(peer.received) == 2
    assert [each["error"] and each["error"]["kind"] for each in echoes] == [None, "lost", None]
    assert code == 3


def test_a_reused_association_is_aborted_where_an_answer_may_come_late(capsys: Capsys) -> None:
    """What was not answered in time could be answered later: it must not be taken for the next answer."""
    with RawPeer((*ANSWERED[:-1], None), GOOD_SCRIPT) as peer:
        echoes = repeat(capsys, peer.address, "-c", 2, "-i", 0, "-t", 0.5, "--reuse").echoes
        assert peer.conversation(0).types == [RQ, DATA, rawpeer.A_ABORT]
    assert [each["error"] and each["error"]["kind"] for each in echoes] == ["timeout", None]


# --- Who is asked when -----------------------------------------------------------------------------------------------


def test_one_host_and_port_is_asked_in_turn_and_holds_back_no_others() -> None:
    """A peer may allow few associations at a time; each list is a task of the loop, which has so many jobs."""
    addresses = "A@busy:1", "B@busy:1", "A@quick:1", "C@BUSY:1", "D@busy:2", "B@quick:1"
    requests = [echo._Request(address, "ANY-SCP", "ME") for address in addresses]

    def ask(request: echo._Request) -> Any:
        return iter([request.target])

    assert list(map(list, echo._by_endpoint(requests, ask))) == [
        ["A@busy:1", "B@busy:1", "C@BUSY:1"], ["A@quick:1", "B@quick:1"], ["D@busy:2"],
    ]  # fmt: skip


def test_titles_at_one_host_and_port_wait_for_each_other_in_a_run_of_the_command(capsys: Capsys) -> None:
    with RawPeer((pause(0.3), *GOOD_SCRIPT), GOOD_SCRIPT) as slow, RawPeer() as quick:
        titles = [f"{title}@{slow.endpoint.host_port}" for title in "AB"]
        echoes = repeat(capsys, *titles, quick.address).echoes
        assert [each["target"] for each in echoes] == [quick.address, *titles]


# --- Waiting ---------------------------------------------------------------------------------------------------------


def test_wait_ends_with_the_first_success(capsys: Capsys) -> None:
    with RawPeer(CONGESTED, script(accept=close), GOOD_SCRIPT) as peer:
        assert run_main(capsys, peer.address, "--wait", 20) == Outcome(0, "✅ Success\n", "")
        assert len(peer.received) == 3
        assert peer.conversation(2).message_ids == [3]


def test_the_delay_between_the_tries_grows(clock: Clock) -> None:
    with RawPeer((clock, *CONGESTED)) as peer:
        [result] = carry_out(peer.address, wait=29)
    *leaps, _ = (each for each in clock.leaps if each > 0.01)  # the last is cut short
    assert leaps == pytest.approx([min(0.2 * 1.5**number, 2) for number in range(len(leaps))], abs=0.1)
    assert len(leaps) > 10
    assert clock.times[-1] - clock.times[0] == pytest.approx(29, abs=0.5)
    assert (str(result.error), result.notes) == ("local limit exceeded", (f"gave up after {len(clock.times)} tries",))


def test_a_wait_without_time_is_one_try(refusing: rawpeer.Endpoint) -> None:
    [result] = carry_out(refusing.address, wait=0)
    assert (result.kind, result.notes) == ("unreachable", ("gave up after 1 try",))


def test_wait_bounds_a_silent_peer_too(clock: Clock) -> None:
    """The last try has what is left of the time, whatever the pauses before it took."""
    with RawPeer(*[(clock, *CONGESTED)] * 3, (clock, None)) as peer:
        [result] = carry_out(peer.address, wait=1.5)
        took = time.perf_counter() - clock.times[0]
    assert (result.kind, len(clock.times)) == ("timeout", 4)
    assert 1.4 < took < 20


def test_wait_with_several_targets_waits_for_each_and_results_come_as_they_finish(capsys: Capsys) -> None:
    with RawPeer() as up, RawPeer(CONGESTED, CONGESTED, GOOD_SCRIPT) as late, closed_port() as never:
        code, echoes, summary = repeat(capsys, never.address, late.address, up.address, "--wait", 1.5)
        assert (len(up.received), len(late.received)) == (1, 3)
        assert [each["target"] for each in echoes] == [up.address, late.address, never.address]
    assert (code, summary["kinds"]) == (3, {"ok": 2, "unreachable": 1})
    assert re.search(r"gave up after [2-9] tries", str(echoes[2]["notes"]))


# --- Statistics ------------------------------------------------------------------------------------------------------


def test_statistics_take_the_same_memory_for_any_number(peer: RawPeer) -> None:
    result = echo.probe(peer.address)
    statistics = echo._Statistics()
    for _ in range(20_000):
        statistics.add(result)
    assert (statistics.sent, statistics.loss, len(statistics.recent)) == (20_000, 0, 60)
    assert statistics.average == pytest.approx(result.total)
    assert statistics.times["deviation"] == pytest.approx(0, abs=1e-6)
    assert statistics.verdict is result
