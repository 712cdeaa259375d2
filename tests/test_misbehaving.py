"""Every kind of failure, as the command prints it and as Python raises it; peers that close, reset or talk nonsense."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import socket
import ssl
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple

import pytest
import rawpeer
from inprocess import leave, raw, run, run_raw
from rawpeer import (
    A_ABORT,
    A_ASSOCIATE_RQ,
    A_RELEASE_RQ,
    P_DATA_TF,
    Close,
    Endpoint,
    Expect,
    RawPeer,
    Reset,
    Script,
    Send,
    script,
)

import dicom_echo as echo
from dicom_echo import (
    Aborted,
    AddressError,
    ConnectionLost,
    EchoError,
    NotSupported,
    Options,
    Phase,
    ProtocolError,
    Rejected,
    TimedOut,
    TLSFailed,
    Unreachable,
)

ASSOCIATING = "   while associating with ANY-SCP@HOST:PORT as ECHOSCU"
ECHOING = "   while echoing ANY-SCP@HOST:PORT as ECHOSCU"
HINT_LOST = (
    "   hint: a port that speaks TLS only (try --tls), a peer that admits only known addresses, "
    "or a load balancer with no server behind it"
)
HINT_DROPPED = "   hint: the peer accepted the association and then dropped it: its log may say why"
HINT_NOT_DICOM = "   hint: this is not a DICOM port"

ACCEPTED = rawpeer.GOOD_ACCEPT


def insecure() -> ssl.SSLContext:
    """TLS without verification, as -k has it."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class Row(NamedTuple):
    """A row of the contract's error table, as it is met."""

    where: Callable[[], AbstractContextManager[Endpoint]]
    error: type[EchoError]
    builtin: type[Exception]
    kind: str
    phase: Phase
    facts: dict[str, object]
    code: int
    lines: list[str]
    tls: bool = False

    @property
    def text(self) -> str:
        return "\n".join(self.lines) + "\n"

    @property
    def limit(self) -> float:
        return 0.3 if self.error is TimedOut else 10

    @property
    def arguments(self) -> list[str]:
        return ["-t", str(self.limit), *(["--tls", "-k"] if self.tls else [])]

    @property
    def options(self) -> Options:
        return Options(timeout=self.limit, tls=insecure() if self.tls else None)


def of(played: Script) -> Callable[[], AbstractContextManager[Endpoint]]:
    return functools.partial(raw, played)


