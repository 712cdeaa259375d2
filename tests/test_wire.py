"""Chapter 7, the wire: names, addresses, connections and the time that they take. TLS has a file of its own."""

from __future__ import annotations

import errno
import itertools
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import rawpeer
from command import command_line, run_main, start_process
from leaks import nothing_left_behind
from rawpeer import A_ASSOCIATE_RQ, P_DATA_TF, Endpoint, Expect, RawPeer, Send, closed_port, full_listener, script

import dicom_echo as echo
from dicom_echo import Phase

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux drops SYNs when a backlog is full")
Capsys = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def dropping() -> Iterator[Endpoint]:
    with full_listener() as endpoint:
        yield endpoint


# --- An application's own resolver -----------------------------------------------------------------------------------

Found = list[Any]
Install = Callable[..., str]
NO_WAY = Endpoint("255.255.255.255", 104)  # no route leads to a broadcast address: nothing is sent


@pytest.fixture
def resolve_to(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Makes the name `many.test` stand for these endpoints, in this order; as an application's own resolver would."""

    def install(*endpoints: Endpoint, pause: Callable[[], object] = lambda: None) -> str:
        def resolver(host: str, port: int, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0) -> Found:
            if host != "many.test":
                return SYSTEM_RESOLVER(host, port, family, type, proto, flags)
            pause()
            return [
                (rawpeer.family_of(each.host), socket.SOCK_STREAM, 6, "", (each.host, each.port)) for each in endpoints
            ]

        monkeypatch.setattr(socket, "getaddrinfo", resolver)
        return "many.test"

    return install


def resolver(host: str, port: int, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0) -> Found:
    return SYSTEM_RESOLVER(HOSTS[host], port, family, type, proto, flags)


def positional_resolver(
    host: str, port: int, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0, /
) -> tuple[Any, ...]:
    return tuple(resolver(host, port, family, type, proto, flags))


SYSTEM_RESOLVER = socket.getaddrinfo
HOSTS = {"pacs.test": "127.0.0.1", "pacs.example.ü": "127.0.0.1"}


@pytest.mark.parametrize("own", [resolver, positional_resolver])
def test_an_application_s_own_resolver_is_honoured(peer: RawPeer, monkeypatch: pytest.MonkeyPatch, own: object) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", own)
    for host in HOSTS:
        address = f"{host}:{peer.port}"
        for family in (0, socket.AF_INET):
            assert echo.probe(address, family=family).error is None
            assert [result.error for result in echo.probe_many([address], family=family)] == [None]
    assert str(echo.probe(f"other.test:{peer.port}").error) == "name not resolved"
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: [])
    error = echo.probe(f"pacs.test:{peer.port}").error
    assert isinstance(error, echo.Unreachable)
    assert (str(error), error.detail) == ("name not resolved", "no addresses")


# --- Names -----------------------------------------------------------------------------------------------------------


