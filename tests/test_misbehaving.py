"""Peers that misbehave over a real socket: they close, reset, stay silent, drip, flood, or talk of something else.

What can be told from bytes alone is in test_dialogue, over a socket as well; here is one of each kind.
"""

from __future__ import annotations

import errno
import ssl
import time
from typing import Any

import pytest
import rawpeer
from rawpeer import GOOD_ACCEPT, GOOD_ECHO, GOOD_RELEASE, RawPeer, close, drip, in_pieces, p_data, pause, reset, script

import dicom_echo as echo
from dicom_echo import Phase

RQ, DATA, ABORT = rawpeer.A_ASSOCIATE_RQ, rawpeer.P_DATA_TF, rawpeer.A_ABORT
RELEASE, RELEASED = rawpeer.A_RELEASE_RQ, rawpeer.A_RELEASE_RP

LIMIT = 0.3
PATIENCE = 20.0  # far beyond any limit here, whatever the machine has to do


# --- Each failure ----------------------------------------------------------------------------------------------------

CLOSED, RESET, CUT_OFF = "closed by the peer without an answer", "reset by the peer", "the answer was cut off"
WITHOUT_ANSWER = "the peer released the association without an answer"
SILENT = "no answer within 0.3 s"
NO_TLS, ENDED_TLS = "the peer does not speak TLS", "closed during the handshake"
NO_VALUE, ENDLESS = "malformed P-DATA-TF: it contains no value", "a command set of more than 65536 bytes"

EMPTY_FRAGMENT = p_data([(1, 1, b"")])
# Types and lengths that may be due, so that the peer is never caught in nonsense: as slow as it is right.
ENDLESS_ACCEPT = drip(rawpeer.pdu(2, GOOD_ACCEPT[6:] + bytes(60000)))
ENDLESS_ANSWER = drip(p_data([(1, 1, bytes(60000))]))
TLS_RECORD = b"\x16\x03\x03\x40\x00" + bytes(0x4000)
HELLO = rawpeer.Link.receive

