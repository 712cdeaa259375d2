"""`--listen`: another end to echo, which shows what a caller really sends, and survives whatever that is."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import random
import re
import shutil
import signal
import socket
import ssl
import struct
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import trustme
from command import PATIENCE, Outcome, command_line, environment, run_main, run_process, start_process
from leaks import nothing_left_behind
from peers import TlsFiles, client_context, free_port
from rawpeer import (
    A_ASSOCIATE_RQ,
    APPLICATION_CONTEXT,
    C_ECHO_RQ,
    COMMAND,
    IMPLICIT_VR_LITTLE_ENDIAN,
    VERIFICATION,
    Endpoint,
    abort,
    associate_rj,
    command_pdu,
    echo_rsp_command,
    fragments,
    item,
    p_data,
    pdu,
    release_rp,
    release_rq,
    user_information,
)

import dicom_echo
from dicom_echo import _Visit

Capsys = pytest.CaptureFixture[str]
C_STORE_RQ = 0x0001
NOTHING_RUST = "the Rust package's dicom-echo (pip install dicom-echo==0.3.0) is not in the folder DICOM_ECHO_RUST"


# --- Listeners -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OtherEnd(Endpoint):
    """Another end in this process, without the command around it."""

    visits: queue.SimpleQueue[_Visit] = field(default_factory=queue.SimpleQueue)

    def next_visit(self) -> _Visit:
        return self.visits.get(timeout=PATIENCE)


@contextlib.contextmanager
def other_end(called: str | None = None, calling: str | None = None) -> Iterator[OtherEnd]:
    with dicom_echo._listen([("127.0.0.1", 0)], called, calling) as listening:
        end = OtherEnd("127.0.0.1", dicom_echo.parse_address(listening.addresses[0]).port or 0)
        thread = threading.Thread(target=lambda: deque(map(end.visits.put, listening.visits()), maxlen=0))
        thread.start()
        try:
            yield end
        finally:
            listening.end()
            thread.join()


@pytest.fixture(scope="module")
def end() -> Iterator[OtherEnd]:
    """One that admits every title."""
    with other_end() as end:
        yield end
        assert dicom_echo.probe(end.address).ok, "it no longer answers"


@dataclass(frozen=True)
class Command(Endpoint):
    """`main(["--listen", …])` in a thread of this process."""

    outcome: list[Any] = field(default_factory=list)  # once it has ended: its exit code, output and errors


@contextlib.contextmanager
def listening_here(capsys: Capsys, *options: object, where: str = "127.0.0.1:{port}") -> Iterator[Command]:
    """Start one; the block makes it end."""
    command = Command("127.0.0.1", free_port())
    arguments = ["--listen", where.format(port=command.port), *map(str, options)]
    thread = threading.Thread(target=lambda: command.outcome.append(dicom_echo.main(arguments)), daemon=True)
    thread.start()
    deadline, first = time.monotonic() + PATIENCE, ""
    while "listening on" not in first:
        assert thread.is_alive(), first
        assert time.monotonic() < deadline
        time.sleep(0.01)
        first += capsys.readouterr().err
    yield command
    thread.join(PATIENCE)
    out, err = capsys.readouterr()
    command.outcome.extend([out, first + err])


@dataclass(frozen=True)
class Listener(Endpoint):
    """`dicom-echo --listen` in a process of its own."""

    process: Any = None
    first: str = ""

    def end(self, number: int, after: int = 0) -> Outcome:
        """End it by a signal after so many lines."""
        lines = [self.process.stdout.readline() for _ in range(after)]
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=PATIENCE)
        return Outcome(self.process.returncode, "".join(lines) + out, self.first + err)


@contextlib.contextmanager
def listening(*options: object) -> Iterator[Listener]:
    """Start one, on another port if somebody else has just taken the first."""
    for _ in range(3):
        port = free_port()
        with start_process(command_line("--listen", port, *options)) as process:
            assert process.stderr is not None
            first = process.stderr.readline()
            if "address already in use" not in first.lower():
                assert "listening on" in first, first + process.stderr.read()
                yield Listener("127.0.0.1", port, process=process, first=first)
                return
    pytest.fail("no free port")


# --- Callers ---------------------------------------------------------------------------------------------------------


def associate_rq(
    called: str = "ANY-SCP",
    calling: str = "CALLER",
    *,
    contexts: Sequence[tuple[int, str, str]] = ((1, VERIFICATION, IMPLICIT_VR_LITTLE_ENDIAN),),
    version_name: str | None = "RAWCALLER",
) -> bytes:
    """An A-ASSOCIATE-RQ (PS3.8 9.3.2)."""
    titles = called.encode("latin-1").ljust(16) + calling.encode("latin-1").ljust(16)
    items = item(0x10, APPLICATION_CONTEXT.encode())
    for number, sop_class, syntax in contexts:
        inner = item(0x30, sop_class.encode()) + item(0x40, syntax.encode())
        items += item(0x20, struct.pack(">B3x", number) + inner)
    user = user_information(version_name=version_name)
    return pdu(A_ASSOCIATE_RQ, struct.pack(">H2x", 1) + titles + bytes(32) + items + user)


def echo_rq(command_field: int = C_ECHO_RQ) -> bytes:
    """A C-ECHO-RQ, or another command with the same elements, in one P-DATA-TF."""
    return command_pdu(echo_rsp_command(command_field=command_field, replace={0x0110: b"\1\0"}, omit=(0x0120, 0x0900)))


def connect(endpoint: Endpoint) -> socket.socket:
    return socket.create_connection((endpoint.host, endpoint.port), timeout=PATIENCE)


def exchange(sock: socket.socket, request: bytes) -> bytes:
    """Send a request and read its answer, a PDU."""
    sock.sendall(request)
    answer = b""
    while len(answer) < 6 or len(answer) < 6 + int.from_bytes(answer[2:6], "big"):
        part = sock.recv(4096)
        assert part, f"closed after {answer!r}"
        answer += part
    return answer


def rust_package() -> str:
    """The command of the package that this one stands in for."""
    path = shutil.which("dicom-echo", path=os.environ.get("DICOM_ECHO_RUST", ""))
    if path is None and os.environ.get("DICOM_ECHO_REQUIRE_PEERS") == "1":
        pytest.fail(NOTHING_RUST)
    if path is None:
        pytest.skip(NOTHING_RUST)
    return path


def command_of(caller: str, request: pytest.FixtureRequest) -> list[str]:
    """The command with which another program echoes 127.0.0.1."""
    if caller == "dcmtk":
        return [request.getfixturevalue("echoscu"), "-aet", "CALLER", "-aec", "ANY-SCP", "127.0.0.1", "{port}"]
    if caller == "pynetdicom":
        return [sys.executable, "-m", "pynetdicom", "echoscu", "-aet", "CALLER", "127.0.0.1", "{port}"]
    return [rust_package(), "-aet", "CALLER", "127.0.0.1:{port}"]


# --- Good callers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("caller", "version", "end"),
    [
        ("dcmtk", "OFFIS_DCMTK_", "released"),
        ("pynetdicom", "PYNETDICOM_", "released"),
        ("rust", "DICOM-rs ", "closed by the caller"),
    ],
)
def test_answers_a_caller_and_tells_who_it_is(
    capsys: Capsys, caller: str, version: str, end: str, request: pytest.FixtureRequest
) -> None:
    words = command_of(caller, request)
    variables = {**environment(), "PYTHONPATH": ""} if caller == "rust" else None  # its module has the name of ours
    with listening_here(capsys, "-c", 1, "-t", PATIENCE) as command:
        called = run_process([word.format(port=command.port) for word in words], variables)
    code, out, err = command.outcome
    assert called.code == 0
    visit, totals = out.splitlines()
    assert f'"CALLER" calls "ANY-SCP" ({version}' in visit
    assert "proposes Verification (" in visit
    assert visit.endswith(f"; 1 echo answered; {end}")
    assert totals == "connections: 1, associations: 1, rejected: 0, echoes: 1"
    assert (code, err) == (0, f"dicom-echo: listening on 127.0.0.1:{command.port}\n")


def test_listens_on_both_loopback_addresses_and_on_no_other(capsys: Capsys, ipv6: str) -> None:
    with listening_here(capsys, "-c", 2, where="{port}") as command:
        if sys.platform == "linux":  # which answers to all of 127.0.0.0/8
            with socket.socket() as sock:
                assert sock.connect_ex(("127.0.0.2", command.port)) != 0
        for host in (f"[{ipv6}]", "127.0.0.1"):
            assert dicom_echo.probe(f"{host}:{command.port}").ok
    code, out, err = command.outcome
    assert (code, f"[{ipv6}]:" in out) == (0, True)
    assert err == f"dicom-echo: listening on 127.0.0.1:{command.port} and [{ipv6}]:{command.port}\n"


def test_answers_every_request_of_a_caller_that_does_not_wait_for_answers(end: OtherEnd) -> None:
    with connect(end) as sock:
        exchange(sock, associate_rq())
        left = len(exchange(sock, echo_rq())) * 2000
        sock.sendall(echo_rq() * 2000)
        while left and (part := sock.recv(left)):
            left -= len(part)
        assert exchange(sock, release_rq()) == release_rp()
    visit = end.next_visit()
    assert (visit.echoes, visit.end) == (2001, "released")


@pytest.mark.parametrize(
    ("form", "totals"),
    [
        ("text", "connections: 0, associations: 0, rejected: 0, echoes: 0\n"),
        ("json", '{"schema_version": 1, "type": "association_summary", "connections": 0, "associations": 0, '
         '"rejected": 0, "echoes": 0}\n'),
    ],
)  # fmt: skip
def test_nobody_called(capsys: Capsys, form: str, totals: str) -> None:
    with listening_here(capsys, "-t", 0.2, "--format", form) as command:
        pass
    code, out, err = command.outcome
    assert (code, out) == (3, totals)
    assert err.splitlines()[1:] == ["dicom-echo: nobody called within 0.2 s"]


def test_the_time_limit_is_for_the_first_echo_only(capsys: Capsys) -> None:
    with listening_here(capsys, "-t", 1.5, "-c", 2) as command:
        assert dicom_echo.probe(command.address).ok
        time.sleep(1.7)
        assert dicom_echo.probe(command.address).ok
    code, out, _ = command.outcome
    assert code == 0
    assert out.endswith("connections: 2, associations: 2, rejected: 0, echoes: 2\n")


def test_a_port_that_is_taken(capsys: Capsys, end: OtherEnd) -> None:
    code, out, err = run_main(capsys, "--listen", end.host_port)
    assert (code, out) == (2, "")
    assert f"cannot listen on {end.host_port}: " in err


def test_options_that_make_no_sense(capsys: Capsys) -> None:
    for options in (
        ["0"], ["70000"], ["X@127.0.0.1:104"], ["127.0.0.1"], [""], ["11112", "HOST"], ["11112", "--cert", "x.pem"],
        ["11112", "--tls"], ["11112", "--self-test"], ["11112", "--format", "prometheus"], ["11112", "--wait", "3"],
    ):  # fmt: skip
        code, out, err = run_main(capsys, "-t", 0.1, "--listen", *options)
        assert (options, code, out, err[:12]) == (options, 2, "", "dicom-echo: ")


# --- Titles ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("called", "calling", "reason", "admits"),
    [
        ("PACS", "CT1", 7, "-aec PACS"),
        ("STORE", "CT 2", 3, "-aet 'CT 2'"),
        ("$(x)", "CT2", 7, "-aec '$(x)' -aet CT2"),
        ("store", "CT1", 7, "-aec store"),
        ("STORE", "CT1", None, ""),
    ],
)
def test_a_wrong_title_is_rejected_and_what_would_admit_it_is_told(
    called: str, calling: str, reason: int | None, admits: str
) -> None:
    with other_end("STORE", "CT1") as strict, connect(strict) as sock:
        answer = exchange(sock, associate_rq(called, calling))
        if reason:
            assert answer == associate_rj(1, 1, reason)
        else:
            assert exchange(sock, release_rq()) == release_rp()
        visit = strict.next_visit()
    assert (visit.called, visit.calling, visit.rejected) == (called, calling, reason)
    assert visit.hint == (f'let the caller call "STORE" as "CT1", or listen with {admits}' if reason else "")


# --- What callers send -----------------------------------------------------------------------------------------------

FRAGMENT = p_data([(1, COMMAND, bytes(1000))])
ODD_CALLERS = {
    "HTTP": ([b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"], "received GET / , expected A-ASSOCIATE-RQ"),
    "TLS": ([b"\x16\x03\x01\x02\x00\x01"], "the caller uses TLS"),
    "an answer": ([release_rp()], "received A-RELEASE-RP, expected A-ASSOCIATE-RQ"),
    "huge": ([b"\1\0\xff\xff\xff\xff"], "received A-ASSOCIATE-RQ of 4294967301 bytes, expected no more than 65536"),
    "an empty request": ([pdu(1, b"")], "malformed A-ASSOCIATE-RQ"),
    "a torn item": ([pdu(1, associate_rq()[6:-3])], "malformed A-ASSOCIATE-RQ"),
    "no title": ([associate_rq(called="")], "malformed A-ASSOCIATE-RQ"),
    "a short request": ([pdu(1, bytes(20))], "malformed A-ASSOCIATE-RQ"),
    "an even context": (
        [associate_rq(contexts=[(2, VERIFICATION, IMPLICIT_VR_LITTLE_ENDIAN)])],
        "malformed A-ASSOCIATE-RQ",
    ),
    "another protocol": ([associate_rq().replace(b"\0\1\0\0ANY", b"\0\2\0\0ANY")], "protocol version not supported"),
    "a data set": ([associate_rq(), echo_rq().replace(b"\1\3", b"\1\2", 1)], "received a message other than C-ECHO-RQ"),
    "a second request": ([associate_rq(), associate_rq()], "received A-ASSOCIATE-RQ, expected P-DATA-TF or A-RELEASE"),
    "another command": ([associate_rq(), echo_rq(C_STORE_RQ)], "received a message other than C-ECHO-RQ"),
    "a command without a field": ([associate_rq(), command_pdu(b"\0" * 16)], "received a message other than C-ECHO-RQ"),
    "a request without an ID": (
        [associate_rq(), command_pdu(echo_rsp_command(command_field=C_ECHO_RQ, omit=(0x0120, 0x0900)))],
        "received a message other than C-ECHO-RQ",
    ),
    "torn P-DATA-TF": ([associate_rq(), pdu(4, bytes(3))], "malformed P-DATA-TF"),
    "endless fragments": ([associate_rq(), FRAGMENT * 80], "expected no more than"),
    "a context never proposed": ([associate_rq(), echo_rq().replace(b"\1\3", b"\3\3")], "aborted by this end"),
    "abort": ([associate_rq(), abort()], "aborted by the caller"),
}


@pytest.mark.parametrize("case", ODD_CALLERS)
def test_an_odd_caller_is_told_apart(case: str, end: OtherEnd) -> None:
    pdus, how = ODD_CALLERS[case]
    with contextlib.suppress(ConnectionError), connect(end) as sock:  # what it does not read resets the connection
        for each in pdus:
            sock.sendall(each)
        while sock.recv(4096):
            pass
    visit = end.next_visit()
    assert how in visit.end
    assert visit.echoes == 0


def test_a_request_in_fragments_is_answered(end: OtherEnd) -> None:
    command = echo_rsp_command(command_field=C_ECHO_RQ, replace={0x0110: b"\1\0"}, omit=(0x0120, 0x0900))
    with connect(end) as sock:
        exchange(sock, associate_rq())
        *first, last = (p_data([each]) for each in fragments(command, 10))
        sock.sendall(b"".join(first))
        exchange(sock, last)
    assert end.next_visit().echoes == 1


def test_another_sop_class_is_refused(end: OtherEnd) -> None:
    ct = "1.2.840.10008.5.1.4.1.1.2"
    contexts = [(1, ct, IMPLICIT_VR_LITTLE_ENDIAN), (3, VERIFICATION, IMPLICIT_VR_LITTLE_ENDIAN)]
    with connect(end) as sock:
        accepted = exchange(sock, associate_rq(contexts=contexts))
        for context, result in ((1, 3), (3, 0)):
            syntax = item(0x40, IMPLICIT_VR_LITTLE_ENDIAN.encode())
            assert item(0x21, bytes([context, 0, result, 0]) + syntax) in accepted
    visit = end.next_visit()
    assert visit.proposed == [(ct, [IMPLICIT_VR_LITTLE_ENDIAN]), (VERIFICATION, [IMPLICIT_VR_LITTLE_ENDIAN])]
    assert visit.end == "closed by the caller"


# --- Bounds ----------------------------------------------------------------------------------------------------------

SLOW = "dropped: silent or slow for too long"


@pytest.mark.parametrize("start", [b"", associate_rq()[:60]])
def test_a_caller_that_never_calls_is_dropped(start: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicom_echo, "_CALL_SECONDS", 0.2)
    with other_end() as end, connect(end) as sock:
        sock.sendall(start)
        assert sock.recv(1) == b""
        assert end.next_visit().end == SLOW


def test_a_caller_that_calls_slowly_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicom_echo, "_CALL_SECONDS", 0.2)
    with other_end() as end, connect(end) as sock:
        with contextlib.suppress(ConnectionError):
            for byte in associate_rq()[:100]:
                sock.sendall(bytes([byte]))
                time.sleep(0.01)
        assert end.next_visit().end == SLOW


def test_an_idle_association_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicom_echo, "_IDLE_SECONDS", 0.3)
    with other_end() as end, connect(end) as sock:
        exchange(sock, associate_rq())
        exchange(sock, echo_rq())
        assert sock.recv(1) == b""
        visit = end.next_visit()
        assert (visit.echoes, visit.end) == (1, SLOW)


def test_with_too_many_callers_the_one_that_is_silent_longest_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicom_echo, "_MAX_CALLERS", 2)
    with other_end() as end, connect(end) as active, connect(end) as silent:
        exchange(active, associate_rq())
        exchange(active, echo_rq())
        assert end.visits.empty(), "there is room"
        with connect(end) as late:
            assert silent.recv(1) == b""
            visit = end.next_visit()
            assert (visit.port, visit.end) == (silent.getsockname()[1], "dropped: silent for longer than 2 others")
            exchange(late, associate_rq())
            exchange(active, echo_rq())


def test_nothing_is_left_behind() -> None:
    with nothing_left_behind(PATIENCE):
        with other_end() as end, connect(end) as sock:
            exchange(sock, associate_rq())
            connect(end).close()
        with pytest.raises(ConnectionRefusedError):
            connect(end)


def test_out_of_descriptors_the_silent_make_room() -> None:
    resource = pytest.importorskip("resource")
    if not hasattr(resource, "prlimit"):
        pytest.skip("the limits of another process cannot be set here")
    with listening() as listener, contextlib.ExitStack() as stack:
        resource.prlimit(listener.process.pid, resource.RLIMIT_NOFILE, (40, 40))
        for _ in range(100):
            stack.enter_context(connect(listener))
        assert all(dicom_echo.probe(listener.address, timeout=PATIENCE).ok for _ in range(5))
        _, out, err = listener.end(signal.SIGINT)
    assert "dropped: this host has too many open files" in out
    assert "connections: 105, associations: 5, rejected: 0, echoes: 5\n" in out
    assert err == listener.first


HOSTILE = [
    b"",
    associate_rq()[:50],
    random.Random(13).randbytes(200),
    b"GET / HTTP/1.1\r\n\r\n",
    b"\1\0\0\0\xff\xff" + bytes(8192),  # goes on for ever
    associate_rq(),  # and not a word more
    associate_rq() + FRAGMENT,
    associate_rq() + echo_rq() + echo_rq()[:20],
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    associate_rq() + b"\4\0\xff\xff\xff\xff" + bytes(1000),
]


def test_a_good_peer_is_answered_among_500_hostile_ones_and_a_signal_ends_all() -> None:
    with listening() as listener, contextlib.ExitStack() as stack, ThreadPoolExecutor(1) as pool:
        good = pool.submit(lambda: [dicom_echo.probe(listener.address, timeout=5) for _ in range(20)])
        hostile: list[socket.socket] = []
        for each in HOSTILE * 50:
            hostile.append(stack.enter_context(connect(listener)))
            with contextlib.suppress(OSError):
                hostile[-1].sendall(each)
                hostile[-1].setblocking(False)
            for endless in hostile[:: len(HOSTILE) // 2]:
                with contextlib.suppress(OSError):
                    endless.send(bytes(8192))
        results = [*good.result(), *(dicom_echo.probe(listener.address, timeout=5) for _ in range(5))]
        # It writes more than a pipe holds, so it is read from while it ends.
        code, out, err = listener.end(signal.SIGINT)
    assert [str(result.error) for result in results if not result.ok] == []
    assert (code, err) == (-signal.SIGINT, listener.first)
    lines = out.splitlines()
    assert lines[-1] == "connections: 525, associations: 225, rejected: 0, echoes: 75"
    assert len(lines) == 525 + 1
    assert sum(line.endswith("; 1 echo answered; still open") for line in lines) == 50
    assert sum("(DICOM_ECHO_" in line and "; 1 echo answered; " in line for line in lines) == len(results)


# --- TLS -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tls_options(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """With a certificate for the loopback addresses, and its key."""
    folder = tmp_path_factory.mktemp("listen")
    issued = authority.issue_cert("localhost", "127.0.0.1", "::1")
    issued.cert_chain_pems[0].write_to_path(str(folder / "cert.pem"))
    issued.private_key_pem.write_to_path(str(folder / "key.pem"))
    return ["--tls", "--cert", folder / "cert.pem", "--key", folder / "key.pem"]


def test_answers_dcmtk_over_tls_that_presents_a_certificate(
    capsys: Capsys, tls_options: list[object], tls_files: TlsFiles, echoscu: str
) -> None:
    with listening_here(capsys, *tls_options, "--cacert", tls_files.authority, "-c", 1, "-t", PATIENCE) as command:
        tls = ["+tls", str(tls_files.key), str(tls_files.certificate), "+cf", str(tls_files.authority)]
        called = run_process([echoscu, *tls, "127.0.0.1", str(command.port)])
    assert called == Outcome(0, "", "")
    code, out, _ = command.outcome
    assert (code, "; 1 echo answered; released\n" in out) == (0, True)


def test_tls_trouble_is_told(capsys: Capsys, tls_options: list[object], tls_files: TlsFiles) -> None:
    options = [*tls_options, "--cacert", tls_files.authority, "-c", 1, "-t", PATIENCE]
    with listening_here(capsys, *options) as command, connect(command):  # one that is silent does not stand in the way
        for tls in (None, client_context(tls_files), ssl.create_default_context()):
            assert not dicom_echo.probe(command.address, tls=tls).ok
        assert dicom_echo.probe(command.address, tls=client_context(tls_files, with_certificate=True)).ok
    _, out, err = command.outcome
    assert [line.partition(str(command.port))[2] for line in err.splitlines()] == [""], "only where it listens"
    told = [line.split(" ", 4)[4].partition(" (")[0] for line in out.splitlines()[:3]]
    assert told == [
        "TLS failed: the caller does not speak TLS",
        "TLS failed: handshake failed",
        "TLS failed: the caller does not trust our certificate",
    ]
    assert "(peer did not return a certificate)\n" in out
    assert ", TLSv1.3), proposes Verification (implicit, explicit); 1 echo answered; " in out


# --- Reports ---------------------------------------------------------------------------------------------------------

WHEN = datetime(2026, 11, 22, 9, 30, tzinfo=timezone.utc)
VISITS = [
    _Visit(
        WHEN, "192.0.2.9", 51514, called="ANY-SCP", calling="CT1", version_name="OFFIS_DCMTK_367",
        proposed=[(VERIFICATION, [IMPLICIT_VR_LITTLE_ENDIAN])], echoes=2, end="released",
    ),
    _Visit(
        WHEN, "2001:db8::9", 51520, tls="TLSv1.3", called="PACS", calling="CT2",
        proposed=[("1.2.840.10008.5.1.4.1.1.2", ["1.2.840.10008.1.2.4.50"])], rejected=7, end="rejected: why",
        hint="do this",
    ),
    _Visit(WHEN, "192.0.2.1", 4711, end="closed by the caller"),
    _Visit(WHEN, "192.0.2.1", 4712, called="A\x1b[2J", calling="B\r\n\x9b", version_name="\x1b]0;x\7", end="released"),
]  # fmt: skip


def test_text() -> None:
    assert list(dicom_echo._visits(VISITS, dicom_echo._Style(False, False, False))) == [
        '[OK] 2026-11-22 09:30:00 192.0.2.9:51514 "CT1" calls "ANY-SCP" (OFFIS_DCMTK_367), proposes Verification '
        "(implicit); 2 echoes answered; released",
        '[FAILED] 2026-11-22 09:30:00 [2001:db8::9]:51520 "CT2" calls "PACS" (no version name, TLSv1.3), proposes '
        "1 other; no echo answered; rejected: why; hint: do this",
        "[FAILED] 2026-11-22 09:30:00 192.0.2.1:4711 closed by the caller",
        r'[FAILED] 2026-11-22 09:30:00 192.0.2.1:4712 "B\r\n\x9b" calls "A\x1b[2J" (\x1b]0;x\x07), proposes nothing; '
        "no echo answered; released",
        "connections: 4, associations: 2, rejected: 1, echoes: 2",
    ]


def test_json() -> None:
    first, second, third, totals = map(json.loads, dicom_echo._visits(VISITS[:3], None))
    schema = json.loads(Path(__file__).with_name("schema.json").read_text(encoding="utf-8"))
    for each in (first, second, third, totals):
        jsonschema.Draft202012Validator(schema).validate(each)
    assert first == {
        "schema_version": 1, "type": "association", "time": "2026-11-22T09:30:00.000Z", "remote": "192.0.2.9:51514",
        "tls": None, "called_ae_title": "ANY-SCP", "calling_ae_title": "CT1",
        "implementation_version_name": "OFFIS_DCMTK_367",
        "proposed": [{"sop_class": VERIFICATION, "transfer_syntaxes": [IMPLICIT_VR_LITTLE_ENDIAN]}],
        "echoes": 2, "reject_reason": None, "end": "released", "hint": None,
    }  # fmt: skip
    assert (second["remote"], second["reject_reason"], second["hint"]) == ("[2001:db8::9]:51520", 7, "do this")
    assert (third["called_ae_title"], third["proposed"]) == (None, [])
    assert totals == {
        "schema_version": 1, "type": "association_summary",
        "connections": 3, "associations": 1, "rejected": 1, "echoes": 2,
    }  # fmt: skip


def test_what_readme_shows(echoscu: str) -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    shown = re.findall(
        r"^```text\n\$ dicom-echo --listen 0\.0\.0\.0:11112 (.*)\n((?:.*\n)*?)^```$", readme, re.MULTILINE
    )
    ((options, output),) = shown
    with listening(*options.split()) as listener:
        for called in ("ARCHIVE", "ARCHIV"):
            run_process([echoscu, "-aec", called, "-aet", "CT1", "127.0.0.1", str(listener.port)])
        _, out, _ = listener.end(signal.SIGINT, after=2)
    settled = [
        re.sub(r"\d{4}-\d\d-\d\d [\d:]+ (?:127.0.0.1|192.0.2.9):\d+|(?<=DCMTK_)\d+", "…", text)
        for text in (out, output)
    ]
    assert settled[0] == settled[1]


# --- At the end of a pipe ----------------------------------------------------------------------------------------


def test_a_closed_output_ends_it_in_silence() -> None:
    with listening() as listener:
        listener.process.stdout.close()
        assert dicom_echo.probe(listener.address).ok
        listener.process.wait(PATIENCE)
        assert listener.process.stderr.read() == ""