def test_a_name_that_does_not_resolve(capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_such_name(*_: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_such_name)
    assert run_main(capsys, "nobody.invalid") == (
        3,
        "❌ Unreachable: name not resolved\n"
        "   while resolving nobody.invalid: name or service not known\n"
        "   hint: check the spelling and the name server, or use the IP address\n",
        "",
    )


@pytest.mark.parametrize(
    ("host", "family", "message"),
    [
        ("127.0.0.1", socket.AF_INET6, "the address does not match -4, -6 or --source"),
        ("[::1]", socket.AF_INET, "the address does not match -4, -6 or --source"),
        ("only-v4.test", socket.AF_INET6, "the name has no IPv6 address"),
    ],
)
def test_an_address_of_the_other_family(monkeypatch: pytest.MonkeyPatch, host: str, family: int, message: str) -> None:
    def getaddrinfo(name: str, *arguments: Any) -> Any:
        return SYSTEM_RESOLVER("127.0.0.1" if name == "only-v4.test" else name, *arguments)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    error = echo.probe(host, family=family).error
    assert isinstance(error, echo.Unreachable)
    assert (str(error), error.phase) == (message, Phase.resolve)
    assert error.hint == "leave out -4, -6 and --source, or give another address"


@pytest.mark.parametrize(
    ("host", "phase", "message", "hint"),
    [
        ("[fe80::1]", Phase.connect, None, "a link-local address needs the interface to use: [fe80::1%eth0]"),
        ("[fe80::1%nonesuch]", Phase.resolve, 'this host has no network interface "nonesuch"',
         "the problem is on this host: check its limits, permissions and network settings"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("ipv6")
def test_a_link_local_address_needs_its_interface(host: str, phase: Phase, message: str | None, hint: str) -> None:
    error = echo.probe(host, timeout=5).error
    assert isinstance(error, echo.Unreachable)
    assert (error.phase, error.hint) == (phase, hint)
    assert message is None or (str(error), "lo" in error.detail) == (message, True)


def test_a_look_up_that_hangs_is_bounded(resolve_to: Install) -> None:
    release = threading.Event()
    name = resolve_to(pause=lambda: release.wait(60))
    with nothing_left_behind(patience=20):  # the thread ends with the look-up
        try:
            result = echo.probe(name, timeout=0.2)
        finally:
            release.set()
    assert isinstance(result.error, echo.TimedOut)
    assert (result.error.phase, str(result.error)) == (Phase.resolve, "no answer within 0.2 s")
    assert result.error.hint == "the name server does not answer: try the IP address of the host"
    assert list(result.timings) == [Phase.resolve]


def test_a_hung_name_server_is_asked_by_a_bounded_number_of_threads(resolve_to: Install) -> None:
    """And what is asked without a name goes on all the while."""
    release, before = threading.Event(), threading.active_count()
    name = resolve_to(pause=lambda: release.wait(60))
    with RawPeer() as peer, nothing_left_behind(patience=20):
        try:
            kinds = {echo.probe(name, timeout=0.005).kind for _ in range(40)}
            kinds |= {result.kind for result in echo.probe_many([f"{n}@{name}" for n in range(60)], timeout=0.005)}
            left = threading.active_count() - before
            literal = echo.probe_many([peer.address, name], timeout=2)
            assert next(literal).kind == "ok"
            literal.close()
        finally:
            release.set()
    assert kinds == {"timeout"}
    assert 40 <= left <= 70


def test_a_slow_look_up_is_paid_from_the_same_limit(
    peer: RawPeer, resolve_to: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock that the look-up advances."""
    clock, leapt = time.perf_counter, [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock() + sum(leapt))
    name = resolve_to(peer.endpoint, pause=lambda: leapt.append(99.5))
    result = echo.probe(name, timeout=200)
    assert result.ok
    assert result.timings[Phase.resolve] >= 99.5
    peer.scripts = [script(accept=None)]
    result = echo.probe(name, timeout=100)
    assert (result.kind, result.phase) == ("timeout", Phase.associate)
    assert result.timings[Phase.associate] < 50


def test_a_literal_address_needs_no_thread(peer: RawPeer, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, started, start = threading.get_ident(), list[str](), threading.Thread.start

    def note(self: threading.Thread) -> None:
        started.extend([self.name] if threading.get_ident() == mine else [])
        start(self)

    monkeypatch.setattr(threading.Thread, "start", note)
    echo.send(peer.address)
    assert started == []


# --- Names with several addresses ------------------------------------------------------------------------------------

NOTE = r"tried first: {}, {}, \d+ ms"


def test_the_first_that_answers_is_taken(peer: RawPeer, refusing: Endpoint, resolve_to: Install) -> None:
    result = echo.probe(resolve_to(peer.endpoint, refusing))
    assert (result.ok, result.remote, result.notes) == (True, peer.endpoint.host_port, ())


@linux
def test_an_address_that_refuses_before_the_one_that_answers_is_noted(resolve_to: Install, capsys: Capsys) -> None:
    with RawPeer(host="127.0.0.3") as peer, closed_port("127.0.0.2") as nobody:
        result = echo.probe(resolve_to(nobody, nobody, peer.endpoint))
        shown = run_main(capsys, "-v", resolve_to(nobody, peer.endpoint)).out
        assert (result.ok, result.remote) == (True, peer.endpoint.host_port)
    expected = NOTE.format(nobody.host_port, "connection refused")
    assert result.notes
    assert all(re.fullmatch(expected, note) for note in result.notes)
    assert re.search(rf"note +{expected}", " ".join(shown.split()))


@linux
def test_a_silent_address_leaves_time_for_the_next_and_is_noted(resolve_to: Install) -> None:
    with RawPeer(host="127.0.0.3") as peer, full_listener("127.0.0.2") as silent:
        result = echo.probe(resolve_to(silent, peer.endpoint), timeout=1)
        assert (result.ok, result.remote) == (True, peer.endpoint.host_port)
    assert len(result.notes) == 1
    assert re.fullmatch(NOTE.format(silent.host_port, r"no answer within 0\.\d+ s"), result.notes[0])
    assert 0.3 < result.timings[Phase.connect] < 1


def test_ipv6_refused_first_then_ipv4(peer: RawPeer, ipv6: str, resolve_to: Install) -> None:
    """What `localhost` is on most hosts, with a peer that listens on 127.0.0.1 only."""
    with closed_port(ipv6) as nobody:
        result = echo.probe(resolve_to(nobody, peer.endpoint))
    assert (result.ok, result.remote) == (True, peer.endpoint.host_port)


@linux
def test_the_failure_that_tells_more_is_told(refusing: Endpoint, dropping: Endpoint, resolve_to: Install) -> None:
    """With the address that it is about, and in the end with the time that was waited."""
    for more, less in itertools.combinations((refusing, dropping, NO_WAY), 2):
        for endpoints in ((more, less), (less, more)):
            begun = time.monotonic()
            result = echo.probe(resolve_to(*endpoints), timeout=0.4)
            elapsed = time.monotonic() - begun
            assert (result.phase, result.remote, result.local) == (Phase.connect, more.host_port, None)
            if more is refusing:
                assert isinstance(result.error, echo.Unreachable)
                assert str(result.error) == "connection refused"
                assert all(each.host_port in result.error.detail for each in endpoints)
            else:
                assert isinstance(result.error, echo.TimedOut)
                said = re.fullmatch(r"no answer within ([0-9.]+) s", str(result.error))
                assert said is not None
                assert elapsed >= float(said[1]) - 0.05


@linux
def test_all_silent_within_the_limit(dropping: Endpoint, resolve_to: Install) -> None:
    begun = time.monotonic()
    result = echo.probe(resolve_to(dropping, dropping, dropping), timeout=0.6)
    assert isinstance(result.error, echo.TimedOut)
    assert (result.error.phase, str(result.error), result.error.timeout) == (
        Phase.connect, "no answer within 0.6 s", 0.6,
    )  # fmt: skip
    share = rf"{re.escape(dropping.host_port)}: no answer within 0\.\d+ s"  # a busy machine leaves the later ones less
    assert re.fullmatch("; ".join([share] * 3), result.error.detail)
    assert 0.5 < time.monotonic() - begun < 20


# --- Time ------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="Windows cannot suspend a process")
@pytest.mark.parametrize(
    ("accept", "limit", "seconds", "code", "told"),
    [
        (rawpeer.GOOD_ACCEPT, 20, 0.3, 0, "✅ Success\n"),
        (None, 1, 2.5, 3, "❌ Timed out: no answer within 1 s, but this process did not run for [12] s\n(.*\n)+"
         "   hint: the problem is not at the peer: this host was suspended .*\n"),
    ],
    ids=["within its limit", "past its limit"],
)  # fmt: skip
def test_a_client_that_was_suspended_does_not_blame_the_peer(
    accept: bytes | None, limit: float, seconds: float, code: int, told: str
) -> None:
    with RawPeer(script(accept=accept)) as peer, start_process(command_line(peer.address, "-t", limit)) as process:
        while not (peer.received and peer.received[0].types):
            time.sleep(0.001)
        process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        process.send_signal(signal.SIGCONT)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (code, "")
    assert re.fullmatch(told, out)


def in_two_writes(data: bytes) -> Send:
    """As DCMTK answers: where Nagle's algorithm is on, the second waits for the acknowledgement of the first."""
    return Send(data, chunk=len(data) // 2 + 1)


@linux
def test_no_acknowledgement_is_delayed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would cost 40 ms for each answer: the fastest of twenty echoes takes less, whatever the machine has to do."""
    played = (
        Expect(A_ASSOCIATE_RQ), in_two_writes(rawpeer.GOOD_ACCEPT), Expect(P_DATA_TF), in_two_writes(rawpeer.GOOD_ECHO),
    )  # fmt: skip

    def fastest_of(number: int) -> float:
        with RawPeer(played, nodelay=False) as peer:
            results = [echo.probe(peer.address, message_id=1, abort=True) for _ in range(number)]
        assert all(results)
        return min(result.timings[Phase.associate] + result.timings[Phase.echo] for result in results)

    assert fastest_of(20) < 0.04
    monkeypatch.delattr(socket, "TCP_QUICKACK")
    fastest_of(1)  # other systems do not have it, and go on


OURS = (errno.EACCES, errno.EPERM, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM)
THE_NETWORKS = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ECONNREFUSED)


@pytest.mark.parametrize("number", [*OURS, *THE_NETWORKS], ids=errno.errorcode.get)
def test_trouble_of_this_host_is_not_blamed_on_the_peer(
    capsys: Capsys, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A firewall forbids it, no local port is free, memory is short: not to be had for real here."""

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(socket.socket, "connect", fail)
    result = echo.probe("127.0.0.1", timeout=5)
    assert isinstance(result.error, echo.Unreachable)
    assert (result.error.errno, result.phase) == (number, Phase.connect)
    assert ("the problem is on this host" in result.hint) == (number in OURS)
    code, out, _ = run_main(capsys, "--format", "nagios", "127.0.0.1")
    assert (code, out[:22]) == ((3, "DICOM ECHO UNKNOWN - A") if number in OURS else (2, "DICOM ECHO CRITICAL - "))