ROWS = {
    "refused": Row(
        rawpeer.closed_port,
        Unreachable, ConnectionError, "unreachable", Phase.connect, {"errno": errno.ECONNREFUSED}, 3,
        [
            "❌ Unreachable: connection refused",
            "   while connecting to HOST:PORT",
            "   hint: the host is up, but nothing listens on this port; "
            "usual DICOM ports: 104, 11112, 4242, 2762 (TLS)",
        ],
    ),
    "closed while associating": Row(
        of(script(accept=Close())), ConnectionLost, ConnectionError, "lost", Phase.associate, {}, 3,
        ["❌ Connection lost: closed by the peer without an answer", ASSOCIATING, HINT_LOST],
    ),
    "reset while associating": Row(
        of(script(accept=Reset())), ConnectionLost, ConnectionError, "lost", Phase.associate, {}, 3,
        ["❌ Connection lost: reset by the peer", f"{ASSOCIATING}: connection reset by peer", HINT_LOST],
    ),
    "closed while echoing": Row(
        of(script(echo=Close())), ConnectionLost, ConnectionError, "lost", Phase.echo, {}, 3,
        ["❌ Connection lost: closed by the peer without an answer", ECHOING, HINT_DROPPED],
    ),
    "reset while echoing": Row(
        of(script(echo=Reset())), ConnectionLost, ConnectionError, "lost", Phase.echo, {}, 3,
        ["❌ Connection lost: reset by the peer", f"{ECHOING}: connection reset by peer", HINT_DROPPED],
    ),
    "closed after three bytes": Row(
        of((Expect(A_ASSOCIATE_RQ), Send(ACCEPTED[:3]), Close())),
        ConnectionLost, ConnectionError, "lost", Phase.associate, {}, 3,
        ["❌ Connection lost: closed by the peer in the middle of an answer", ASSOCIATING, HINT_LOST],
    ),
    "closed within the acceptance": Row(
        of((Expect(A_ASSOCIATE_RQ), Send(ACCEPTED[:-1]), Close())),
        ConnectionLost, ConnectionError, "lost", Phase.associate, {}, 3,
        ["❌ Connection lost: closed by the peer in the middle of an answer", ASSOCIATING, HINT_LOST],
    ),
    "closed within the answer": Row(
        of((Expect(A_ASSOCIATE_RQ), Send(ACCEPTED), Expect(P_DATA_TF), Send(rawpeer.GOOD_ECHO[:-1]), Close())),
        ConnectionLost, ConnectionError, "lost", Phase.echo, {}, 3,
        ["❌ Connection lost: closed by the peer in the middle of an answer", ECHOING, HINT_DROPPED],
    ),
    "silent while connecting": Row(
        rawpeer.full_listener, TimedOut, TimeoutError, "timeout", Phase.connect, {"timeout": 0.3}, 3,
        [
            "❌ Timed out: no answer within 0.3 s",
            "   while connecting to HOST:PORT",
            "   hint: the host is down, the address is wrong, or a firewall drops packets "
            "(a closed port would have refused at once)",
        ],
    ),
    "silent in TLS": Row(
        rawpeer.silent_listener, TimedOut, ConnectionError, "timeout", Phase.tls, {"timeout": 0.3}, 3,
        [
            "❌ Timed out: no answer within 0.3 s",
            "   while negotiating TLS with HOST:PORT",
            "   hint: the port is open but does not answer the TLS handshake: does it speak TLS? try without --tls",
        ],
        tls=True,
    ),
    "silent while associating": Row(
        rawpeer.silent_listener, TimedOut, TimeoutError, "timeout", Phase.associate, {"timeout": 0.3}, 3,
        [
            "❌ Timed out: no answer within 0.3 s",
            ASSOCIATING,
            "   hint: the port is open but nothing answers: the peer hangs or is overloaded, "
            "or it is not a DICOM port, or it waits for TLS (try --tls)",
        ],
    ),
    "silent while echoing": Row(
        of(script(echo=None)), TimedOut, TimeoutError, "timeout", Phase.echo, {"timeout": 0.3}, 3,
        [
            "❌ Timed out: no answer within 0.3 s",
            ECHOING,
            "   hint: the peer accepted the association but does not answer the echo: it hangs or is overloaded",
        ],
    ),
    "rejected": Row(
        of(script(accept=rawpeer.associate_rj(1, 1, 7))),
        Rejected, ValueError, "rejected", Phase.associate, {"result": 1, "source": 1, "reason": 7}, 1,
        [
            "❌ Rejected: called AE title not recognized",
            f"{ASSOCIATING}: rejected-permanent, service-user, reason 7",
            '   hint: the peer does not answer to "ANY-SCP"; use the AE title that is configured on it: '
            "AE@HOST:PORT or -aec AE (upper and lower case count)",
        ],
    ),
    "not supported": Row(
        of(script(accept=rawpeer.associate_ac([(1, 3, None)]))),
        NotSupported, ConnectionError, "not-supported", Phase.associate, {"result": 3}, 1,
        [
            "❌ Not supported: abstract syntax not supported",
            f"{ASSOCIATING}: presentation context result 3",
            "   hint: the peer knows the AE title but does not offer Verification to us",
        ],
    ),
    "aborted while associating": Row(
        of(script(accept=rawpeer.abort(0, 0))),
        Aborted, ConnectionError, "aborted", Phase.associate, {"source": 0, "reason": 0}, 1,
        [
            "❌ Aborted: no reason given",
            f"{ASSOCIATING}: service-user",
            "   hint: some peers abort instead of rejecting: "
            "check both AE titles, and whether the peer admits this host",
        ],
    ),
    "aborted while echoing": Row(
        of(script(echo=rawpeer.abort(2, 1))),
        Aborted, ConnectionError, "aborted", Phase.echo, {"source": 2, "reason": 1}, 1,
        ["❌ Aborted: unrecognized PDU", f"{ECHOING}: service-provider, reason 1"],
    ),
    "another protocol": Row(
        of(script(accept=b"SSH-2.0-OpenSSH_9.9\r\n")),
        ProtocolError, ConnectionError, "protocol", Phase.associate, {"received": b"SSH-2.0-OpenSSH_".hex()}, 1,
        ["❌ Protocol error: the answer is SSH, not DICOM", ASSOCIATING, HINT_NOT_DICOM],
    ),
    "three bytes of something else": Row(
        of((Expect(A_ASSOCIATE_RQ), Send(b"xyz"), Close())),
        ProtocolError, ConnectionError, "protocol", Phase.associate, {"received": b"xyz".hex()}, 1,
        ["❌ Protocol error: the answer is not DICOM", ASSOCIATING, HINT_NOT_DICOM],
    ),
    "no context": Row(
        of(script(accept=rawpeer.associate_ac([]))),
        ProtocolError, ConnectionError, "protocol", Phase.associate, {}, 1,
        ["❌ Protocol error: the peer accepts, but says nothing of presentation context 1", ASSOCIATING],
    ),
    "another context": Row(
        of(script(accept=rawpeer.associate_ac([(3, 0, rawpeer.IMPLICIT_VR_LITTLE_ENDIAN)]))),
        ProtocolError, ConnectionError, "protocol", Phase.associate, {}, 1,
        ["❌ Protocol error: the peer accepts, but says nothing of presentation context 1", ASSOCIATING],
    ),
    "wrong message id": Row(
        of(script(echo=rawpeer.echo_rsp(2))),
        ProtocolError, ConnectionError, "protocol", Phase.echo, {}, 1,
        ["❌ Protocol error: the answer is to message id 2, not 1", ECHOING],
    ),
    "wrong command": Row(
        of(script(echo=rawpeer.command_pdu(rawpeer.echo_rsp_command(command_field=0x8020)))),
        ProtocolError, ConnectionError, "protocol", Phase.echo, {}, 1,
        ["❌ Protocol error: command 8020H where C-ECHO-RSP (8030H) is due", ECHOING],
    ),
    "no status": Row(
        of(script(echo=rawpeer.command_pdu(rawpeer.echo_rsp_command(omit=[rawpeer.STATUS])))),
        ProtocolError, ConnectionError, "protocol", Phase.echo, {}, 1,
        ["❌ Protocol error: the C-ECHO-RSP holds no status", ECHOING],
    ),
    "answer in another context": Row(
        of(script(echo=rawpeer.echo_rsp(1, context_id=3))),
        ProtocolError, ConnectionError, "protocol", Phase.echo, {}, 1,
        ["❌ Protocol error: the answer is in presentation context 3, not 1", ECHOING],
    ),
    "data set": Row(
        of(script(echo=rawpeer.p_data([(1, rawpeer.LAST, b"data")]))),
        ProtocolError, ConnectionError, "protocol", Phase.echo, {}, 1,
        ["❌ Protocol error: a data set where the command set of the C-ECHO-RSP is due", ECHOING],
    ),
    "endless command": Row(
        of(script(echo=rawpeer.p_data([(1, rawpeer.COMMAND, bytes(33000))]) * 2)),
        ProtocolError, ConnectionError, "protocol", Phase.echo, {}, 1,
        ["❌ Protocol error: a command set of more than 65536 bytes", ECHOING],
    ),
}  # fmt: skip

