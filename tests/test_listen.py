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
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

import jsonschema
import pytest
import trustme
from command import PATIENCE, Outcome, command_line, environment, run_main, run_process, start_process
from peers import TlsFiles, client_context, free_port
from rawpeer import (
    A_ASSOCIATE_RQ,
    APPLICATION_CONTEXT,
    C_ECHO_RQ,
    COMMAND,
    IMPLICIT_VR_LITTLE_ENDIAN,
    VERIFICATION,
    abort,
    associate_rj,
    command_pdu,
    echo_rsp_command,
    family_of,
    fragments,
    item,
    p_data,
    pdu,
    release_rp,
    release_rq,
    user_information,
)

import dicom_echo

C_STORE_RQ = 0x0001
NOTHING_RUST = "the Rust package's dicom-echo (pip install dicom-echo==0.3.0) is not in the folder DICOM_ECHO_RUST"


# --- A listener and its callers --------------------------------------------------------------------------------------


@dataclass
class Listener:
    """`dicom-echo --listen` in a process of its own."""

    process: subprocess.Popen[str]
    host: str
    port: int
    talk: list[str] = field(default_factory=list)

    @property
    def address(self) -> str:
        """Where to echo it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def end(self, number: int | None = None, after: int = 0) -> Outcome:
        """Wait for its end, or bring that about by a signal after so many lines."""
        assert self.process.stdout is not None
        lines = [self.process.stdout.readline() for _ in range(after)]
        if number is not None:
            self.process.send_signal(number)
        out, err = self.process.communicate(timeout=PATIENCE)
        return Outcome(self.process.returncode, "".join(lines) + out, "".join(self.talk) + err)

    def call(self, *pdus: bytes, wait_for: int = 1) -> bytes:
        """Send these bytes, then read so many bytes of answers, or to the end of the connection."""
        answer = b""
        with socket.create_connection((self.host, self.port), timeout=PATIENCE) as sock:
            for each in pdus:
                sock.sendall(each)
            while len(answer) < wait_for and (part := sock.recv(4096)):
                answer += part
        return answer


@contextlib.contextmanager
def listening(*options: object, host: str = "127.0.0.1", where: str = "{port}") -> Iterator[Listener]:
    """Start one, on another port if somebody else has just taken the first."""
    for _ in range(3):
        port = free_port(host)
        with start_process(command_line("--listen", where.format(port=port), *options)) as process:
            assert process.stderr is not None
            first = process.stderr.readline()
            if "address already in use" not in first.lower():
                assert "listening on" in first, first + process.stderr.read()
                yield Listener(process, host, port, [first])
                return
    pytest.fail("no free port")


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


def rust_package() -> str:
    """The command of the package that this one stands in for."""
    path = shutil.which("dicom-echo", path=os.environ.get("DICOM_ECHO_RUST", ""))
    if path is None and os.environ.get("DICOM_ECHO_REQUIRE_PEERS") == "1":
        pytest.fail(NOTHING_RUST)
    if path is None:
        pytest.skip(NOTHING_RUST)
    return path


def call_with(caller: str, port: int, request: pytest.FixtureRequest) -> Outcome:
    """Have another program echo 127.0.0.1."""
    if caller == "dcmtk":
        command = [request.getfixturevalue("echoscu"), "-aet", "CALLER", "-aec", "ANY-SCP", "127.0.0.1", str(port)]
    elif caller == "pynetdicom":
        command = [sys.executable, "-m", "pynetdicom", "echoscu", "-aet", "CALLER", "127.0.0.1", str(port)]
    elif caller == "rust":
        command = [rust_package(), "-aet", "CALLER", f"127.0.0.1:{port}"]
        return run_process(command, {**environment(), "PYTHONPATH": ""})  # its module has the name of ours
    else:
        command = command_line("-aet", "CALLER", f"127.0.0.1:{port}")
    return run_process(command)


# --- Good callers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("caller", "version", "end"),
    [
        ("dcmtk", "OFFIS_DCMTK_", "released"),
        ("pynetdicom", "PYNETDICOM_", "released"),
        ("rust", "DICOM-rs ", "closed by the caller"),
        ("ourselves", "DICOM_ECHO_", "released"),
    ],
)
def test_answers_a_caller_and_tells_who_it_is(
    caller: str, version: str, end: str, request: pytest.FixtureRequest
) -> None:
    with listening("-c", 1, "-t", PATIENCE) as listener:
        called = call_with(caller, listener.port, request)
        code, out, err = listener.end()
    assert (called.code, code) == (0, 0), (called, out, err)
    visit, totals = out.splitlines()
    assert '"CALLER" calls "ANY-SCP" (' + version in visit
    assert "proposes Verification (" in visit
    assert visit.endswith(f"; 1 echo answered; {end}")
    assert totals == "connections: 1, associations: 1, rejected: 0, echoes: 1"
    assert err.splitlines() == [f"dicom-echo: listening on 127.0.0.1:{listener.port}" + other_family(err)]


def other_family(err: str) -> str:
    """The IPv6 half of the line that says where it listens."""
    first = err.splitlines()[0]
    return first[first.index(" and ") :] if " and " in first else ""


def test_listens_on_both_loopback_addresses_and_on_no_other(ipv6: str) -> None:
    with listening() as listener:
        for host in ("127.0.0.1", f"[{ipv6}]"):
            assert dicom_echo.probe(f"{host}:{listener.port}").ok
        for other in (address for address in other_addresses() if address):
            with socket.socket(family_of(other)) as sock:
                assert sock.connect_ex((other, listener.port)) != 0
        code, out, _ = listener.end(signal.SIGINT, after=2)
    assert code == -signal.SIGINT
    assert f"[{ipv6}]:" in out


def other_addresses() -> list[str]:
    """Addresses of this host beside 127.0.0.1 and ::1: Linux answers to all of 127.0.0.0/8."""
    return ["127.0.0.2"] if sys.platform == "linux" else []


def test_listens_where_it_is_told() -> None:
    with listening(host="127.0.0.1", where="127.0.0.1:{port}") as listener:
        assert dicom_echo.probe(listener.address).ok
        _, _, err = listener.end(signal.SIGINT)
    assert f"listening on 127.0.0.1:{listener.port}\n" in err


def test_counts_echoes_over_one_association() -> None:
    with listening("-c", 3, "-t", PATIENCE) as listener:
        with listener_connection(listener) as sock:
            exchange(sock, associate_rq())
            for _ in range(3):
                exchange(sock, echo_rq())
            assert exchange(sock, release_rq()) == release_rp()
        code, out, _ = listener.end()
    assert code == 0
    assert "; 3 echoes answered; released\n" in out


def test_answers_every_request_of_a_caller_that_does_not_wait_for_answers(json_listener: Listener) -> None:
    with listener_connection(json_listener) as sock:
        exchange(sock, associate_rq())
        size = len(exchange(sock, echo_rq()))
        sock.sendall(echo_rq() * 2000)
        left = 2000 * size
        while left and (part := sock.recv(left)):
            left -= len(part)
    assert next_visit(json_listener)["echoes"] == 2001


@contextlib.contextmanager
def listener_connection(listener: Listener) -> Iterator[socket.socket]:
    with socket.create_connection((listener.host, listener.port), timeout=PATIENCE) as sock:
        yield sock


def exchange(sock: socket.socket, request: bytes) -> bytes:
    """Send a request and read its answer, a PDU."""
    sock.sendall(request)
    answer = b""
    while len(answer) < 6 or len(answer) < 6 + int.from_bytes(answer[2:6], "big"):
        part = sock.recv(4096)
        assert part, f"closed after {answer!r}"
        answer += part
    return answer


def test_ends_by_the_signal_with_totals_while_a_caller_is_still_there() -> None:
    with listening() as listener, listener_connection(listener) as sock:
        exchange(sock, associate_rq())
        exchange(sock, echo_rq())
        code, out, _ = listener.end(signal.SIGINT)
    assert code == -signal.SIGINT
    assert out.splitlines()[0].endswith("; 1 echo answered; still open")
    assert out.splitlines()[1] == "connections: 1, associations: 1, rejected: 0, echoes: 1"


def test_nobody_called() -> None:
    with listening("-t", 0.2) as listener:
        code, out, err = listener.end()
    assert code == 3
    assert out == "connections: 0, associations: 0, rejected: 0, echoes: 0\n"
    assert err.splitlines()[-1] == "dicom-echo: nobody called within 0.2 s"


def test_the_time_limit_is_for_the_first_echo_only() -> None:
    with listening("-t", 2, "-c", 2) as listener:
        assert dicom_echo.probe(listener.address).ok
        time.sleep(2.2)
        assert dicom_echo.probe(listener.address).ok
        code, out, _ = listener.end()
    assert code == 0
    assert out.endswith("connections: 2, associations: 2, rejected: 0, echoes: 2\n")


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        code, out, err = run_process(command_line("--listen", address))
    assert (code, out) == (2, "")
    assert f"cannot listen on {address}: " in err


@pytest.mark.parametrize(
    "options",
    [("0",), ("70000",), ("X@127.0.0.1:104",), ("127.0.0.1",), ("",), ("11112", "HOST"), ("11112", "--cert", "x.pem"),
     ("11112", "--tls"), ("11112", "--self-test"), ("11112", "--format", "prometheus"), ("11112", "--wait", "3")],
)  # fmt: skip
def test_options_that_make_no_sense(options: Sequence[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run_main(capsys, "-t", 0.1, "--listen", *options)
    assert (code, out) == (2, "")
    assert err.startswith("dicom-echo: ")


# --- Titles ----------------------------------------------------------------------------------------------------------

REJECTED_TITLES = {
    "called": ("PACS", "CT1", 7, 'let the caller call "STORE" as "CT1", or listen with -aec PACS'),
    "calling": ("STORE", "CT 2", 3, 'let the caller call "STORE" as "CT1", or listen with -aet \'CT 2\''),
    "both": ("$(x)", "CT2", 7, 'let the caller call "STORE" as "CT1", or listen with -aec \'$(x)\' -aet CT2'),
    "case": ("store", "CT1", 7, 'let the caller call "STORE" as "CT1", or listen with -aec store'),
}


@pytest.fixture(scope="module")
def strict_listener() -> Iterator[Listener]:
    with listening("-aec", "STORE", "-aet", "CT1", "--format", "json") as listener:
        yield listener


@pytest.mark.parametrize("case", REJECTED_TITLES)
def test_a_wrong_title_is_rejected_and_what_would_admit_it_is_told(case: str, strict_listener: Listener) -> None:
    called, calling, reason, hint = REJECTED_TITLES[case]
    answer = strict_listener.call(associate_rq(called, calling), wait_for=10)
    assert answer == associate_rj(1, 1, reason)
    visit = next_visit(strict_listener)
    assert (visit["called_ae_title"], visit["calling_ae_title"]) == (called, calling)
    assert (visit["reject_reason"], visit["hint"]) == (reason, hint)


def test_the_right_titles_are_admitted(strict_listener: Listener) -> None:
    assert dicom_echo.probe(strict_listener.address, "STORE", "CT1").ok
    visit = next_visit(strict_listener)
    assert (visit["echoes"], visit["reject_reason"], visit["end"]) == (1, None, "released")


def next_visit(listener: Listener) -> dict[str, object]:
    assert listener.process.stdout is not None
    visit: dict[str, object] = json.loads(listener.process.stdout.readline())
    return visit


# --- What callers send -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def json_listener() -> Iterator[Listener]:
    with listening("--format", "json") as listener:
        yield listener
        assert dicom_echo.probe(listener.address).ok, "it no longer answers"


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
def test_an_odd_caller_is_told_apart(case: str, json_listener: Listener) -> None:
    pdus, end = ODD_CALLERS[case]
    with contextlib.suppress(ConnectionError):  # what it did not read makes its system reset the connection
        json_listener.call(*pdus, wait_for=1 << 20)
    visit = next_visit(json_listener)
    assert end in str(visit["end"])
    assert visit["echoes"] == 0


def test_a_request_in_fragments_is_answered(json_listener: Listener) -> None:
    command = echo_rsp_command(command_field=C_ECHO_RQ, replace={0x0110: b"\1\0"}, omit=(0x0120, 0x0900))
    with listener_connection(json_listener) as sock:
        exchange(sock, associate_rq())
        for each in fragments(command, 10)[:-1]:
            sock.sendall(p_data([each]))
        exchange(sock, p_data(fragments(command, 10)[-1:]))
        exchange(sock, release_rq())
    assert next_visit(json_listener)["echoes"] == 1


def test_another_sop_class_is_refused(json_listener: Listener) -> None:
    ct = "1.2.840.10008.5.1.4.1.1.2"
    contexts = [(1, ct, IMPLICIT_VR_LITTLE_ENDIAN), (3, VERIFICATION, IMPLICIT_VR_LITTLE_ENDIAN)]
    with listener_connection(json_listener) as sock:
        accepted = exchange(sock, associate_rq(contexts=contexts))
        assert item(0x21, b"\1\0\3\0" + item(0x40, IMPLICIT_VR_LITTLE_ENDIAN.encode())) in accepted
        assert item(0x21, b"\3\0\0\0" + item(0x40, IMPLICIT_VR_LITTLE_ENDIAN.encode())) in accepted
    visit = next_visit(json_listener)
    assert visit["proposed"] == [
        {"sop_class": ct, "transfer_syntaxes": [IMPLICIT_VR_LITTLE_ENDIAN]},
        {"sop_class": VERIFICATION, "transfer_syntaxes": [IMPLICIT_VR_LITTLE_ENDIAN]},
    ]
    assert visit["end"] == "closed by the caller"


def test_control_characters_are_escaped() -> None:
    with listening() as listener:
        with contextlib.suppress(ConnectionError):
            listener.call(associate_rq("A\x1b[2J", "B\r\n\x9b", version_name="\x1b]0;x\7"), abort(), wait_for=1 << 20)
        _, out, err = listener.end(signal.SIGINT, after=1)
    assert r"\x1b[2J" in out
    assert not [c for c in out + err if not c.isprintable() and c != "\n"]
    assert len(out.splitlines()) == 2


# --- Bounds ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def other_end() -> Iterator[tuple[tuple[str, int], queue.SimpleQueue[dicom_echo._Visit]]]:
    """Another end in this process, and what it puts into its queue."""
    with dicom_echo._listen([("127.0.0.1", 0)]) as end:
        address = dicom_echo.parse_address(end.addresses[0])
        assert address.port is not None
        visits: queue.SimpleQueue[dicom_echo._Visit] = queue.SimpleQueue()
        thread = threading.Thread(target=lambda: deque(map(visits.put, end.visits()), maxlen=0))
        thread.start()
        try:
            yield (address.host, address.port), visits
        finally:
            end.end()
            thread.join()


@pytest.mark.parametrize("start", [b"", associate_rq()[:60]])
def test_a_caller_that_never_calls_is_dropped(start: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicom_echo, "_CALL_SECONDS", 0.3)
    with other_end() as (address, visits), socket.create_connection(address, timeout=PATIENCE) as sock:
        sock.sendall(start)
        assert sock.recv(1) == b""
        assert visits.get(timeout=PATIENCE).end == "dropped: silent or slow for too long"


def test_a_caller_that_calls_slowly_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicom_echo, "_CALL_SECONDS", 0.3)
    with other_end() as (address, visits), socket.create_connection(address, timeout=PATIENCE) as sock:
        with contextlib.suppress(ConnectionError):
            for byte in associate_rq()[:100]:
                sock.sendall(bytes([byte]))
                time.sleep(0.02)
        assert visits.get(timeout=PATIENCE).end == "dropped: silent or slow for too long"


def test_an_idle_association_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicom_echo, "_IDLE_SECONDS", 0.3)
    with other_end() as (address, visits), socket.create_connection(address, timeout=PATIENCE) as sock:
        exchange(sock, associate_rq())
        exchange(sock, echo_rq())
        assert sock.recv(1) == b""
        visit = visits.get(timeout=PATIENCE)
        assert (visit.echoes, visit.end) == (1, "dropped: silent or slow for too long")


def test_with_too_many_callers_the_one_that_is_silent_longest_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicom_echo, "_MAX_CALLERS", 2)
    with other_end() as (address, visits), contextlib.ExitStack() as stack:
        active, silent = (stack.enter_context(socket.create_connection(address, timeout=PATIENCE)) for _ in range(2))
        exchange(active, associate_rq())
        exchange(active, echo_rq())
        late = stack.enter_context(socket.create_connection(address, timeout=PATIENCE))
        assert silent.recv(1) == b""
        visit = visits.get(timeout=PATIENCE)
        assert (visit.port, visit.end) == (silent.getsockname()[1], "dropped: silent for longer than 2 others")
        exchange(late, associate_rq())
        exchange(active, echo_rq())


def test_nobody_is_dropped_while_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicom_echo, "_MAX_CALLERS", 9)
    with other_end() as (address, visits), contextlib.ExitStack() as stack:
        callers = [stack.enter_context(socket.create_connection(address, timeout=PATIENCE)) for _ in range(9)]
        for each in callers:
            exchange(each, associate_rq())
        assert visits.empty()


def test_nothing_is_left_behind() -> None:
    before = threading.active_count()
    with other_end() as (address, _), socket.create_connection(address, timeout=PATIENCE) as sock:
        exchange(sock, associate_rq())
        with socket.create_connection(address):
            pass
    until = time.monotonic() + PATIENCE
    while threading.active_count() > before and time.monotonic() < until:
        time.sleep(0.02)
    assert threading.active_count() <= before
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)


def test_out_of_descriptors_the_silent_make_room() -> None:
    resource = pytest.importorskip("resource")
    if not hasattr(resource, "prlimit"):
        pytest.skip("the limits of another process cannot be set here")
    with listening() as listener, contextlib.ExitStack() as stack:
        resource.prlimit(listener.process.pid, resource.RLIMIT_NOFILE, (40, 40))
        for _ in range(100):
            stack.enter_context(socket.create_connection((listener.host, listener.port), timeout=PATIENCE))
        assert all(dicom_echo.probe(listener.address, timeout=PATIENCE).ok for _ in range(5))
        _, out, err = listener.end(signal.SIGINT)
    assert "dropped: this host has too many open files" in out
    assert "connections: 105, associations: 5, rejected: 0, echoes: 5\n" in out
    assert len(err.splitlines()) == 1


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


def test_a_good_peer_is_answered_among_500_hostile_ones() -> None:
    with listening() as listener, contextlib.ExitStack() as stack:
        stop = threading.Event()
        attack = threading.Thread(target=attack_with, args=(500, listener, stop, stack))
        attack.start()
        try:
            results = [dicom_echo.probe(listener.address, timeout=5) for _ in range(20)]
            attack.join()
            results += [dicom_echo.probe(listener.address, timeout=5) for _ in range(5)]
        finally:
            stop.set()
            attack.join()
        # It writes more than a pipe holds, so it is read from while it ends.
        code, out, err = listener.end(signal.SIGINT)
    assert [str(result.error) for result in results if not result.ok] == []
    assert code == -signal.SIGINT
    assert err.splitlines() == listener.talk[0].splitlines(), "only where it listens"
    lines = out.splitlines()
    assert len(lines) == len(results) + 500 + 1
    assert sum("(DICOM_ECHO_" in line and "; 1 echo answered; " in line for line in lines) == len(results)


def attack_with(number: int, listener: Listener, stop: threading.Event, stack: contextlib.ExitStack) -> None:
    """Open so many connections, each with something bad; the endless ones go on with it."""
    endless = []
    for i in range(number):
        sock = stack.enter_context(socket.create_connection((listener.host, listener.port), timeout=PATIENCE))
        with contextlib.suppress(OSError):
            sock.sendall(HOSTILE[i % len(HOSTILE)])
            sock.setblocking(False)
        endless.append(sock)
        for each in endless[:: len(HOSTILE) // 2]:
            with contextlib.suppress(OSError):
                each.send(bytes(8192))
        if stop.is_set():
            return


# --- TLS -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ServerFiles:
    certificate: Path
    key: Path


@pytest.fixture(scope="module")
def server_files(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> ServerFiles:
    """A certificate for the loopback addresses, and its key."""
    folder = tmp_path_factory.mktemp("listen")
    issued = authority.issue_cert("localhost", "127.0.0.1", "::1")
    files = ServerFiles(folder / "cert.pem", folder / "key.pem")
    files.certificate.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
    files.key.write_bytes(issued.private_key_pem.bytes())
    return files


def tls_options(files: ServerFiles) -> list[object]:
    return ["--tls", "--cert", files.certificate, "--key", files.key]


def test_answers_over_tls(server_files: ServerFiles, tls_files: TlsFiles) -> None:
    with listening(*tls_options(server_files), "-c", 1, "-t", PATIENCE) as listener:
        assert dicom_echo.probe(listener.address, tls=client_context(tls_files)).ok
        code, out, _ = listener.end()
    assert code == 0
    assert ", TLSv1.3), proposes" in out


def test_answers_dcmtk_over_tls_that_presents_a_certificate(
    server_files: ServerFiles, tls_files: TlsFiles, echoscu: str
) -> None:
    options = [*tls_options(server_files), "--cacert", tls_files.authority]
    with listening(*options, "-c", 1, "-t", PATIENCE) as listener:
        tls = ["+tls", str(tls_files.key), str(tls_files.certificate), "+cf", str(tls_files.authority)]
        called = run_process([echoscu, *tls, "127.0.0.1", str(listener.port)])
        code, out, err = listener.end()
    assert (called.code, called.err, code) == (0, "", 0), (called, out, err)
    assert "; 1 echo answered; released" in out


def test_answers_pynetdicom_over_tls(server_files: ServerFiles, tls_files: TlsFiles) -> None:
    from pynetdicom import AE

    entity = AE("CALLER")
    entity.add_requested_context(VERIFICATION)
    with listening(*tls_options(server_files), "-c", 1, "-t", PATIENCE) as listener:
        association = entity.associate("127.0.0.1", listener.port, tls_args=(client_context(tls_files), "127.0.0.1"))
        assert association.is_established
        assert association.send_c_echo().Status == 0
        association.release()
        code, out, _ = listener.end()
    assert code == 0
    assert '"CALLER" calls "ANY-SCP" (PYNETDICOM' in out


TLS_TROUBLE = {
    "no certificate": (["--cacert"], {"with_certificate": False}, "the caller presents no certificate"),
    "not trusted": ([], None, "the caller refuses our certificate"),
}


@pytest.mark.parametrize("case", TLS_TROUBLE)
def test_tls_trouble_is_told(case: str, server_files: ServerFiles, tls_files: TlsFiles) -> None:
    options, wanted, end = TLS_TROUBLE[case]
    context = client_context(tls_files) if wanted is not None else ssl.create_default_context()
    with listening(*tls_options(server_files), *options, *[tls_files.authority for _ in options]) as listener:
        assert not dicom_echo.probe(listener.address, tls=context).ok
        _, out, err = listener.end(signal.SIGINT, after=1)
    assert end in out.splitlines()[0]
    assert len(err.splitlines()) == 1


def test_a_caller_without_tls_is_told(server_files: ServerFiles) -> None:
    with listening(*tls_options(server_files)) as listener:
        assert not dicom_echo.probe(listener.address).ok
        with socket.create_connection((listener.host, listener.port)):  # nor does one that is silent stand in the way
            assert not dicom_echo.probe(listener.address).ok
        _, out, _ = listener.end(signal.SIGINT, after=3)
    assert out.count("the caller does not use TLS; hint: turn TLS on at the caller, or listen without --tls") == 2


# --- Reports, and a peer of our own ----------------------------------------------------------------------------------

WHEN = datetime(2026, 11, 22, 9, 30, tzinfo=timezone.utc)
VISITS = [
    dicom_echo._Visit(
        WHEN, "192.0.2.9", 51514, called="ANY-SCP", calling="CT1", version_name="OFFIS_DCMTK_367",
        proposed=[(VERIFICATION, [IMPLICIT_VR_LITTLE_ENDIAN])], echoes=2, end="released",
    ),
    dicom_echo._Visit(
        WHEN, "2001:db8::9", 51520, tls="TLSv1.3", called="PACS", calling="CT2",
        proposed=[("1.2.840.10008.5.1.4.1.1.2", ["1.2.840.10008.1.2.4.50"])], rejected=7, end="rejected: why",
        hint="do this",
    ),
    dicom_echo._Visit(WHEN, "192.0.2.1", 4711, end="closed by the caller"),
]  # fmt: skip


def test_text() -> None:
    assert list(dicom_echo._visits_text(VISITS, dicom_echo._Style(False, False, False))) == [
        '[OK] 2026-11-22 09:30:00 192.0.2.9:51514 "CT1" calls "ANY-SCP" (OFFIS_DCMTK_367), proposes Verification '
        "(implicit); 2 echoes answered; released",
        '[FAILED] 2026-11-22 09:30:00 [2001:db8::9]:51520 "CT2" calls "PACS" (no version name, TLSv1.3), proposes '
        "1 other; no echo answered; rejected: why; hint: do this",
        "[FAILED] 2026-11-22 09:30:00 192.0.2.1:4711 closed by the caller",
        "connections: 3, associations: 1, rejected: 1, echoes: 2",
    ]


def test_json() -> None:
    first, second, third, totals = map(json.loads, dicom_echo._visits_json(VISITS))
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


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_peer_of_our_own(host: str, request: pytest.FixtureRequest) -> None:
    if host == "::1":
        request.getfixturevalue("ipv6")
    with dicom_echo._peer_of_our_own(host) as address:
        assert dicom_echo.send(address) == 0
        assert dicom_echo.probe(address).remote == address.removeprefix("ANY-SCP@")


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


@pytest.mark.parametrize("called", ["ANY-SCP", "WRONG"])
def test_a_closed_output_ends_it_in_silence(called: str) -> None:
    with listening("-aec", "ANY-SCP") as listener:
        assert listener.process.stdout is not None
        listener.process.stdout.close()
        assert dicom_echo.probe(listener.address, called).ok == (called == "ANY-SCP")
        listener.process.wait(PATIENCE)
        assert listener.process.stderr is not None
        assert listener.process.stderr.read() == ""


# --- In a host program -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def listening_here(capsys: pytest.CaptureFixture[str], *options: str) -> Iterator[tuple[int, list[int], list[str]]]:
    """`main(["--listen", …])` in a thread of this process: its port, exit code and lines once they are there."""
    port, codes, lines = free_port("127.0.0.1"), list[int](), list[str]()
    arguments = ["--listen", f"127.0.0.1:{port}", *options]
    thread = threading.Thread(target=lambda: codes.append(dicom_echo.main(arguments)))
    thread.start()
    deadline = time.monotonic() + PATIENCE
    while "listening on" not in capsys.readouterr().err:
        assert thread.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    try:
        yield port, codes, lines
    finally:
        thread.join(PATIENCE)
        lines += "".join(capsys.readouterr()).splitlines()


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_thread_of_a_host_program_may_listen(capsys: pytest.CaptureFixture[str], form: str) -> None:
    options = ["-aec", "ARCHIVE", "-aet", "CT1", "-c", "1", "--format", form]
    with listening_here(capsys, *options) as (port, codes, lines):
        assert getattr(dicom_echo.probe(f"WRONG@127.0.0.1:{port}", calling_ae_title="CT1").error, "reason", 0) == 7
        assert getattr(dicom_echo.probe(f"ARCHIVE@127.0.0.1:{port}").error, "reason", 0) == 3
        for junk in (b"GET / HTTP/1.0\r\n\r\n", b"\x16\x03\1\0\5hello", b"\1\0\0\1\0\0", associate_rq()[:60], abort()):
            with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as sock:
                sock.sendall(junk)
        assert dicom_echo.probe(f"ARCHIVE@127.0.0.1:{port}", calling_ae_title="CT1").ok
    assert codes == [0]
    if form == "json":
        summary = json.loads(lines[-1])
        assert (summary["connections"], summary["rejected"], summary["echoes"]) == (8, 2, 1)
    else:
        assert lines[-1] == "connections: 8, associations: 1, rejected: 2, echoes: 1"


def test_a_host_program_is_told_that_nobody_called(capsys: pytest.CaptureFixture[str]) -> None:
    with listening_here(capsys, "-t", "0.3") as (_, codes, lines):
        pass
    assert codes == [3]
    assert "dicom-echo: nobody called within 0.3 s" in lines