connect, tls, associate, answer = Phase.connect, Phase.tls, Phase.associate, Phase.echo
# What a peer does, as a script or a function that makes the whole peer; kind, phase and text of the failure.
CASES: dict[str, tuple[Any, str, Phase, str]] = {
    "refuses": (rawpeer.closed_port, "unreachable", connect, "connection refused"),
    "closes while associating": (script(accept=close), "lost", associate, CLOSED),
    "resets while associating": (script(accept=reset), "lost", associate, RESET),
    "closes while echoing": (script(echo=close), "lost", answer, CLOSED),
    "resets while echoing": (script(echo=reset), "lost", answer, RESET),
    "closes after three bytes": ((RQ, GOOD_ACCEPT[:3], close), "lost", associate, CUT_OFF),
    "closes within the acceptance": ((RQ, GOOD_ACCEPT[:-1], close), "lost", associate, CUT_OFF),
    "closes within the answer": ((RQ, GOOD_ACCEPT, DATA, GOOD_ECHO[:-1], close), "lost", answer, CUT_OFF),
    "asks for the release instead": ((RQ, GOOD_ACCEPT, DATA, rawpeer.release_rq()), "lost", answer, WITHOUT_ANSWER),
    "silent while connecting": (rawpeer.full_listener, "timeout", connect, SILENT),
    "silent in TLS": (rawpeer.silent_listener, "timeout", tls, SILENT),
    "drips in TLS": ([drip(TLS_RECORD)], "timeout", tls, SILENT),
    "silent while associating": (rawpeer.silent_listener, "timeout", associate, SILENT),
    "stops in the header": ([b"\2"], "timeout", associate, SILENT),
    "stops in the acceptance": ([GOOD_ACCEPT[:-1]], "timeout", associate, SILENT),
    "drips an acceptance": ([ENDLESS_ACCEPT], "timeout", associate, SILENT),
    "silent while echoing": (script(echo=None), "timeout", answer, SILENT),
    "stops in the answer": (script(echo=GOOD_ECHO[:-1]), "timeout", answer, SILENT),
    "drips an answer": (script(echo=ENDLESS_ANSWER), "timeout", answer, SILENT),
    "drips empty fragments": (script(echo=drip(EMPTY_FRAGMENT, 0.002)), "timeout", answer, SILENT),
    "floods with empty fragments": (script(echo=drip(EMPTY_FRAGMENT, 0)), "timeout", answer, SILENT),
    "rejects": (script(rawpeer.associate_rj(1, 1, 7)), "rejected", associate, "called AE title not recognized"),
    "does not support Verification": (
        script(rawpeer.associate_ac([(1, 3, None)])), "not-supported", associate, "abstract syntax not supported"),
    "aborts while associating": (script(rawpeer.abort(0, 0)), "aborted", associate, "no reason given"),
    "aborts while echoing": (script(echo=rawpeer.abort(2, 1)), "aborted", answer, "unrecognized PDU"),
    "speaks another protocol": (
        script(b"SSH-2.0-OpenSSH_9.9\r\n"), "protocol", associate, "the answer is SSH, not DICOM"),
    "greets before our request": (
        [b"220 mail.example.org ESMTP\r\n"], "protocol", associate, "the answer is SMTP or FTP, not DICOM"),
    "three bytes of something else": ((RQ, b"xyz", close), "protocol", associate, "the answer is not DICOM"),
    **{
        f"an endless command in fragments of {size}": (
            script(echo=p_data([(1, 1, bytes(size))] * some) * (70000 // (some * size) + 1)), "protocol", answer,
            ENDLESS)
        for size, some in ((1, 8), (1000, 8), (16000, 8), (33000, 1))
    },
    "floods with empty PDUs": (script(echo=drip(p_data([]), 0)), "protocol", answer, NO_VALUE),
    "does not speak TLS but DICOM": ((HELLO, GOOD_ACCEPT), "tls", tls, NO_TLS),
    "does not speak TLS but HTTP": ((HELLO, b"HTTP/1.1 400 Bad\r\n\r\n"), "tls", tls, NO_TLS),
    "does not speak TLS but aborts": ((HELLO, rawpeer.abort()), "tls", tls, NO_TLS),
    "closes in the handshake": ((HELLO, close), "tls", tls, ENDED_TLS),
    "resets in the handshake": ((HELLO, reset), "tls", tls, ENDED_TLS),
}  # fmt: skip
# The facts of the failures that have any; all that timed out have the time limit.
FACTS: dict[str, dict[str, object]] = {
    "refuses": {"errno": errno.ECONNREFUSED},
    "rejects": {"result": 1, "source": 1, "reason": 7},
    "does not support Verification": {"result": 3},
    "aborts while associating": {"source": 0, "reason": 0},
    "aborts while echoing": {"source": 2, "reason": 1},
    "speaks another protocol": {"received": b"SSH-2.0-OpenSSH_".hex()},
    "greets before our request": {"received": b"220 mail.example".hex()},
    "three bytes of something else": {"received": b"xyz".hex()},
}
# What we have sent in the end to a peer that listens on.
SENT = {
    "rejects": [RQ],
    "aborts while echoing": [RQ, DATA],
    "does not support Verification": [RQ, ABORT],
    "stops in the acceptance": [RQ, ABORT],
    "silent while echoing": [RQ, DATA, ABORT],
    "asks for the release instead": [RQ, DATA, RELEASED],
}


@pytest.mark.parametrize("case", CASES)
def test_a_peer_that(case: str) -> None:
    played, kind, phase, message = CASES[case]
    facts = FACTS.get(case, {"timeout": LIMIT} if kind == "timeout" else {})
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    limit = LIMIT if kind == "timeout" else PATIENCE
    begun = time.monotonic()
    with played() if callable(played) else RawPeer(played) as peer:
        result = echo.probe(peer.address, message_id=1, timeout=limit, tls=context if phase == tls else None)
        assert time.monotonic() - begun < PATIENCE
        if sent := SENT.get(case):
            conversation = peer.conversation()
            assert conversation.types == sent
            assert sent[-1] != ABORT or conversation.raw.endswith(rawpeer.abort(0, 0))
    error = result.error
    assert error
    assert (error.kind, error.phase, str(error), error.facts) == (kind, phase, message, facts)
    assert {name: getattr(error, name) for name in facts} == facts
    assert error.hint
    assert "{" not in error.hint
    assert "Errno" not in error.detail
    in_json = result.to_dict()["error"]
    assert (in_json.pop("kind"), in_json.pop("phase"), in_json.pop("message")) == (kind, phase.name, message)
    assert {name: fact for name, fact in in_json.items() if name not in ("hint", "detail")} == facts


# --- Time ------------------------------------------------------------------------------------------------------------


def test_the_limit_is_for_the_whole_echo_not_for_each_phase() -> None:
    with RawPeer((RQ, pause(0.4), GOOD_ACCEPT)) as peer:
        result = echo.probe(peer.address, message_id=1, timeout=0.6)
    assert isinstance(result.error, echo.TimedOut)
    assert (result.error.phase, result.error.timeout) == (Phase.echo, 0.6)
    assert result.timings[Phase.echo] < 0.35


def test_a_slow_association_alone_has_a_likely_reason() -> None:
    note = "only the association was slow: the peer may be doing a reverse DNS lookup of this host"
    for accepting, answering, notes in ((1.2, 0.0, (note,)), (1.1, 0.3, ())):
        with RawPeer((RQ, pause(accepting), GOOD_ACCEPT, DATA, pause(answering), GOOD_ECHO)) as peer:
            result = echo.probe(peer.address, message_id=1, abort=True)
        assert (result.ok, result.notes) == (True, notes)
        assert result.timings[Phase.associate] >= accepting * 0.95


# --- What does not matter, and what matters little -------------------------------------------------------------------

WHILE_RELEASING = "after the answer, while releasing: "
NO_RELEASE = "timed out: no answer within 1 s"
# What a peer does, and what the note on the release says; without text there is no note.
SUCCESSES: dict[str, tuple[rawpeer.Script, str]] = {
    "good": (script(), ""),
    "byte by byte": (script(*map(in_pieces, (GOOD_ACCEPT, GOOD_ECHO, GOOD_RELEASE))), ""),
    "all at once": ((RQ, rawpeer.GOOD_STREAM), ""),
    "both ask for the release": (script(release=rawpeer.release_rq()), ""),
    "late data": (script(release=GOOD_ECHO + GOOD_RELEASE), ""),
    "both ask, then the answer": (script(release=rawpeer.release_rq() + GOOD_RELEASE), ""),
    "silent": (script(release=None), NO_RELEASE),
    "stops": (script(release=GOOD_RELEASE[:-1]), NO_RELEASE),
    "drips": (script(release=drip(p_data([(1, 1, bytes(9999))]))), NO_RELEASE),
    "floods with data": (script(release=drip(p_data([(1, 1, b"x")]), 0)), NO_RELEASE),
    "closes": (script(release=close), f"connection lost: {CLOSED}"),
    "resets": (script(release=reset), f"connection lost: {RESET}"),
    "aborts": (script(release=rawpeer.abort(0, 0)), "aborted: no reason given"),
    "aborts with a reason": (script(release=rawpeer.abort(2, 2)), "aborted: unexpected PDU"),
    "junk": (script(release=b"\r\n\r\nHELLO"), "protocol error: the answer is not DICOM"),
    "another acceptance": (
        script(release=GOOD_ACCEPT), "protocol error: received A-ASSOCIATE-AC, expected A-RELEASE-RP"),
    "4 GB": (
        script(release=rawpeer.pdu(6, b"", 0xFFFFFFFF)),
        "protocol error: A-RELEASE-RP with an impossible length of 4294967295 bytes"),
}  # fmt: skip


@pytest.mark.parametrize("case", SUCCESSES)
def test_success_whatever_comes_with_it_or_after_it(case: str) -> None:
    """Trouble while releasing is a note, and costs a second at most."""
    played, note = SUCCESSES[case]
    with RawPeer(played) as peer:
        result = echo.probe(peer.address, message_id=1, timeout=PATIENCE)
        assert note or peer.conversation().types == [RQ, DATA, RELEASE]
    assert (result.ok, result.kind, result.status, result.error) == (True, "ok", 0, None)
    assert result.notes == ((WHILE_RELEASING + note,) if note else ())
    assert list(result.timings)[-1] == Phase.release
    counted = [seconds for phase, seconds in result.timings.items() if not (note and phase == Phase.release)]
    assert result.total == sum(counted)
    assert result.timings[Phase.release] < PATIENCE / 2


def test_the_release_is_not_waited_for_beyond_the_limit() -> None:
    with RawPeer(script(release=None)) as peer:
        result = echo.probe(peer.address, message_id=1, timeout=0.5)
    assert (result.ok, result.kind, result.error) == (True, "ok", None)
    assert result.notes[0].startswith(f"{WHILE_RELEASING}timed out: no answer within 0.")


def test_trouble_after_the_answer_hides_no_status() -> None:
    with RawPeer(script(echo=rawpeer.echo_rsp(1, 0x210), release=reset)) as peer:
        result = echo.probe(peer.address, message_id=1)
        assert peer.conversation().types == [RQ, DATA, RELEASE]
    assert (result.status, result.kind, result.error) == (0x210, "status", None)
    assert result.notes == (f"{WHILE_RELEASING}connection lost: {RESET}",)


def test_an_abort_instead_of_a_release_is_not_waited_for() -> None:
    with RawPeer(script()[:4]) as peer:
        result = echo.probe(peer.address, message_id=1, abort=True)
        assert peer.conversation().raw.endswith(rawpeer.abort(0, 0))
    assert (result.ok, result.notes) == (True, ())
    assert result.timings[Phase.release] < 0.9