every_row = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)


@every_row
def test_the_command_says_exactly_what_happened(row: Row, capsys: pytest.CaptureFixture[str]) -> None:
    with row.where() as endpoint:
        ran = run(capsys, endpoint, *row.arguments)
    assert (ran.out, ran.err, ran.code) == (row.text, "", row.code)


@every_row
def test_quiet_prints_nothing_and_leaves_the_code(row: Row, capsys: pytest.CaptureFixture[str]) -> None:
    with row.where() as endpoint:
        ran = run(capsys, endpoint, "-q", *row.arguments)
    assert (ran.out, ran.err, ran.code) == ("", "", row.code)


@every_row
def test_probe_tells_kind_phase_and_facts(row: Row) -> None:
    with row.where() as endpoint:
        result = echo.probe(endpoint.address, message_id=1, **row.options)
    error = result.error
    assert (type(error), result.kind, result.ok, result.status) == (row.error, row.kind, False, None)
    assert error is not None
    assert (error.kind, error.phase, error.facts) == (row.kind, row.phase, row.facts)
    assert {name: getattr(error, name) for name in row.facts} == row.facts
    assert list(result.timings)[-1] == row.phase


@every_row
def test_send_raises_what_the_contract_says(row: Row) -> None:
    with row.where() as endpoint, pytest.raises(row.builtin) as caught:
        echo.send(endpoint.address, message_id=1, **row.options)
    assert type(caught.value) is row.error
    assert isinstance(caught.value, EchoError)
    assert isinstance(caught.value, ValueError) == (row.error is Rejected)
    assert isinstance(caught.value, ConnectionError) == (row.error is not Rejected)
    assert isinstance(caught.value, TimeoutError) == (row.error is TimedOut)


