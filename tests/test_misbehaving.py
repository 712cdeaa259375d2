"""Peers that misbehave over a real socket: they close, reset, stay silent, drip, flood, or talk of something else.

What can be told from bytes alone is in test_dialogue; here is one of each kind.
"""

from __future__ import annotations

import errno
import functools
import ssl
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Union

import pytest
import rawpeer
from rawpeer import (
    GOOD_ACCEPT,
    GOOD_ECHO,
    GOOD_RELEASE,
    Close,
    Drip,
    Expect,
    Pause,
    RawPeer,
    Reset,
    Send,
    p_data,
    script,
)

import dicom_echo as echo
from dicom_echo import Phase

RQ, DATA, ABORT = rawpeer.A_ASSOCIATE_RQ, rawpeer.P_DATA_TF, rawpeer.A_ABORT
RELEASE, RELEASED = rawpeer.A_RELEASE_RQ, rawpeer.A_RELEASE_RP
Where = Callable[[], AbstractContextManager[Union[rawpeer.Endpoint, RawPeer]]]

LIMIT = 0.3
PATIENCE = 20.0  # far beyond any limit here, whatever the machine has to do


def of(*steps: rawpeer.Step) -> Where:
    return functools.partial(RawPeer, steps)


def accepting(answer: rawpeer.Answer) -> Where:
    return of(*script(accept=answer))


def answering(answer: rawpeer.Answer) -> Where:
    return of(*script(echo=answer))


def command(**changes: object) -> Where:
    return answering(rawpeer.command_pdu(rawpeer.echo_rsp_command(**changes)))  # type: ignore[arg-type]


# --- Each failure ----------------------------------------------------------------------------------------------------

CLOSED, RESET, CUT_OFF = "closed by the peer without an answer", "reset by the peer", "the answer was cut off"
SILENT = "no answer within 0.3 s"
NO_CONTEXT = "the peer accepts, but does not mention presentation context 1"
HELLO = rawpeer.ReceiveSome()
NO_TLS, ENDED_TLS = "the peer does not speak TLS", "closed during the handshake"

EMPTY_FRAGMENT = p_data([(1, 1, b"")])
# Types and lengths that may be due, so that the peer is never caught in nonsense: as slow as it is right.
ENDLESS_ACCEPT = Drip(rawpeer.pdu(2, GOOD_ACCEPT[6:] + bytes(60000)))
ENDLESS_ANSWER = Drip(p_data([(1, 1, bytes(60000))]))
UNASKED_RELEASE = (Expect(RQ), Send(GOOD_ACCEPT), Expect(DATA), Send(rawpeer.release_rq()))
TLS_RECORD = b"\x16\x03\x03\x40\x00" + bytes(0x4000)

