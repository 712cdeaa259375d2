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
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import rawpeer
import trustme
from command import PATIENCE, Outcome, command_line, environment, run_main, run_process, start_process
from leaks import nothing_left_behind
from peers import TlsFiles, client_context, free_port
from rawpeer import COMMAND, VERIFICATION, Endpoint, command_pdu, echo_rsp_command, item, p_data, pdu, text_item
from rawpeer import IMPLICIT_VR_LITTLE_ENDIAN as IMPLICIT

import dicom_echo
from dicom_echo import _Visit

Capsys = pytest.CaptureFixture[str]


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
    """Start one. The block has to bring about its end, which is waited for after it."""
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


@contextlib.contextmanager
def listening(*options: object) -> Iterator[tuple[Endpoint, subprocess.Popen[str]]]:
    """`dicom-echo --listen` in a process of its own."""
    endpoint = Endpoint("127.0.0.1", free_port())
    with start_process(command_line("--listen", endpoint.host_port, *options)) as process:
        assert process.stderr
        assert process.stderr.readline().startswith(f"dicom-echo: listening on {endpoint.host_port}")
        yield endpoint, process


def interrupt(process: subprocess.Popen[str]) -> Outcome:
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE)
    return Outcome(process.returncode, out, err)


# --- Callers ---------------------------------------------------------------------------------------------------------


def proposal(number: int = 1, sop_class: str = VERIFICATION) -> bytes:
    return item(0x20, bytes([number, 0, 0, 0]) + text_item(0x30, sop_class) + text_item(0x40, IMPLICIT))


def associate_rq(called: str = "ANY-SCP", calling: str = "CALLER", proposals: bytes = proposal()) -> bytes:
    """An A-ASSOCIATE-RQ (PS3.8 9.3.2)."""
    fixed = b"\0\1\0\0" + f"{called:16}{calling:16}".encode() + bytes(32)
    user = rawpeer.user_information(version_name="RAWCALLER")
    return pdu(rawpeer.A_ASSOCIATE_RQ, fixed + text_item(0x10, rawpeer.APPLICATION_CONTEXT) + proposals + user)


def echo_rq_command(command_field: int = rawpeer.C_ECHO_RQ, message_id: bytes = b"\1\0") -> bytes:
    """The command set of a C-ECHO-RQ, or another one with the same elements."""
    return echo_rsp_command(command_field=command_field, replace={0x0110: message_id}, omit=(0x0120, 0x0900))


REQUEST, ECHO = associate_rq(), command_pdu(echo_rq_command())


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
    if path is None:
        give_up = pytest.fail if os.environ.get("DICOM_ECHO_REQUIRE_PEERS") == "1" else pytest.skip
        give_up("the Rust package's dicom-echo (pip install dicom-echo==0.3.0) is not in the folder DICOM_ECHO_RUST")
    return path


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
    variables = environment()
    if caller == "dcmtk":
        words = [request.getfixturevalue("echoscu"), "-aet", "CALLER", "-aec", "ANY-SCP", "127.0.0.1", "{port}"]
    elif caller == "pynetdicom":
        words = [sys.executable, "-m", "pynetdicom", "echoscu", "-aet", "CALLER", "127.0.0.1", "{port}"]
    else:  # its module has the name of ours
        words, variables["PYTHONPATH"] = [rust_package(), "-aet", "CALLER", "127.0.0.1:{port}"], ""
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
        exchange(sock, REQUEST)
        left = len(exchange(sock, ECHO)) * 2000
        sock.sendall(ECHO * 2000)
        while left and (part := sock.recv(left)):
            left -= len(part)
        assert exchange(sock, rawpeer.release_rq()) == rawpeer.release_rp()
    visit = end.next_visit()
    assert (visit.echoes, visit.end) == (2001, "released")


def test_the_time_limit_is_for_the_first_echo_only(capsys: Capsys) -> None:
    with listening_here(capsys, "-t", 1.5, "-c", 2) as command:
        assert dicom_echo.probe(command.address).ok
        time.sleep(1.7)
        assert dicom_echo.probe(command.address).ok
    code, out, _ = command.outcome
    assert (code, out.splitlines()[-1]) == (0, "connections: 2, associations: 2, rejected: 0, echoes: 2")
    with listening_here(capsys, "-t", 0.2) as command:
        pass
    code, out, err = command.outcome
    assert (code, out) == (3, "connections: 0, associations: 0, rejected: 0, echoes: 0\n")
    assert err.splitlines()[1:] == ["dicom-echo: nobody called within 0.2 s"]


