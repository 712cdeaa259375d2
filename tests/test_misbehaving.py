"""Peers that misbehave over a real socket: they close, reset, stay silent, drip, flood, or talk of something else.

What can be told from bytes alone is in test_dialogue; here is one of each kind, from the wire to the exit code.
"""

from __future__ import annotations

import errno
import functools
import itertools
import json
import ssl
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import rawpeer
from command import run_main
from rawpeer import (
    A_ABORT,
    A_ASSOCIATE_RQ,
    A_RELEASE_RQ,
    GOOD_ACCEPT,
    GOOD_ECHO,
    GOOD_RELEASE,
    P_DATA_TF,
    Close,
    Content,
    Endpoint,
    Expect,
    Pause,
    RawPeer,
    ReceiveSome,
    Reset,
    Script,
    Send,
    script,
)

import dicom_echo as echo
from dicom_echo import Phase, Rejected, TimedOut

Capsys = pytest.CaptureFixture[str]
Where = Callable[[], AbstractContextManager[Endpoint]]

LIMIT = 0.3
PATIENCE = 20.0  # far beyond any limit here, whatever the machine has to do


@contextmanager
def raw(played: Script) -> Any:
    with RawPeer(played) as peer:
        yield peer.endpoint


def of(*steps: rawpeer.Step) -> Where:
    return functools.partial(raw, steps)


