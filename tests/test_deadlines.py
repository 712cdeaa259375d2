"""Peers that are silent, slow or endless: the time limit holds, and the release costs a second at most.

The bounds are there to catch what hangs; what is measured is in the results' own timings.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import pytest
import rawpeer
from inprocess import raw, run, run_raw
from rawpeer import A_ASSOCIATE_RQ, Drip, Endpoint, Expect, Pause, RawPeer, Script, Send, script

import dicom_echo as echo
from dicom_echo import Phase, ProtocolError, TimedOut

LIMIT = 0.5
HANGS = 3.0

EMPTY_FRAGMENT = rawpeer.p_data([(1, rawpeer.COMMAND, b"")])
# Types and lengths that may be due, so that the peer is never caught in nonsense: as slow as it is right.
ENDLESS_ACCEPT = rawpeer.pdu(2, rawpeer.GOOD_ACCEPT[6:] + bytes(60000))
ENDLESS_ANSWER = rawpeer.p_data([(1, rawpeer.COMMAND, bytes(60000))])
TLS_RECORD = b"\x16\x03\x03\x40\x00" + bytes(0x4000)

Where = Callable[[], AbstractContextManager[Endpoint]]


@dataclass(frozen=True)
class DripOn:
    """Send the data over and over, a byte at a time: for ever, as far as a limit of half a second is concerned."""

    data: bytes
    delay: float = 0.05
    seconds: float = 5.0

    def run(self, link: rawpeer.Link) -> None:
        end = time.monotonic() + self.seconds
        for byte in itertools.cycle(self.data):
            if time.monotonic() > end:
                return
            link.send(bytes([byte]))
            link.pause(self.delay)


def of(*steps: rawpeer.Step) -> Where:
    return functools.partial(raw, steps)


TOO_SLOW = {
    "silent while connecting": (rawpeer.full_listener, Phase.connect, []),
    "silent in TLS": (rawpeer.silent_listener, Phase.tls, ["--tls", "-k"]),
    "drips in TLS": (of(DripOn(TLS_RECORD)), Phase.tls, ["--tls", "-k"]),
    "silent while associating": (rawpeer.silent_listener, Phase.associate, []),
    "stops in the header": (of(Send(b"\2")), Phase.associate, []),
    "stops in the acceptance": (of(Send(rawpeer.GOOD_ACCEPT[:-1])), Phase.associate, []),
    "drips an acceptance": (of(DripOn(ENDLESS_ACCEPT)), Phase.associate, []),
    "silent while echoing": (of(*script(echo=None)), Phase.echo, []),
    "stops in the answer": (of(*script(echo=rawpeer.GOOD_ECHO[:-1])), Phase.echo, []),
    "drips an answer": (of(*script(echo=DripOn(ENDLESS_ANSWER))), Phase.echo, []),
    "drips empty fragments": (of(*script(echo=DripOn(EMPTY_FRAGMENT, delay=0.002))), Phase.echo, []),
    "floods with empty fragments": (of(*script(echo=DripOn(EMPTY_FRAGMENT, delay=0))), Phase.echo, []),
    "floods with empty PDUs": (of(*script(echo=DripOn(rawpeer.p_data([]), delay=0))), Phase.echo, []),
}


@pytest.mark.parametrize(("where", "phase", "options"), TOO_SLOW.values(), ids=TOO_SLOW)
def test_the_limit_holds(where: Where, phase: Phase, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with where() as endpoint:
        ran = run(capsys, endpoint, "-t", str(LIMIT), *options)
    doing = {
        Phase.connect: "connecting to HOST:PORT",
        Phase.tls: "negotiating TLS with HOST:PORT",
        Phase.associate: "associating with ANY-SCP@HOST:PORT as ECHOSCU",
        Phase.echo: "echoing ANY-SCP@HOST:PORT as ECHOSCU",
    }
    assert ran.out.startswith(f"❌ Timed out: no answer within 0.5 s\n   while {doing[phase]}\n   hint: ")
    assert (ran.err, ran.code) == ("", 3)
    assert LIMIT * 0.9 < ran.seconds < HANGS


def test_the_limit_is_for_the_whole_echo_not_for_each_phase() -> None:
    late = Expect(A_ASSOCIATE_RQ), Pause(0.4), Send(rawpeer.GOOD_ACCEPT)
    with RawPeer(late) as peer:
        result = echo.probe(peer.address, message_id=1, timeout=LIMIT)
    assert isinstance(result.error, TimedOut)
    assert (result.error.phase, result.error.timeout) == (Phase.echo, LIMIT)
    assert result.timings[Phase.echo] < 0.2


@pytest.mark.parametrize("fragment", [bytes(1), bytes(1000), bytes(16000)], ids=len)
def test_endless_fragments_end_at_64_kb_not_at_the_limit(fragment: bytes) -> None:
    flood = rawpeer.p_data([(1, rawpeer.COMMAND, fragment)] * 8) * (70000 // (8 * len(fragment)) + 1)
    with RawPeer(script(echo=flood)) as peer:
        result = echo.probe(peer.address, message_id=1, timeout=20)
    assert isinstance(result.error, ProtocolError)
    assert str(result.error) == "a command set of more than 65536 bytes"
    assert result.total < 10


def test_a_slow_peer_that_makes_it_in_time_is_ok() -> None:
    with RawPeer(script(accept=Drip(rawpeer.GOOD_ACCEPT, 0.001), echo=Drip(rawpeer.GOOD_ECHO, 0.001))) as peer:
        assert echo.probe(peer.address, message_id=1).ok


# --- The release -----------------------------------------------------------------------------------------------------

DOES_NOT_RELEASE: dict[str, Script] = {
    "silent": script(release=None),
    "stops in the answer": script(release=rawpeer.release_rp()[:-1]),
    "drips the answer": script(release=DripOn(rawpeer.p_data([(1, 1, bytes(9999))]))),
    "floods with data": script(release=DripOn(rawpeer.p_data([(1, 1, b"x")]), delay=0)),
}


@pytest.mark.parametrize("played", DOES_NOT_RELEASE.values(), ids=DOES_NOT_RELEASE)
def test_a_peer_that_does_not_release_costs_a_second_and_a_note(
    played: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = run_raw(capsys, played, "-v")
    assert (ran.out.splitlines()[0], ran.err, ran.code) == ("✅ Success", "", 0)
    assert ran.out.endswith("\n   note      after the answer, while releasing: timed out: no answer within 1 s\n")
    assert 0.9 < ran.seconds < HANGS


def test_the_release_is_not_waited_for_beyond_the_limit() -> None:
    with RawPeer(script(release=None)) as peer:
        result = echo.probe(peer.address, message_id=1, timeout=LIMIT)
    assert (result.ok, result.kind, result.error) == (True, "ok", None)
    assert len(result.notes) == 1
    assert result.notes[0].startswith("after the answer, while releasing: timed out: no answer within 0.")
    assert result.total < 0.95


def test_the_abort_that_replaces_the_release_is_not_waited_for() -> None:
    with RawPeer(script(release=None)) as peer:
        result = echo.probe(peer.address, message_id=1, abort=True)
    assert (result.ok, result.notes) == (True, ())
    assert result.timings[Phase.release] < 0.5