def test_options_that_make_no_sense(capsys: Capsys) -> None:
    for options in (
        ["0"], ["70000"], ["X@127.0.0.1:104"], ["127.0.0.1"], [""], ["11112", "HOST"], ["11112", "--cert", "x.pem"],
        ["11112", "--tls"], ["11112", "--self-test"], ["11112", "--format", "prometheus"], ["11112", "--wait", "3"],
    ):  # fmt: skip
        code, out, err = run_main(capsys, "-t", 0.1, "--listen", *options)
        assert (options, code, out, err[:12]) == (options, 2, "", "dicom-echo: ")


def test_a_port_that_is_taken(capsys: Capsys, end: OtherEnd) -> None:
    code, out, err = run_main(capsys, "--listen", end.host_port)
    assert (code, out, f"cannot listen on {end.host_port}: " in err) == (2, "", True)


# --- What callers ask for --------------------------------------------------------------------------------------------


def test_a_wrong_title_is_rejected_and_what_would_admit_it_is_told() -> None:
    for called, calling, reason, admits in [
        ("PACS", "CT1", 7, "-aec PACS"),
        ("STORE", "CT 2", 3, "-aet 'CT 2'"),
        ("$(x)", "CT2", 7, "-aec '$(x)' -aet CT2"),
        ("store", "CT1", 7, "-aec store"),
        ("STORE", "CT1", None, ""),
    ]:
        with other_end("STORE", "CT1") as strict, connect(strict) as sock:
            answer = exchange(sock, associate_rq(called, calling))
            if reason:
                assert answer == rawpeer.associate_rj(1, 1, reason)
            else:
                assert exchange(sock, rawpeer.release_rq()) == rawpeer.release_rp()
            visit = strict.next_visit()
        assert (visit.called, visit.calling, visit.rejected) == (called, calling, reason)
        assert visit.hint == (f'let the caller call "STORE" as "CT1", or listen with {admits}' if reason else "")


def test_another_sop_class_is_refused(end: OtherEnd) -> None:
    ct = "1.2.840.10008.5.1.4.1.1.2"
    with connect(end) as sock:
        accepted = exchange(sock, associate_rq(proposals=proposal(1, ct) + proposal(3)))
        for context, result in ((1, 3), (3, 0)):
            assert item(0x21, bytes([context, 0, result, 0]) + text_item(0x40, IMPLICIT)) in accepted
    visit = end.next_visit()
    assert visit.proposed == [(ct, [IMPLICIT]), (VERIFICATION, [IMPLICIT])]
    assert visit.end == "closed by the caller"


def test_a_request_in_fragments_is_answered(end: OtherEnd) -> None:
    with connect(end) as sock:
        exchange(sock, REQUEST)
        *first, last = (p_data([each]) for each in rawpeer.fragments(echo_rq_command(), 10))
        sock.sendall(b"".join(first))
        exchange(sock, last)
    assert end.next_visit().echoes == 1


FRAGMENT = p_data([(1, COMMAND, bytes(1000))])
MALFORMED, NO_ECHO = "malformed A-ASSOCIATE-RQ", "received a message other than C-ECHO-RQ"
# What a caller sends, and a part of how its visit ends.
ODD_CALLERS = {
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n": "received GET / , expected A-ASSOCIATE-RQ",
    b"\x16\x03\x01\x02\x00\x01": "the caller uses TLS",
    rawpeer.release_rp(): "received A-RELEASE-RP, expected A-ASSOCIATE-RQ",
    b"\1\0\xff\xff\xff\xff": "received A-ASSOCIATE-RQ of 4294967301 bytes, expected no more than 65536",
    pdu(1, b""): MALFORMED,
    pdu(1, REQUEST[6:-3]): MALFORMED,
    associate_rq(called=""): MALFORMED,
    pdu(1, bytes(20)): MALFORMED,
    associate_rq(proposals=proposal(2)): MALFORMED,  # the ID is even
    REQUEST.replace(b"\0\1\0\0ANY", b"\0\2\0\0ANY"): "protocol version not supported",
    REQUEST + ECHO.replace(b"\1\3", b"\1\2", 1): NO_ECHO,  # a data set
    REQUEST * 2: "received A-ASSOCIATE-RQ, expected P-DATA-TF or A-RELEASE",
    REQUEST + command_pdu(echo_rq_command(0x0001)): NO_ECHO,  # a C-STORE-RQ
    REQUEST + command_pdu(bytes(16)): NO_ECHO,
    REQUEST + command_pdu(echo_rsp_command(command_field=rawpeer.C_ECHO_RQ, omit=(0x0120, 0x0900))): NO_ECHO,  # no ID
    REQUEST + pdu(4, bytes(3)): "malformed P-DATA-TF",
    REQUEST + FRAGMENT * 80: "expected no more than",
    REQUEST + ECHO.replace(b"\1\3", b"\3\3"): "aborted by this end",  # a context that was not proposed
    REQUEST + rawpeer.abort(): "aborted by the caller",
}


