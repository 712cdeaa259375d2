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
from collections.abc import Callable
from typing import Any

import pytest
import rawpeer
from command import command_line, start_process
from leaks import nothing_left_behind
from rawpeer import Endpoint, RawPeer, full_listener, in_pieces, script

import dicom_echo as echo
from dicom_echo import Phase

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux drops SYNs when a backlog is full")

NO_WAY = Endpoint("255.255.255.255", 104)  # no route leads to a broadcast address: nothing is sent
SYSTEM_RESOLVER = socket.getaddrinfo
Install = Callable[..., str]


@pytest.fixture
def resolve_to(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Makes the name `many.test` stand for these endpoints, in this order; as an application's own resolver would."""

    def install(*endpoints: Endpoint, pause: Callable[[], object] = lambda: None) -> str:
        def resolver(host: str, *rest: Any) -> list[Any]:
            if host != "many.test":
                return SYSTEM_RESOLVER(host, *rest)
            pause()
            return [
                (rawpeer.family_of(each.host), socket.SOCK_STREAM, 6, "", (each.host, each.port)) for each in endpoints
            ]

        monkeypatch.setattr(socket, "getaddrinfo", resolver)
        return "many.test"

    return install


# --- Names -----------------------------------------------------------------------------------------------------------


def test_an_application_s_own_resolver_is_honoured(peer: RawPeer, monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = {"pacs.test": "127.0.0.1", "pacs.example.ü": "127.0.0.1"}

    def own(host: str, port: int, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0, /) -> tuple[Any, ...]:
        return tuple(SYSTEM_RESOLVER(hosts[host], port, family, type, proto, flags))

    monkeypatch.setattr(socket, "getaddrinfo", own)
    for address, family in itertools.product([f"{host}:{peer.port}" for host in hosts], (0, socket.AF_INET)):
        assert echo.probe(address, family=family).error is None
        assert [result.error for result in echo.probe_many([address], family=family)] == [None]
    assert str(echo.probe(f"other.test:{peer.port}").error) == "name not resolved"  # it raises a KeyError


def test_a_name_that_does_not_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_such_name(*_: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    for resolver, detail in ((lambda *_: [], "no addresses"), (no_such_name, "name or service not known")):
        monkeypatch.setattr(socket, "getaddrinfo", resolver)
        error = echo.probe("nobody.invalid").error
        assert isinstance(error, echo.Unreachable)
        assert (str(error), error.detail, error.phase) == ("name not resolved", detail, Phase.resolve)
        assert error.hint == "check the spelling and the name server, or use the IP address"


def test_an_address_of_the_other_family(monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(name: str, *arguments: Any) -> Any:
        return SYSTEM_RESOLVER("127.0.0.1" if name == "only-v4.test" else name, *arguments)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    for host, family, message in [
        ("127.0.0.1", socket.AF_INET6, "the address does not match -4, -6 or --source"),
        ("[::1]", socket.AF_INET, "the address does not match -4, -6 or --source"),
        ("only-v4.test", socket.AF_INET6, "the name has no IPv6 address"),
    ]:
        error = echo.probe(host, family=family).error
        assert isinstance(error, echo.Unreachable)
        assert (str(error), error.phase) == (message, Phase.resolve)
        assert error.hint == "leave out -4, -6 and --source, or give another address"


@pytest.mark.usefixtures("ipv6")
def test_a_link_local_address_needs_its_interface() -> None:
    without, unknown = (echo.probe(host, timeout=5).error for host in ("[fe80::1]", "[fe80::1%nonesuch]"))
    assert isinstance(without, echo.Unreachable)
    hint = "a link-local address needs the interface to use: [fe80::1%eth0]"
    assert (without.phase, without.hint) == (Phase.connect, hint)
    assert isinstance(unknown, echo.Unreachable)
    assert (unknown.phase, str(unknown)) == (Phase.resolve, 'this host has no network interface "nonesuch"')
    assert "lo" in unknown.detail
    assert unknown.hint == "the problem is on this host: check its limits, permissions and network settings"


def test_a_hung_name_server_is_asked_by_a_bounded_number_of_threads(resolve_to: Install) -> None:
    """And what is asked without a name goes on all the while."""
    release, before = threading.Event(), threading.active_count()
    name = resolve_to(pause=lambda: release.wait(60))
    with RawPeer() as peer, nothing_left_behind(patience=20):  # the threads end with the look-ups
        try:
            first = echo.probe(name, timeout=0.2)
            kinds = {echo.probe(name, timeout=0.005).kind for _ in range(40)}
            kinds |= {result.kind for result in echo.probe_many([f"{n}@{name}" for n in range(60)], timeout=0.005)}
            left = threading.active_count() - before
            literal = echo.probe_many([peer.address, name], timeout=2)
            assert next(literal).kind == "ok"
            literal.close()
        finally:
            release.set()
    assert isinstance(first.error, echo.TimedOut)
    assert (first.error.phase, str(first.error)) == (Phase.resolve, "no answer within 0.2 s")
    assert first.error.hint == "the name server does not answer: try the IP address of the host"
    assert list(first.timings) == [Phase.resolve]
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


# --- Names with several addresses ------------------------------------------------------------------------------------


def test_the_first_that_answers_is_taken_and_those_before_it_are_noted(
    peer: RawPeer, refusing: Endpoint, resolve_to: Install
) -> None:
    for endpoints, refused in (([peer.endpoint, refusing], False), ([refusing, refusing, peer.endpoint], True)):
        result = echo.probe(resolve_to(*endpoints))
        assert (result.ok, result.remote, bool(result.notes)) == (True, peer.endpoint.host_port, refused)
        note = rf"tried first: {refusing.host_port}, connection refused, \d+ ms"
        assert all(re.fullmatch(note, each) for each in result.notes)


@linux
def test_silent_addresses_share_the_time(peer: RawPeer, resolve_to: Install) -> None:
    with full_listener("127.0.0.2") as silent:
        result = echo.probe(resolve_to(silent, peer.endpoint), timeout=1)
        begun = time.monotonic()
        error = echo.probe(resolve_to(silent, silent, silent), timeout=0.6).error
        elapsed = time.monotonic() - begun
    assert (result.ok, result.remote, len(result.notes)) == (True, peer.endpoint.host_port, 1)
    share = r"no answer within 0\.\d+ s"
    assert re.fullmatch(rf"tried first: {silent.host_port}, {share}, \d+ ms", result.notes[0])
    assert 0.3 < result.timings[Phase.connect] < 1
    assert isinstance(error, echo.TimedOut)
    assert (error.phase, str(error), error.timeout) == (Phase.connect, "no answer within 0.6 s", 0.6)
    assert re.fullmatch("; ".join([f"{silent.host_port}: {share}"] * 3), error.detail)
    assert 0.5 < elapsed < 20


@linux
def test_the_failure_that_tells_more_is_told(refusing: Endpoint, resolve_to: Install) -> None:
    """With the address that it is about, and in the end with the time that was waited."""
    with full_listener() as silent:
        for more, less in itertools.combinations((refusing, silent, NO_WAY), 2):
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


# --- Time ------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="Windows cannot suspend a process")
def test_a_client_that_was_suspended_does_not_blame_the_peer() -> None:
    blamed = "❌ Timed out: no answer within 1 s, but this process did not run for [12] s\n(.*\n)+"
    blamed += "   hint: the problem is not at the peer: this host was suspended .*\n"
    for accept, limit, seconds, code, told in (
        (rawpeer.GOOD_ACCEPT, 20, 0.3, 0, "✅ Success\n"),
        (None, 1, 2.5, 3, blamed),
    ):
        with RawPeer(script(accept)) as peer, start_process(command_line(peer.address, "-t", limit)) as process:
            while not (peer.received and peer.received[0].types):
                time.sleep(0.001)
            process.send_signal(signal.SIGSTOP)
            time.sleep(seconds)
            process.send_signal(signal.SIGCONT)
            out, err = process.communicate(timeout=20)
        assert (process.returncode, err) == (code, "")
        assert re.fullmatch(told, out)


@linux
def test_no_acknowledgement_is_delayed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would cost 40 ms for each answer: the fastest of twenty echoes takes less, whatever the machine has to do.

    The peer answers in two writes, as DCMTK does: with Nagle's algorithm, the second waits for our acknowledgement.
    """
    accept, answer = (in_pieces(data, size=len(data) // 2 + 1) for data in (rawpeer.GOOD_ACCEPT, rawpeer.GOOD_ECHO))

    def fastest_of(number: int) -> float:
        with RawPeer((rawpeer.A_ASSOCIATE_RQ, accept, rawpeer.P_DATA_TF, answer), nodelay=False) as peer:
            results = [echo.probe(peer.address, message_id=1, abort=True) for _ in range(number)]
        assert all(results)
        return min(result.timings[Phase.associate] + result.timings[Phase.echo] for result in results)

    assert fastest_of(20) < 0.04
    monkeypatch.delattr(socket, "TCP_QUICKACK")
    fastest_of(1)  # other systems do not have it, and go on


def test_trouble_of_this_host_is_not_blamed_on_the_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A firewall forbids it, no local port is free, memory is short: not to be had for real here."""
    ours = {errno.EACCES, errno.EPERM, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM}
    for number in (*ours, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ECONNREFUSED):

        def fail(*_: object, number: int = number) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(socket.socket, "connect", fail)
        result = echo.probe("127.0.0.1", timeout=5)
        assert isinstance(result.error, echo.Unreachable)
        assert (result.error.errno, result.phase) == (number, Phase.connect)
        assert ("the problem is on this host" in result.hint) == (number in ours)
