"""The dialogue without a socket: bytes in, events out, however they are cut; and no bytes that it does not survive."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import fuzz
import pytest
import rawpeer
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rawpeer import A_ASSOCIATE_RQ, Close, Expect, RawPeer, Script, Send, Silence

import dicom_echo as echo
from dicom_echo import ConnectionLost, EchoError, Phase, ProtocolError, Rejected

PEER = echo.Peer(rawpeer.IMPLEMENTATION_CLASS_UID, rawpeer.VERSION_NAME, 16384, rawpeer.IMPLICIT_VR_LITTLE_ENDIAN)
GOOD_OUTCOME = (echo._Accepted(PEER), echo._Answered(0, ""), "released")


def dialogue(phase: Phase = Phase.associate) -> echo._Dialogue:
    """A dialogue in which an answer is due."""
    made = echo._Dialogue(fuzz.REQUEST, "127.0.0.1:50000")
    made.associate()
    if phase != Phase.associate:
        made.echo(1)
    if phase == Phase.release:
        made.release()
    return made


# --- The good stream -------------------------------------------------------------------------------------------------


def test_nothing_has_happened_before_anything_came() -> None:
    for phase in (Phase.associate, Phase.echo, Phase.release):
        assert dialogue(phase).next_event() is None


def test_a_whole_stream() -> None:
    assert fuzz.outcome([rawpeer.GOOD_STREAM]) == GOOD_OUTCOME


def test_byte_by_byte_there_is_no_event_before_the_last_byte() -> None:
    made = dialogue()
    for byte in rawpeer.GOOD_ACCEPT[:-1]:
        made.receive_data(bytes([byte]))
        assert made.next_event() is None
    made.receive_data(rawpeer.GOOD_ACCEPT[-1:])
    assert made.next_event() == echo._Accepted(PEER)
    assert made.next_event() is None


def test_trailing_junk_is_not_looked_at_before_its_turn() -> None:
    made = dialogue()
    made.receive_data(rawpeer.GOOD_ACCEPT + rawpeer.GOOD_ECHO + b"junkjunk")
    assert made.next_event() == echo._Accepted(PEER)
    made.echo(1)
    assert made.next_event() == echo._Answered(0, "")
    made.release()
    with pytest.raises(ProtocolError, match=r"^the answer is not DICOM$"):
        made.next_event()


def test_the_end_counts_after_what_came_before_it() -> None:
    made = dialogue()
    made.receive_data(rawpeer.GOOD_ACCEPT)
    made.receive_data(b"")
    assert made.next_event() == echo._Accepted(PEER)
    made.echo(1)
    with pytest.raises(ConnectionLost, match=r"^closed by the peer without an answer$"):
        made.next_event()


@pytest.mark.parametrize("phase", [Phase.associate, Phase.echo, Phase.release])
def test_the_end_within_a_pdu(phase: Phase) -> None:
    made = dialogue(phase)
    made.receive_data(rawpeer.abort()[:-1])
    assert made.next_event() is None
    made.receive_data(b"")
    with pytest.raises(ConnectionLost, match=r"^closed by the peer in the middle of an answer$"):
        made.next_event()


def test_a_rejection_wins_over_the_end_behind_it() -> None:
    made = dialogue()
    made.receive_data(rawpeer.associate_rj(2, 3, 1))
    made.receive_data(b"")
    with pytest.raises(Rejected, match=r"^temporary congestion$"):
        made.next_event()


def test_a_type_is_refused_with_the_header_and_a_length_before_its_bytes() -> None:
    for header, why in [
        (b"\x08\0\0\0\0\0", "the answer is not DICOM"),
        (b"\x02\0\xff\xff\xff\xff", "A-ASSOCIATE-AC with an impossible length of 4294967295 bytes"),
        (b"\x07\0\0\0\0\x05", "A-ABORT with an impossible length of 5 bytes"),
    ]:
        made = dialogue()
        made.receive_data(header[:5])
        assert made.next_event() is None
        made.receive_data(header[5:])
        with pytest.raises(ProtocolError) as caught:
            made.next_event()
        assert str(caught.value) == why


@pytest.mark.parametrize("message_id", [0, 1, 65535])
def test_one_dialogue_echoes_again_and_again(message_id: int) -> None:
    made = dialogue()
    made.receive_data(rawpeer.GOOD_ACCEPT)
    assert isinstance(made.next_event(), echo._Accepted)
    for status in (0, 0x0122, 0):
        made.echo(message_id)
        made.receive_data(rawpeer.echo_rsp(message_id, status))
        assert made.next_event() == echo._Answered(status, "")


def test_nothing_of_an_answer_is_left_over_for_the_next() -> None:
    made = dialogue()
    made.receive_data(rawpeer.GOOD_ACCEPT + rawpeer.GOOD_ECHO)
    assert isinstance(made.next_event(), echo._Accepted)
    made.echo(1)
    assert made.next_event() == echo._Answered(0, "")
    made.echo(1)
    made.receive_data(rawpeer.command_pdu(rawpeer.echo_rsp_command(1, omit=[rawpeer.STATUS])))
    with pytest.raises(ProtocolError, match=r"^the C-ECHO-RSP holds no status$"):
        made.next_event()


# --- Moves -----------------------------------------------------------------------------------------------------------

ANY_PDU = {
    1: rawpeer.pdu(1, rawpeer.GOOD_ACCEPT[6:]),
    2: rawpeer.GOOD_ACCEPT,
    3: rawpeer.associate_rj(1, 1, 1),
    4: rawpeer.GOOD_ECHO,
    5: rawpeer.release_rq(),
    6: rawpeer.release_rp(),
    7: rawpeer.abort(),
}
DUE = {Phase.associate: (2, 3, 7), Phase.echo: (4, 7), Phase.release: (4, 5, 6, 7)}


@pytest.mark.parametrize("pdu_type", ANY_PDU)
@pytest.mark.parametrize("phase", DUE)
def test_only_what_is_due_is_let_in(phase: Phase, pdu_type: int) -> None:
    made = dialogue(phase)
    made.receive_data(ANY_PDU[pdu_type])
    try:
        made.next_event()
        refused = False
    except EchoError as error:
        refused = " is due" in str(error)
    assert refused == (pdu_type not in DUE[phase])


# --- Any cut, any bytes ----------------------------------------------------------------------------------------------


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    """The stream in pieces."""
    ends = sorted({place % (len(stream) + 1) for place in places} | {0, len(stream)})
    return [stream[start:end] for start, end in itertools.pairwise(ends)]


@settings(deadline=None)
@given(st.lists(st.integers(0, 400), max_size=20))
@example(list(range(400)))
def test_a_good_stream_means_the_same_in_any_pieces(places: list[int]) -> None:
    assert fuzz.outcome(cut(rawpeer.GOOD_STREAM, places)) == GOOD_OUTCOME


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 1 << 32), st.lists(st.integers(0, 400), max_size=20))
def test_a_spoilt_stream_means_the_same_in_any_pieces(seed: int, places: list[int]) -> None:
    stream = fuzz.spoilt(seed)
    assert fuzz.outcome(cut(stream, places)) == fuzz.outcome([stream])


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([b"", rawpeer.GOOD_ACCEPT, rawpeer.GOOD_ACCEPT + rawpeer.GOOD_ECHO]))
def test_any_bytes_end_in_an_event_or_an_echo_error(data: bytes, before: bytes) -> None:
    fuzz.outcome([before + data])


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([1, 2, 3, 4, 5, 6, 7]), st.sampled_from(list(DUE)))
def test_any_body_of_any_pdu_ends_in_an_event_or_an_echo_error(body: bytes, pdu_type: int, phase: Phase) -> None:
    made = dialogue(phase)
    made.receive_data(rawpeer.pdu(pdu_type, body))
    with contextlib.suppress(EchoError):
        made.next_event()


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_command_set_ends_in_an_event_or_an_echo_error(command: bytes) -> None:
    fuzz.outcome([rawpeer.GOOD_ACCEPT + rawpeer.command_pdu(command)])


# --- 2,000 spoilt streams --------------------------------------------------------------------------------------------

COUNT = 2000


def test_the_spoilt_streams_are_the_same_each_time_and_many_are_spoilt() -> None:
    streams = [fuzz.spoilt(seed) for seed in range(COUNT)]
    assert streams == [fuzz.spoilt(seed) for seed in range(COUNT)]
    assert len(set(streams)) > COUNT * 0.9
    assert sum(stream in fuzz.GOOD_STREAMS for stream in streams) < COUNT * 0.05


def test_no_spoilt_stream_surprises_the_dialogue() -> None:
    ends = {part for seed in range(COUNT) for part in fuzz.outcome([fuzz.spoilt(seed)]) if isinstance(part, type)}
    assert ends == {echo.ProtocolError, echo.ConnectionLost, echo.Rejected, echo.Aborted, echo.NotSupported}


def test_no_spoilt_stream_surprises_the_dump(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "dicom_echo"):
        for seed in range(200):
            fuzz.outcome([fuzz.spoilt(seed)])
    assert any(record.name == "dicom_echo" for record in caplog.records)


@pytest.fixture(scope="module", params=[[], ["-O"]], ids=["asserts on", "asserts off"])
def spoilt_run(request: pytest.FixtureRequest) -> subprocess.CompletedProcess[str]:
    """The same streams in an interpreter of their own, with the usual warnings."""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONWARNINGS", "PYTHONOPTIMIZE")
    }
    environment["PYTHONPATH"] = str(Path(echo.__file__).parent)
    return subprocess.run(
        [sys.executable, *request.param, fuzz.__file__, str(COUNT)],
        env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_no_spoilt_stream_surprises_with_asserts_on_or_off(spoilt_run: subprocess.CompletedProcess[str]) -> None:
    asserts = "off" if "-O" in spoilt_run.args else "on"
    assert spoilt_run.stdout == f"2000 streams, 0 surprises, 5 kinds of error, asserts {asserts}\n"
    assert spoilt_run.returncode == 0


def test_no_spoilt_stream_prints_anything(spoilt_run: subprocess.CompletedProcess[str]) -> None:
    assert spoilt_run.stderr == ""


def test_no_spoilt_stream_over_a_socket_takes_longer_than_the_limit() -> None:
    limit, count = 0.1, 200
    scripts: list[Script] = [
        (Expect(A_ASSOCIATE_RQ), Send(fuzz.spoilt(seed)), Close() if seed % 2 else Silence()) for seed in range(count)
    ]
    kinds = set()
    with RawPeer(*scripts) as peer:
        for _ in range(count):
            start = time.monotonic()
            kinds.add(echo.probe(peer.address, message_id=1, timeout=limit).kind)
            assert time.monotonic() - start < limit + 1
    assert kinds >= {"ok", "timeout", "lost", "protocol", "rejected", "aborted"}