def test_odd_callers_are_told_apart_and_aborted(end: OtherEnd) -> None:
    for sent, how in ODD_CALLERS.items():
        received = b""
        with contextlib.suppress(ConnectionError), connect(end) as sock:  # what it does not read resets the connection
            sock.sendall(sent)
            while part := sock.recv(4096):
                received += part
        visit = end.next_visit()
        assert (how in visit.end, visit.echoes) == (True, 0), (how, visit)
        if len(sent) < 10000:  # a reset may overtake the A-ABORT
            aborted = how not in ("protocol version not supported", "aborted by the caller")
            assert received.endswith(rawpeer.abort(0, 0)) == aborted, how


# --- Bounds ----------------------------------------------------------------------------------------------------------


def test_who_is_silent_or_slow_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicom_echo, "_CALL_SECONDS", 0.2)
    monkeypatch.setattr(dicom_echo, "_IDLE_SECONDS", 0.3)
    with other_end() as end, connect(end), connect(end) as half, connect(end) as slow, connect(end) as idle:
        half.sendall(REQUEST[:60])
        exchange(idle, REQUEST)
        exchange(idle, ECHO)
        with contextlib.suppress(ConnectionError):
            for byte in REQUEST[:100]:
                slow.sendall(bytes([byte]))
                time.sleep(0.01)
        ends = sorted((visit.echoes, visit.end) for visit in (end.next_visit() for _ in range(4)))
        assert (half.recv(1), idle.recv(1)) == (b"", b"")
    assert ends == [(echoes, "dropped: silent or slow for too long") for echoes in (0, 0, 0, 1)]


def test_with_too_many_callers_the_one_that_is_silent_longest_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicom_echo, "_MAX_CALLERS", 2)
    with other_end() as end, connect(end) as active, connect(end) as silent:
        exchange(active, REQUEST)
        exchange(active, ECHO)
        assert end.visits.empty(), "there is room"
        with connect(end) as late:
            assert silent.recv(1) == b""
            visit = end.next_visit()
            assert (visit.port, visit.end) == (silent.getsockname()[1], "dropped: silent for longer than 2 others")
            exchange(late, REQUEST)
            exchange(active, ECHO)


def test_nothing_is_left_behind() -> None:
    with nothing_left_behind(PATIENCE):
        with other_end() as end, connect(end) as sock:
            exchange(sock, REQUEST)
            connect(end).close()
        with pytest.raises(ConnectionRefusedError):
            connect(end)


def test_out_of_descriptors_the_silent_make_room() -> None:
    resource = pytest.importorskip("resource")
    if not hasattr(resource, "prlimit"):
        pytest.skip("the limits of another process cannot be set here")
    with listening() as (endpoint, process), contextlib.ExitStack() as stack:
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (40, 40))
        for _ in range(100):
            stack.enter_context(connect(endpoint))
        assert all(dicom_echo.probe(endpoint.address, timeout=PATIENCE).ok for _ in range(5))
        _, out, err = interrupt(process)
    assert "dropped: this host has too many open files" in out
    assert "connections: 105, associations: 5, rejected: 0, echoes: 5\n" in out
    assert err == ""


ENDLESS = REQUEST + FRAGMENT  # more fragments follow, without end
HOSTILE = [
    b"",
    REQUEST[:50],
    random.Random(13).randbytes(200),
    b"GET / HTTP/1.1\r\n\r\n",
    b"\1\0\0\0\xff\xff" + bytes(8192),  # announces more than a request may have
    REQUEST,  # and not a word more
    ENDLESS,
    REQUEST + ECHO + ECHO[:20],
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    REQUEST + b"\4\0\xff\xff\xff\xff" + bytes(1000),
]


