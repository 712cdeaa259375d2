"""Fixtures: one running instance of each real peer for the whole session, started when a test first asks for it.

A peer that is not installed skips the tests that need it; with DICOM_ECHO_REQUIRE_PEERS=1 they fail instead.
"""

import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import peers
import pytest
import trustme
from peers import Peer, TlsFiles
from rawpeer import Endpoint, RawPeer, closed_port

# A shell starts what it puts into the background with SIGINT ignored, which the processes of the tests would inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def require(program: str, package: str) -> str:
    """The path of a program; without it, the test is skipped or fails."""
    path = peers.find_program(program)
    if path is None:
        reason = f"{program} is not installed (Debian package {package})"
        if os.environ.get("DICOM_ECHO_REQUIRE_PEERS") == "1":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    return path


@pytest.fixture(scope="session")
def ipv6() -> str:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return "::1"
    except OSError:
        pytest.skip("this host has no IPv6 loopback address")


@pytest.fixture(scope="session")
def echoscu() -> str:
    return require("echoscu", "dcmtk")


# --- Raw peers -------------------------------------------------------------------------------------------------------


@pytest.fixture
def peer() -> Iterator[RawPeer]:
    with RawPeer() as peer:
        yield peer


@pytest.fixture
def refusing() -> Iterator[Endpoint]:
    with closed_port() as endpoint:
        yield endpoint


# --- Real peers ------------------------------------------------------------------------------------------------------


def server(
    run: Callable[..., AbstractContextManager[Peer]], program: str = "", package: str = "", **options: Any
) -> Any:
    """A fixture for the whole session that runs a peer, with its program in a folder of its own if it has one."""

    @pytest.fixture(scope="session")
    def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
        own = [require(program, package), tmp_path_factory.mktemp(program)] if program else []
        with run(*own, **options) as peer:
            yield peer

    return peer


pynetdicom_scp = server(peers.run_pynetdicom)
pynetdicom_scp_strict = server(peers.run_pynetdicom, check_called_title=True)
storescp = server(peers.run_storescp, "storescp", "dcmtk")
dcmqrscp = server(peers.run_dcmqrscp, "dcmqrscp", "dcmtk")
orthanc = server(peers.run_orthanc, "Orthanc", "orthanc")


def each_of(*names: str) -> Any:
    """A fixture that is each of these peers in turn."""

    @pytest.fixture(params=names)
    def peer(request: pytest.FixtureRequest) -> Any:
        return request.getfixturevalue(request.param)

    return peer


strict_peer = each_of("pynetdicom_scp_strict", "dcmqrscp", "orthanc")  # they refuse a wrong called AE title
real_peer = each_of("pynetdicom_scp", "storescp", "dcmqrscp", "orthanc")


# --- TLS -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="session")
def tls_files(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    return peers.write_tls_files(authority, tmp_path_factory.mktemp("tls"))