def insecure() -> ssl.SSLContext:
    """TLS without verification, as -k has it."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


# --- Each failure, from the wire to the exit code --------------------------------------------------------------------


class Row(NamedTuple):
    where: Where
    kind: str
    phase: Phase
    message: str
    facts: dict[str, object]
    tls: bool = False

    @property
    def limit(self) -> float:
        return LIMIT if self.kind == "timeout" else PATIENCE


CLOSED = "closed by the peer without an answer"
SILENT = "no answer within 0.3 s"
NO_CONTEXT = "the peer accepts, but does not mention presentation context 1"


def accepting(answer: rawpeer.Answer) -> Where:
    return of(*script(accept=answer))


def answering(answer: rawpeer.Answer) -> Where:
    return of(*script(echo=answer))


def command(**changes: Any) -> bytes:
    return rawpeer.command_pdu(rawpeer.echo_rsp_command(**changes))


@dataclass(frozen=True)
class DripOn:
    """Send the data over and over, a byte at a time: for ever, as far as these limits are concerned."""

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


EMPTY_FRAGMENT = rawpeer.p_data([(1, rawpeer.COMMAND, b"")])
# Types and lengths that may be due, so that the peer is never caught in nonsense: as slow as it is right.
ENDLESS_ACCEPT = rawpeer.pdu(2, GOOD_ACCEPT[6:] + bytes(60000))
ENDLESS_ANSWER = rawpeer.p_data([(1, rawpeer.COMMAND, bytes(60000))])
UNASKED_RELEASE = (Expect(A_ASSOCIATE_RQ), Send(GOOD_ACCEPT), Expect(P_DATA_TF), Send(rawpeer.release_rq()))
TLS_RECORD = b"\x16\x03\x03\x40\x00" + bytes(0x4000)

connect, tls, associate, answer = Phase.connect, Phase.tls, Phase.associate, Phase.echo
late: dict[str, object] = {"timeout": LIMIT}
ROWS: dict[str, Row] = {
    "refuses": Row(rawpeer.closed_port, "unreachable", connect, "connection refused", {"errno": errno.ECONNREFUSED}),
    "closes while associating": Row(accepting(Close()), "lost", associate, CLOSED, {}),
    "resets while associating": Row(accepting(Reset()), "lost", associate, "reset by the peer", {}),
    "closes while echoing": Row(answering(Close()), "lost", answer, CLOSED, {}),
    "resets while echoing": Row(answering(Reset()), "lost", answer, "reset by the peer", {}),
    "closes after three bytes": Row(
        of(Expect(1), Send(GOOD_ACCEPT[:3]), Close()), "lost", associate, "the answer was cut off", {}
    ),
    "closes within the acceptance": Row(
        of(Expect(1), Send(GOOD_ACCEPT[:-1]), Close()), "lost", associate, "the answer was cut off", {}
    ),
    "closes within the answer": Row(
        of(Expect(1), Send(GOOD_ACCEPT), Expect(4), Send(GOOD_ECHO[:-1]), Close()),
        "lost", answer, "the answer was cut off", {},
    ),
    "asks for the release instead": Row(
        of(*UNASKED_RELEASE), "lost", answer, "the peer released the association without an answer", {}
    ),
    "silent while connecting": Row(rawpeer.full_listener, "timeout", connect, SILENT, late),
    "silent in TLS": Row(rawpeer.silent_listener, "timeout", tls, SILENT, late, tls=True),
    "drips in TLS": Row(of(DripOn(TLS_RECORD)), "timeout", tls, SILENT, late, tls=True),
    "silent while associating": Row(rawpeer.silent_listener, "timeout", associate, SILENT, late),
    "stops in the header": Row(of(Send(b"\2")), "timeout", associate, SILENT, late),
    "stops in the acceptance": Row(of(Send(GOOD_ACCEPT[:-1])), "timeout", associate, SILENT, late),
    "drips an acceptance": Row(of(DripOn(ENDLESS_ACCEPT)), "timeout", associate, SILENT, late),
    "silent while echoing": Row(answering(None), "timeout", answer, SILENT, late),
    "stops in the answer": Row(answering(GOOD_ECHO[:-1]), "timeout", answer, SILENT, late),
    "drips an answer": Row(answering(DripOn(ENDLESS_ANSWER)), "timeout", answer, SILENT, late),
    "drips empty fragments": Row(answering(DripOn(EMPTY_FRAGMENT, delay=0.002)), "timeout", answer, SILENT, late),
    "floods with empty fragments": Row(answering(DripOn(EMPTY_FRAGMENT, delay=0)), "timeout", answer, SILENT, late),
    "rejects": Row(
        accepting(rawpeer.associate_rj(1, 1, 7)), "rejected", associate, "called AE title not recognized",
        {"result": 1, "source": 1, "reason": 7},
    ),
    "does not support Verification": Row(
        accepting(rawpeer.associate_ac([(1, 3, None)])), "not-supported", associate,
        "abstract syntax not supported", {"result": 3},
    ),
    "aborts while associating": Row(
        accepting(rawpeer.abort(0, 0)), "aborted", associate, "no reason given", {"source": 0, "reason": 0}
    ),
    "aborts while echoing": Row(
        answering(rawpeer.abort(2, 1)), "aborted", answer, "unrecognized PDU", {"source": 2, "reason": 1}
    ),
    "speaks another protocol": Row(
        accepting(b"SSH-2.0-OpenSSH_9.9\r\n"), "protocol", associate, "the answer is SSH, not DICOM",
        {"received": b"SSH-2.0-OpenSSH_".hex()},
    ),
    "greets before our request": Row(
        of(Send(b"220 mail.example.org ESMTP\r\n")), "protocol", associate, "the answer is SMTP or FTP, not DICOM",
        {"received": b"220 mail.example".hex()},
    ),
    "three bytes of something else": Row(
        of(Expect(1), Send(b"xyz"), Close()), "protocol", associate, "the answer is not DICOM",
        {"received": b"xyz".hex()},
    ),
    "promises 4 GB": Row(
        accepting(rawpeer.pdu(2, bytes(100), 0xFFFFFFFF)), "protocol", associate,
        "A-ASSOCIATE-AC with an impossible length of 4294967295 bytes", {},
    ),
    "names no context": Row(accepting(rawpeer.associate_ac([])), "protocol", associate, NO_CONTEXT, {}),
    "names another context": Row(
        accepting(rawpeer.associate_ac([(3, 0, rawpeer.IMPLICIT_VR_LITTLE_ENDIAN)])),
        "protocol", associate, NO_CONTEXT, {},
    ),
    "answers another message": Row(
        answering(rawpeer.echo_rsp(2)), "protocol", answer, "the answer is to message ID 2, expected 1", {}
    ),
    "answers another command": Row(
        answering(command(command_field=0x8020)), "protocol", answer,
        "received command 8020H, expected C-ECHO-RSP (8030H)", {},
    ),
    "answers without a status": Row(
        answering(command(omit=[rawpeer.STATUS])), "protocol", answer, "the C-ECHO-RSP contains no status", {}
    ),
    "answers in another context": Row(
        answering(rawpeer.echo_rsp(1, context_id=3)), "protocol", answer,
        "the answer is in presentation context 3, not 1", {},
    ),
    "sends a data set": Row(
        answering(rawpeer.p_data([(1, rawpeer.LAST, b"data")])), "protocol", answer,
        "received a data set, expected the command set of the C-ECHO-RSP", {},
    ),
    "an endless command": Row(
        answering(rawpeer.p_data([(1, rawpeer.COMMAND, bytes(33000))]) * 2), "protocol", answer,
        "a command set of more than 65536 bytes", {},
    ),
    "floods with empty PDUs": Row(
        answering(DripOn(rawpeer.p_data([]), delay=0)), "protocol", answer,
        "malformed P-DATA-TF: it contains no value", {},
    ),
    **{
        f"does not speak TLS but {name}": Row(
            of(ReceiveSome(), Send(said)), "tls", tls, "the peer does not speak TLS", {}, tls=True
        )
        for name, said in {
            "DICOM": GOOD_ACCEPT, "HTTP": b"HTTP/1.1 400 Bad Request\r\n\r\n", "aborts": rawpeer.abort(),
        }.items()
    },
    **{
        f"{type(end).__name__.lower()}s in the handshake": Row(
            of(ReceiveSome(), end), "tls", tls, "closed during the handshake", {}, tls=True
        )
        for end in (Close(), Reset())
    },
}  # fmt: skip

KINDS: dict[str, type[echo.EchoError]] = {
    "unreachable": echo.Unreachable, "lost": echo.ConnectionLost, "timeout": TimedOut, "tls": echo.TLSFailed,
    "rejected": Rejected, "not-supported": echo.NotSupported, "aborted": echo.Aborted, "protocol": echo.ProtocolError,
}  # fmt: skip
CODES = {"unreachable": 3, "lost": 3, "timeout": 3, "tls": 3}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_a_peer_that(row: Row, capsys: Capsys) -> None:
    options = ["--tls", "-k"] if row.tls else []
    begun = time.monotonic()
    with row.where() as endpoint:
        code, out, err = run_main(capsys, "-t", row.limit, "--format", "json", *options, endpoint.address)
        with pytest.raises(KINDS[row.kind]) as caught:
            echo.send(endpoint.address, message_id=1, timeout=row.limit, tls=insecure() if row.tls else None)
    shown = json.loads(out)["error"]
    assert (code, err) == (CODES.get(row.kind, 1), "")
    assert (shown["kind"], shown["phase"], shown["message"]) == (row.kind, row.phase.name, row.message)
    assert {name: shown[name] for name in set(shown) - {"kind", "phase", "message", "hint", "detail"}} == row.facts
    error = caught.value
    assert (type(error), str(error), error.phase, error.facts) == (KINDS[row.kind], row.message, row.phase, row.facts)
    assert {name: getattr(error, name) for name in row.facts} == row.facts
    assert "{" not in error.hint
    assert error.hint or row.message == "unrecognized PDU"
    assert "Errno" not in error.detail
    assert isinstance(error, ValueError) == (row.kind == "rejected") != isinstance(error, ConnectionError)
    assert time.monotonic() - begun < 2 * PATIENCE


def test_the_command_says_what_happened_and_quiet_says_nothing(capsys: Capsys) -> None:
    with raw(script(accept=rawpeer.associate_rj(1, 1, 7))) as endpoint:
        code, out, err = run_main(capsys, endpoint.address)
        assert (code, err) == (1, "")
        assert out.startswith(
            "❌ Rejected: called AE title not recognized\n"
            f"   while associating with {endpoint.address} as ECHOSCU: rejected-permanent, service-user, reason 7\n"
            '   hint: check the called AE title "ANY-SCP"'
        )
        assert run_main(capsys, "-q", endpoint.address) == (1, "", "")


# --- Time ------------------------------------------------------------------------------------------------------------


def test_the_limit_is_for_the_whole_echo_not_for_each_phase() -> None:
    with RawPeer((Expect(A_ASSOCIATE_RQ), Pause(0.4), Send(GOOD_ACCEPT))) as peer:
        result = echo.probe(peer.address, message_id=1, timeout=0.6)
    assert isinstance(result.error, TimedOut)
    assert (result.error.phase, result.error.timeout) == (Phase.echo, 0.6)
    assert result.timings[Phase.echo] < 0.35


@pytest.mark.parametrize("fragment", [1, 1000, 16000])
def test_endless_fragments_end_at_64_kb_not_at_the_limit(fragment: int) -> None:
    flood = rawpeer.p_data([(1, rawpeer.COMMAND, bytes(fragment))] * 8) * (70000 // (8 * fragment) + 1)
    with RawPeer(script(echo=flood)) as peer:
        error = echo.probe(peer.address, message_id=1, timeout=PATIENCE).error
    assert str(error) == "a command set of more than 65536 bytes"


@pytest.mark.parametrize(
    ("accept", "answer", "noted"), [(1.2, 0, True), (0.1, 0, False), (1.1, 0.3, False), (0, 1.1, False)]
)
def test_a_slow_association_alone_has_a_likely_reason(accept: float, answer: float, noted: bool) -> None:
    steps = (Pause(answer), Send(GOOD_ECHO), Expect(A_RELEASE_RQ), Send(GOOD_RELEASE))
    with RawPeer((Expect(A_ASSOCIATE_RQ), Pause(accept), Send(GOOD_ACCEPT), Expect(P_DATA_TF), *steps)) as peer:
        result = echo.probe(peer.address, message_id=1)
    assert result.ok
    assert result.timings[Phase.associate] >= accept * 0.95
    note = "only the association was slow: the peer may be doing a reverse DNS lookup of this host"
    assert result.notes == ((note,) if noted else ())


# --- In pieces -------------------------------------------------------------------------------------------------------


def slowly(content: Content) -> Send:
    """Byte by byte, each on its own."""
    return Send(content, chunk=1, delay=0.0005)


@pytest.mark.parametrize(
    "played",
    [
        script(slowly(GOOD_ACCEPT), slowly(GOOD_ECHO), slowly(GOOD_RELEASE)),
        script(echo=slowly(rawpeer.p_data(rawpeer.fragments(rawpeer.echo_rsp_command(), 1)))),
        script(GOOD_ACCEPT + GOOD_ECHO, echo=b""),
        script(echo=GOOD_ECHO + GOOD_RELEASE),
        script(echo=GOOD_ECHO * 2),
        (Expect(A_ASSOCIATE_RQ), Send(rawpeer.GOOD_STREAM)),
    ],
    ids=["bytes", "fragments of a byte", "acceptance and answer", "answer and release", "answer twice", "all at once"],
)
def test_the_pieces_do_not_matter(played: Script) -> None:
    with RawPeer(played) as peer:
        result = echo.probe(peer.address, message_id=1)
    assert (result.error, result.status, result.ok, result.notes) == (None, 0, True, ())


# --- After the answer ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("release", "note"),
    [
        (None, "timed out: no answer within 1 s"),
        (GOOD_RELEASE[:-1], "timed out: no answer within 1 s"),
        (DripOn(rawpeer.p_data([(1, 1, bytes(9999))])), "timed out: no answer within 1 s"),
        (DripOn(rawpeer.p_data([(1, 1, b"x")]), delay=0), "timed out: no answer within 1 s"),
        (Close(), f"connection lost: {CLOSED}"),
        (Reset(), "connection lost: reset by the peer"),
        (rawpeer.abort(0, 0), "aborted: no reason given"),
        (rawpeer.abort(2, 2), "aborted: unexpected PDU"),
        (b"\r\n\r\nHELLO", "protocol error: the answer is not DICOM"),
        (GOOD_ACCEPT, "protocol error: received A-ASSOCIATE-AC, expected A-RELEASE-RP"),
        (rawpeer.pdu(6, b"", 0xFFFFFFFF), "protocol error: A-RELEASE-RP with an impossible length of 4294967295 bytes"),
    ],
    ids=["silent", "stops", "drips", "floods with data", "closes", "resets", "aborts", "aborts with a reason", "junk",
         "another acceptance", "4 GB"],
)  # fmt: skip
def test_trouble_after_success_is_a_note_and_costs_a_second_at_most(
    release: rawpeer.Answer, note: str, capsys: Capsys
) -> None:
    note = f"after the answer, while releasing: {note}"
    with raw(script(release=release)) as endpoint:
        code, out, err = run_main(capsys, "-v", endpoint.address)
        result = echo.probe(endpoint.address, message_id=1, timeout=PATIENCE)
    assert (code, out.splitlines()[0], err) == (0, "✅ Success", "")
    assert f" note {note}" in " ".join(out.split())
    assert (result.ok, result.kind, result.error, result.notes) == (True, "ok", None, (note,))
    assert list(result.timings)[-1] == Phase.release
    assert result.total == sum(seconds for phase, seconds in result.timings.items() if phase != Phase.release)
    assert result.timings[Phase.release] < PATIENCE / 2


def test_the_release_is_not_waited_for_beyond_the_limit() -> None:
    with RawPeer(script(release=None)) as peer:
        result = echo.probe(peer.address, message_id=1, timeout=0.5)
    assert (result.ok, result.kind, result.error) == (True, "ok", None)
    assert result.notes[0].startswith("after the answer, while releasing: timed out: no answer within 0.")


@pytest.mark.parametrize(
    "release",
    [rawpeer.release_rq(), GOOD_ECHO + GOOD_RELEASE, rawpeer.release_rq() + GOOD_RELEASE],
    ids=["both ask at once", "late data", "collision, then the answer"],
)
def test_what_may_cross_our_release_is_no_trouble(release: bytes) -> None:
    with RawPeer(script(release=release)) as peer:
        result = echo.probe(peer.address, message_id=1)
    assert (result.ok, result.notes) == (True, ())


def test_trouble_after_a_failing_status_does_not_hide_it(capsys: Capsys) -> None:
    with raw(script(echo=rawpeer.echo_rsp(1, 0x0210), release=Reset())) as endpoint:
        code, out, err = run_main(capsys, endpoint.address)
    assert out.splitlines()[0] == "❌ Failed: status 0210H, duplicate invocation"
    assert "note      after the answer, while releasing: connection lost: reset by the peer" in out
    assert (code, err) == (1, "")


# --- How we leave ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("played", "sent"),
    [
        (script(), [A_ASSOCIATE_RQ, P_DATA_TF, A_RELEASE_RQ]),
        (script(echo=rawpeer.echo_rsp(1, 0x0122)), [A_ASSOCIATE_RQ, P_DATA_TF, A_RELEASE_RQ]),
        (script(accept=rawpeer.associate_rj(1, 1, 7)), [A_ASSOCIATE_RQ]),
        (script(accept=rawpeer.abort()), [A_ASSOCIATE_RQ]),
        (script(echo=rawpeer.abort()), [A_ASSOCIATE_RQ, P_DATA_TF]),
        (script(accept=rawpeer.associate_ac([(1, 4, None)])), [A_ASSOCIATE_RQ, A_ABORT]),
        (script(accept=rawpeer.associate_ac([])), [A_ASSOCIATE_RQ, A_ABORT]),
        (script(accept=rawpeer.release_rq()), [A_ASSOCIATE_RQ, A_ABORT]),
        (script(accept=None), [A_ASSOCIATE_RQ, A_ABORT]),
        (script(echo=None), [A_ASSOCIATE_RQ, P_DATA_TF, A_ABORT]),
        (script(echo=rawpeer.echo_rsp(2)), [A_ASSOCIATE_RQ, P_DATA_TF, A_ABORT]),
        (UNASKED_RELEASE, [A_ASSOCIATE_RQ, P_DATA_TF, rawpeer.A_RELEASE_RP]),
    ],
    ids=[
        "success releases", "a failing status releases", "rejected: nothing", "aborted: nothing",
        "aborted in the echo: nothing", "not supported aborts", "no context aborts", "nonsense aborts",
        "silence aborts", "silence in the echo aborts", "a wrong answer aborts", "their release is answered",
    ],
)  # fmt: skip
def test_how_we_leave_an_association(played: Script, sent: list[int]) -> None:
    with RawPeer(played) as peer:
        echo.probe(peer.address, message_id=1, timeout=0.5)
        conversation = peer.conversation()
    assert conversation.types == sent
    if sent[-1] == A_ABORT:
        assert bytes(conversation.raw).endswith(rawpeer.abort(0, 0))


def test_an_abort_instead_of_a_release_is_not_waited_for(capsys: Capsys) -> None:
    with RawPeer(script()[:4]) as peer:
        assert run_main(capsys, "--abort", peer.address, "-id", 1) == (0, "✅ Success\n", "")
        result = echo.probe(peer.address, message_id=1, abort=True)
        conversations = [peer.conversation(0), peer.conversation(1)]
    assert (result.ok, result.notes) == (True, ())
    assert result.timings[Phase.release] < 0.9
    for conversation in conversations:
        assert conversation.types == [A_ASSOCIATE_RQ, P_DATA_TF, A_ABORT]
        assert bytes(conversation.raw).endswith(rawpeer.abort(0, 0))