def test_a_good_peer_is_answered_among_500_hostile_ones_and_a_signal_ends_all() -> None:
    with listening() as (endpoint, process), contextlib.ExitStack() as stack, ThreadPoolExecutor(1) as pool:
        good = pool.submit(lambda: [dicom_echo.probe(endpoint.address, timeout=5) for _ in range(20)])
        endless: list[socket.socket] = []
        for each in HOSTILE * 50:
            hostile = stack.enter_context(connect(endpoint))
            with contextlib.suppress(OSError):
                hostile.sendall(each)
            hostile.setblocking(False)
            endless += [hostile] * (each is ENDLESS)
            for sock in endless:
                with contextlib.suppress(OSError):
                    sock.send(FRAGMENT * 8)
        results = [*good.result(), *(dicom_echo.probe(endpoint.address, timeout=5) for _ in range(5))]
        # It writes more than a pipe holds, so it is read from while it ends.
        code, out, err = interrupt(process)
    assert [str(result.error) for result in results if not result.ok] == []
    assert (code, err) == (-signal.SIGINT, "")
    lines = out.splitlines()
    assert lines[-1] == "connections: 525, associations: 225, rejected: 0, echoes: 75"
    assert len(lines) == 525 + 1
    assert sum(line.endswith("; 1 echo answered; still open") for line in lines) == 50
    assert sum("(DICOM_ECHO_" in line and "; 1 echo answered; " in line for line in lines) == len(results)


# --- TLS -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def tls_options(authority: trustme.CA, tls_files: TlsFiles, tmp_path: Path) -> list[object]:
    """To answer one echo, of a caller that presents a certificate, and to present one for the loopback addresses."""
    own = tmp_path / "own.pem"
    authority.issue_cert("localhost", "127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(own))
    return ["--tls", "--cert", own, "--cacert", tls_files.authority, "-c", 1, "-t", PATIENCE]


def test_answers_dcmtk_over_tls_that_presents_a_certificate(
    capsys: Capsys, tls_options: list[object], tls_files: TlsFiles, echoscu: str
) -> None:
    with listening_here(capsys, *tls_options) as command:
        tls = ["+tls", str(tls_files.key), str(tls_files.certificate), "+cf", str(tls_files.authority)]
        called = run_process([echoscu, *tls, "127.0.0.1", str(command.port)])
    assert called == Outcome(0, "", "")
    code, out, _ = command.outcome
    assert (code, "; 1 echo answered; released\n" in out) == (0, True)


def test_tls_trouble_is_told(capsys: Capsys, tls_options: list[object], tls_files: TlsFiles) -> None:
    with listening_here(capsys, *tls_options) as command, connect(command):  # a silent one does not stand in the way
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
        proposed=[(VERIFICATION, [IMPLICIT])], echoes=2, end="released",
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
    visits = list(map(json.loads, dicom_echo._visits(VISITS[:3], None)))
    schema = json.loads(Path(__file__).with_name("schema.json").read_text(encoding="utf-8"))
    for each in visits:
        jsonschema.Draft202012Validator(schema).validate(each)
    assert visits[0] == {
        "schema_version": 1, "type": "association", "time": "2026-11-22T09:30:00.000Z", "remote": "192.0.2.9:51514",
        "tls": None, "called_ae_title": "ANY-SCP", "calling_ae_title": "CT1",
        "implementation_version_name": "OFFIS_DCMTK_367",
        "proposed": [{"sop_class": VERIFICATION, "transfer_syntaxes": [IMPLICIT]}],
        "echoes": 2, "reject_reason": None, "end": "released", "hint": None,
    }  # fmt: skip
    assert [(each["tls"], each["reject_reason"], each["hint"], each["called_ae_title"]) for each in visits[1:3]] == [
        ("TLSv1.3", 7, "do this", "PACS"), (None, None, None, None),
    ]  # fmt: skip
    assert visits[3] == {
        "schema_version": 1, "type": "association_summary",
        "connections": 3, "associations": 1, "rejected": 1, "echoes": 2,
    }  # fmt: skip


def test_what_readme_shows(echoscu: str) -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    shown = re.search(r"^\$ dicom-echo --listen 0\.0\.0\.0:11112 (.*)\n((?:.*\n)*?)^```$", readme, re.MULTILINE)
    assert shown
    options, expected = shown.groups()
    with listening(*options.split()) as (endpoint, process):
        for called in ("ARCHIVE", "ARCHIV"):
            run_process([echoscu, "-aec", called, "-aet", "CT1", endpoint.host, str(endpoint.port)])
        assert process.stdout
        out = process.stdout.readline() + process.stdout.readline() + interrupt(process).out
    varying = r"\d{4}-\d\d-\d\d [\d:]+ (?:127.0.0.1|192.0.2.9):\d+|(?<=DCMTK_)\d+"
    assert re.sub(varying, "…", out) == re.sub(varying, "…", expected)


def test_a_closed_output_ends_it_in_silence() -> None:
    with listening() as (endpoint, process):
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert dicom_echo.probe(endpoint.address).ok
        process.wait(PATIENCE)
        assert process.stderr.read() == ""