@every_row
def test_json_holds_the_same(row: Row, capsys: pytest.CaptureFixture[str]) -> None:
    with row.where() as endpoint:
        ran = run(capsys, endpoint, "--format", "json", *row.arguments)
    shown = json.loads(ran.out)
    error = shown["error"]
    headline, *_ = row.lines
    hints = [line for line in row.lines if line.startswith("   hint: ")]
    assert (shown["ok"], shown["status"], shown["status_text"]) == (False, None, None)
    assert (error["kind"], error["phase"]) == (row.kind, row.phase.value)
    assert f"❌ {row.error.title}: {error['message']}" == headline
    assert ([f"   hint: {error['hint']}"] if error["hint"] else []) == hints
    assert {name: error[name] for name in error if name not in ("kind", "phase", "message", "hint", "detail")} == (
        row.facts
    )
    assert (ran.out.count("\n"), ran.err, ran.code) == (1, "", row.code)


def test_a_name_that_does_not_resolve(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def no_such_name(*_: object, **__: object) -> None:  # in place of the resolver, which would ask a name server
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_such_name)
    assert leave(capsys, "nobody.invalid") == (
        3,
        "❌ Unreachable: name not resolved\n"
        "   while resolving nobody.invalid: name or service not known\n"
        "   hint: check the spelling and the name server\n",
        "",
    )


def test_an_address_of_the_other_family(capsys: pytest.CaptureFixture[str]) -> None:
    assert leave(capsys, "-6", "127.0.0.1") == (
        3,
        "❌ Unreachable: the host is an address of the other family\n"
        "   while resolving 127.0.0.1\n"
        "   hint: leave out -4, -6, --source\n",
        "",
    )