connect, tls, associate, answer = Phase.connect, Phase.tls, Phase.associate, Phase.echo
late: dict[str, object] = {"timeout": LIMIT}
ROWS: dict[str, tuple[Where, str, Phase, str, dict[str, object]]] = {
    "refuses": (rawpeer.closed_port, "unreachable", connect, "connection refused", {"errno": errno.ECONNREFUSED}),
    "closes while associating": (accepting(Close()), "lost", associate, CLOSED, {}),
    "resets while associating": (accepting(Reset()), "lost", associate, RESET, {}),
    "closes while echoing": (answering(Close()), "lost", answer, CLOSED, {}),
    "resets while echoing": (answering(Reset()), "lost", answer, RESET, {}),
    "closes after three bytes": (of(Expect(RQ), Send(GOOD_ACCEPT[:3]), Close()), "lost", associate, CUT_OFF, {}),
    "closes within the acceptance": (of(Expect(RQ), Send(GOOD_ACCEPT[:-1]), Close()), "lost", associate, CUT_OFF, {}),
    "closes within the answer": (
        of(Expect(RQ), Send(GOOD_ACCEPT), Expect(DATA), Send(GOOD_ECHO[:-1]), Close()), "lost", answer, CUT_OFF, {}),
    "asks for the release instead": (
        of(*UNASKED_RELEASE), "lost", answer, "the peer released the association without an answer", {}),
    "silent while connecting": (rawpeer.full_listener, "timeout", connect, SILENT, late),
    "silent in TLS": (rawpeer.silent_listener, "timeout", tls, SILENT, late),
    "drips in TLS": (of(Drip(TLS_RECORD)), "timeout", tls, SILENT, late),
    "silent while associating": (rawpeer.silent_listener, "timeout", associate, SILENT, late),
    "stops in the header": (of(Send(b"\2")), "timeout", associate, SILENT, late),
    "stops in the acceptance": (of(Send(GOOD_ACCEPT[:-1])), "timeout", associate, SILENT, late),
    "drips an acceptance": (of(ENDLESS_ACCEPT), "timeout", associate, SILENT, late),
    "silent while echoing": (answering(None), "timeout", answer, SILENT, late),
    "stops in the answer": (answering(GOOD_ECHO[:-1]), "timeout", answer, SILENT, late),
    "drips an answer": (answering(ENDLESS_ANSWER), "timeout", answer, SILENT, late),
    "drips empty fragments": (answering(Drip(EMPTY_FRAGMENT, 0.002)), "timeout", answer, SILENT, late),
    "floods with empty fragments": (answering(Drip(EMPTY_FRAGMENT, 0)), "timeout", answer, SILENT, late),
    "rejects": (
        accepting(rawpeer.associate_rj(1, 1, 7)), "rejected", associate, "called AE title not recognized",
        {"result": 1, "source": 1, "reason": 7}),
    "does not support Verification": (
        accepting(rawpeer.associate_ac([(1, 3, None)])), "not-supported", associate, "abstract syntax not supported",
        {"result": 3}),
    "aborts while associating": (
        accepting(rawpeer.abort(0, 0)), "aborted", associate, "no reason given", {"source": 0, "reason": 0}),
    "aborts while echoing": (
        answering(rawpeer.abort(2, 1)), "aborted", answer, "unrecognized PDU", {"source": 2, "reason": 1}),
    "speaks another protocol": (
        accepting(b"SSH-2.0-OpenSSH_9.9\r\n"), "protocol", associate, "the answer is SSH, not DICOM",
        {"received": b"SSH-2.0-OpenSSH_".hex()}),
    "greets before our request": (
        of(Send(b"220 mail.example.org ESMTP\r\n")), "protocol", associate, "the answer is SMTP or FTP, not DICOM",
        {"received": b"220 mail.example".hex()}),
    "three bytes of something else": (
        of(Expect(RQ), Send(b"xyz"), Close()), "protocol", associate, "the answer is not DICOM",
        {"received": b"xyz".hex()}),
    "promises 4 GB": (
        accepting(rawpeer.pdu(2, bytes(100), 0xFFFFFFFF)), "protocol", associate,
        "A-ASSOCIATE-AC with an impossible length of 4294967295 bytes", {}),
    "names no context": (accepting(rawpeer.associate_ac([])), "protocol", associate, NO_CONTEXT, {}),
    "names another context": (
        accepting(rawpeer.associate_ac([(3, 0, rawpeer.IMPLICIT_VR_LITTLE_ENDIAN)])),
        "protocol", associate, NO_CONTEXT, {}),
    "answers another message": (
        command(message_id=2), "protocol", answer, "the answer is to message ID 2, expected 1", {}),
    "answers another command": (
        command(command_field=0x8020), "protocol", answer, "received command 8020H, expected C-ECHO-RSP (8030H)", {}),
    "answers without a status": (
        command(omit=[rawpeer.STATUS]), "protocol", answer, "the C-ECHO-RSP contains no status", {}),
    "answers in another context": (
        answering(rawpeer.echo_rsp(1, context_id=3)), "protocol", answer,
        "the answer is in presentation context 3, not 1", {}),
    "sends a data set": (
        answering(p_data([(1, rawpeer.LAST, b"data")])), "protocol", answer,
        "received a data set, expected the command set of the C-ECHO-RSP", {}),
    **{
        f"an endless command in fragments of {size}": (
            answering(p_data([(1, 1, bytes(size))] * some) * (70000 // (some * size) + 1)), "protocol", answer,
            "a command set of more than 65536 bytes", {})
        for size, some in ((1, 8), (1000, 8), (16000, 8), (33000, 1))
    },
    "floods with empty PDUs": (
        answering(Drip(p_data([]), 0)), "protocol", answer, "malformed P-DATA-TF: it contains no value", {}),
    "does not speak TLS but DICOM": (of(HELLO, Send(GOOD_ACCEPT)), "tls", tls, NO_TLS, {}),
    "does not speak TLS but HTTP": (of(HELLO, Send(b"HTTP/1.1 400 Bad\r\n\r\n")), "tls", tls, NO_TLS, {}),
    "does not speak TLS but aborts": (of(HELLO, Send(rawpeer.abort())), "tls", tls, NO_TLS, {}),
    "closes in the handshake": (of(HELLO, Close()), "tls", tls, ENDED_TLS, {}),
    "resets in the handshake": (of(HELLO, Reset()), "tls", tls, ENDED_TLS, {}),
}  # fmt: skip


# What the client has sent in the end to a peer of those above that listens on.
SENT = {
    "rejects": [RQ],
    "aborts while associating": [RQ],
    "aborts while echoing": [RQ, DATA],
    "does not support Verification": [RQ, ABORT],
    "names no context": [RQ, ABORT],
    "speaks another protocol": [RQ, ABORT],
    "stops in the acceptance": [RQ, ABORT],
    "silent while echoing": [RQ, DATA, ABORT],
    "answers another message": [RQ, DATA, ABORT],
    "asks for the release instead": [RQ, DATA, RELEASED],
}


@pytest.mark.parametrize("case", ROWS)
def test_a_peer_that(case: str) -> None:
    where, kind, phase, message, facts = ROWS[case]
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    limit = LIMIT if kind == "timeout" else PATIENCE
    begun = time.monotonic()
    with where() as peer:
        result = echo.probe(peer.address, message_id=1, timeout=limit, tls=context if phase == tls else None)
        took = time.monotonic() - begun
        if isinstance(peer, RawPeer) and case in SENT:
            conversation = peer.conversation()
            assert conversation.types == SENT[case]
            assert ABORT not in SENT[case] or conversation.raw.endswith(rawpeer.abort(0, 0))
    assert took < PATIENCE
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
    with RawPeer((Expect(RQ), Pause(0.4), Send(GOOD_ACCEPT))) as peer:
        result = echo.probe(peer.address, message_id=1, timeout=0.6)
    assert isinstance(result.error, echo.TimedOut)
    assert (result.error.phase, result.error.timeout) == (Phase.echo, 0.6)
    assert result.timings[Phase.echo] < 0.35


def test_a_slow_association_alone_has_a_likely_reason() -> None:
    note = "only the association was slow: the peer may be doing a reverse DNS lookup of this host"
    for accept, answer, notes in ((1.2, 0.0, (note,)), (1.1, 0.3, ())):
        first = Expect(RQ), Pause(accept), Send(GOOD_ACCEPT)
        with RawPeer((*first, Expect(DATA), Pause(answer), Send(GOOD_ECHO))) as peer:
            result = echo.probe(peer.address, message_id=1, abort=True)
        assert (result.ok, result.notes) == (True, notes)
        assert result.timings[Phase.associate] >= accept * 0.95


# --- What does not matter, and what matters little -------------------------------------------------------------------

WHILE_RELEASING = "after the answer, while releasing: "
NO_RELEASE = "timed out: no answer within 1 s"
SUCCESSES: dict[str, tuple[rawpeer.Script, str]] = {
    "good": (script(), ""),
    "byte by byte": (script(*(Send(data, 1, 0.0005) for data in (GOOD_ACCEPT, GOOD_ECHO, GOOD_RELEASE))), ""),
    "all at once": ((Expect(RQ), Send(rawpeer.GOOD_STREAM)), ""),
    "both ask for the release": (script(release=rawpeer.release_rq()), ""),
    "late data": (script(release=GOOD_ECHO + GOOD_RELEASE), ""),
    "both ask, then the answer": (script(release=rawpeer.release_rq() + GOOD_RELEASE), ""),
    "silent": (script(release=None), NO_RELEASE),
    "stops": (script(release=GOOD_RELEASE[:-1]), NO_RELEASE),
    "drips": (script(release=Drip(p_data([(1, 1, bytes(9999))]))), NO_RELEASE),
    "floods with data": (script(release=Drip(p_data([(1, 1, b"x")]), 0)), NO_RELEASE),
    "closes": (script(release=Close()), f"connection lost: {CLOSED}"),
    "resets": (script(release=Reset()), f"connection lost: {RESET}"),
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
    with RawPeer(script(echo=rawpeer.echo_rsp(1, 0x210), release=Reset())) as peer:
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