@pytest.mark.parametrize("answer", [ACCEPTED, b"HTTP/1.1 400 Bad Request\r\n\r\n", rawpeer.abort()])
def test_tls_with_a_port_that_does_not_speak_it(answer: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    with raw((rawpeer.ReceiveSome(), Send(answer))) as endpoint:
        ran = run(capsys, endpoint, "--tls", "-k")
        error = echo.probe(endpoint.address, tls=insecure()).error
    assert isinstance(error, TLSFailed)
    assert (error.kind, error.phase, error.facts) == ("tls", Phase.tls, {})
    assert isinstance(error, ConnectionError)
    assert ran.out == (
        "❌ TLS failed: the peer does not speak TLS\n"
        f"   while negotiating TLS with HOST:PORT: {error.detail}\n"
        "   hint: the port does not speak TLS: drop --tls\n"
    )
    assert (ran.err, ran.code) == ("", 3)


@pytest.mark.parametrize("end", [Close(), Reset()], ids=["closes", "resets"])
def test_a_peer_that_hangs_up_in_the_handshake(end: Close | Reset, capsys: pytest.CaptureFixture[str]) -> None:
    with raw((rawpeer.ReceiveSome(), end)) as endpoint:
        ran = run(capsys, endpoint, "--tls", "-k")
        error = echo.probe(endpoint.address, tls=insecure()).error
    assert isinstance(error, TLSFailed)
    assert ran.out == (
        "❌ TLS failed: closed during the handshake\n"
        f"   while negotiating TLS with HOST:PORT: {error.detail}\n"
        "   hint: does the port speak TLS? try without --tls\n"
    )
    assert (ran.err, ran.code) == ("", 3)


# --- The caller's own mistakes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (
            ["127.0.0.1:70000"],
            "argument HOST: the port 70000 is not in the range 1-65535; expected [AE-TITLE@]HOST[:PORT]",
        ),
        (
            ["@127.0.0.1"],
            "argument HOST: the AE title is empty; expected [AE-TITLE@]HOST[:PORT]",
        ),
        (
            ["-id", "65536", "127.0.0.1"],
            "argument -id/--id/--message-id: '65536' is not a whole number of at least 0 and at most 65535",
        ),
        (
            ["-aec", "MORE-THAN-SIXTEEN", "127.0.0.1"],
            'argument -aec/--called/--called-ae-title: the AE title "MORE-THAN-SIXTEEN" has 17 characters, '
            "16 are allowed",
        ),
    ],
)  # fmt: skip
def test_a_wrong_command_line_is_one_line_on_stderr(
    arguments: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = leave(capsys, *arguments)
    assert (code, out, err) == (2, "", f"dicom-echo: {why} (see dicom-echo --help)\n")


@pytest.mark.parametrize(
    ("titles", "message_id", "why"),
    [
        (("X", "Y"), 65536, "the message id must be in the range 0-65535, not 65536"),
        (("X", "Y"), -1, "the message id must be in the range 0-65535, not -1"),
        ((" ", "Y"), 1, "the AE title is empty"),
        (("X", "A\\B"), 1, r"the AE title 'A\\B' holds a backslash, a control character or one outside of ASCII"),
    ],
)
def test_the_callers_mistake_is_raised_before_anything_is_sent(
    titles: tuple[str, str], message_id: int, why: str
) -> None:
    with RawPeer() as peer:
        for verb in (echo.send, echo.probe):
            with pytest.raises(AddressError) as caught:
                verb(peer.address, *titles, message_id)
            error = caught.value
            assert isinstance(error, ValueError)
            assert (str(error), error.kind, error.phase, error.hint) == (why, "address", None, "")
            assert not isinstance(error, ConnectionError)
        assert echo.send(peer.address) == 0
    assert len(peer.received) == 1, "only the good echo came"


# --- After the answer ------------------------------------------------------------------------------------------------

JUNK = b"\r\n\r\nHELLO"


@pytest.mark.parametrize(
    ("release", "note"),
    [
        (Close(), "connection lost: closed by the peer without an answer"),
        (Reset(), "connection lost: reset by the peer"),
        (rawpeer.abort(0, 0), "aborted: no reason given"),
        (rawpeer.abort(2, 2), "aborted: unexpected PDU"),
        (JUNK, "protocol error: the answer is not DICOM"),
        (ACCEPTED, "protocol error: A-ASSOCIATE-AC where A-RELEASE-RP is due"),
        (rawpeer.pdu(6, b"", 0xFFFFFFFF), "protocol error: A-RELEASE-RP with an impossible length of 4294967295 bytes"),
    ],
    ids=["closes", "resets", "aborts", "aborts with a reason", "junk", "another acceptance", "4 GB"],
)
def test_trouble_after_success_is_a_note(
    release: bytes | Close | Reset, note: str, capsys: pytest.CaptureFixture[str]
) -> None:
    note = f"after the answer, while releasing: {note}"
    with raw(script(release=release)) as endpoint:
        plain = run(capsys, endpoint)
        verbose = run(capsys, endpoint, "-v")
        shown = json.loads(run(capsys, endpoint, "--format", "json").out)
        result = echo.probe(endpoint.address, message_id=1)
    assert plain[:3] == (0, "✅ Success\n", "")
    assert verbose.out.endswith(f"\n   note      {note}\n")
    assert (shown["ok"], shown["error"], shown["notes"]) == (True, None, [note])
    assert (result.ok, result.kind, result.error, result.notes) == (True, "ok", None, (note,))
    assert list(result.timings)[-1] == Phase.release


@pytest.mark.parametrize(
    "release",
    [rawpeer.release_rq(), rawpeer.GOOD_ECHO + rawpeer.release_rp(), rawpeer.release_rq() + rawpeer.release_rp()],
    ids=["both ask at once", "late data", "collision, then the answer"],
)
def test_what_may_cross_our_release_is_no_trouble(release: bytes) -> None:
    with RawPeer(script(release=release)) as peer:
        result = echo.probe(peer.address, message_id=1)
    assert (result.ok, result.notes) == (True, ())


def test_trouble_after_a_failing_status_does_not_hide_it(capsys: pytest.CaptureFixture[str]) -> None:
    ran = run_raw(capsys, script(echo=rawpeer.echo_rsp(1, 0x0210), release=Reset()))
    headline, note = ran.out.splitlines()
    assert headline == "⚠️ Warning: received non-zero status code: 528 (0210H, duplicate invocation)"
    assert note.startswith("   note      after the answer, while releasing: connection lost: reset by the peer")
    assert (ran.code, ran.err) == (1, "")


# --- How we leave ----------------------------------------------------------------------------------------------------

OUR_ABORT = rawpeer.abort(0, 0)


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
        (script(echo=rawpeer.release_rq()), [A_ASSOCIATE_RQ, P_DATA_TF, A_ABORT]),
    ],
    ids=[
        "success releases", "a failing status releases", "rejected: nothing", "aborted: nothing",
        "aborted in the echo: nothing", "not supported aborts", "no context aborts", "nonsense aborts",
        "silence aborts", "silence in the echo aborts", "a wrong answer aborts", "their release aborts",
    ],
)  # fmt: skip
def test_how_we_leave_an_association(played: Script, sent: list[int]) -> None:
    with RawPeer(played) as peer:
        echo.probe(peer.address, message_id=1, timeout=0.5)
        conversation = peer.conversation()
    assert conversation.types == sent
    if sent[-1] == A_ABORT:
        assert bytes(conversation.raw).endswith(OUR_ABORT)


def test_abort_leaves_with_an_abort_instead_of_a_release(capsys: pytest.CaptureFixture[str]) -> None:
    with RawPeer() as peer:
        ran = run(capsys, peer.endpoint, "--abort")
        result = echo.probe(peer.address, message_id=1, abort=True)
        conversations = [peer.conversation(0), peer.conversation(1)]
    assert ran[:3] == (0, "✅ Success\n", "")
    assert (result.ok, result.notes) == (True, ())
    for conversation in conversations:
        assert conversation.types == [A_ASSOCIATE_RQ, P_DATA_TF, A_ABORT]
        assert bytes(conversation.raw).endswith(OUR_ABORT)


def test_several_peers_leave_with_the_highest_code(capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.ExitStack() as stack:
        good = stack.enter_context(RawPeer()).address
        refuses = stack.enter_context(raw(script(accept=rawpeer.associate_rj(1, 1, 7)))).address
        closed = stack.enter_context(rawpeer.closed_port()).address
        assert leave(capsys, "-q", good, good) == (0, "", "")
        assert leave(capsys, "-q", refuses, good) == (1, "", "")
        assert leave(capsys, "-q", closed, refuses, good) == (3, "", "")
