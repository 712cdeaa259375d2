"""The tests' own tools, proved with clients that are not ours: DCMTK's echoscu, pynetdicom's AE and bare sockets."""

from __future__ import annotations

import contextlib
import gc
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import peers
import pytest
import rawpeer
import trustme
from peers import Peer, TlsFiles
from pynetdicom import AE
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]  # made at run time
from rawpeer import Endpoint, RawPeer

NO_ANSWER = (TimeoutError, socket.timeout)  # which are one from Python 3.10 on
speaks_ipv6 = pytest.mark.skipif(sys.version_info < (3, 10), reason="the last pynetdicom for Python 3.9 has no IPv6")


def run_echoscu(program: str, endpoint: Endpoint, called: str | None = None) -> subprocess.CompletedProcess[str]:
    """An echo by DCMTK."""
    command = [program, "-v", "-to", "5", "-ta", "5", "-td", "5", "-aec", called or endpoint.ae_title]
    return subprocess.run(
        [*command, endpoint.host, str(endpoint.port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=20,
        check=False,
    )


def pynetdicom_echo(endpoint: Endpoint, context: ssl.SSLContext | None = None) -> int:
    """An echo by pynetdicom: its status."""
    ae = AE("ECHOSCU")
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 5
    ae.add_requested_context(Verification)
    tls = (context, endpoint.host) if context else None
    with peers.closing_sockets() as handler:
        association = ae.associate(
            endpoint.host, endpoint.port, ae_title=endpoint.ae_title, tls_args=tls, evt_handlers=[handler]
        )
        assert association.is_established
        status: int = association.send_c_echo().Status
        association.release()
    return status


@contextlib.contextmanager
def connected(endpoint: Endpoint) -> Iterator[socket.socket]:
    """A bare connection, two seconds for each operation."""
    with socket.create_connection((endpoint.host, endpoint.port), timeout=2) as sock:
        yield sock


def receive_all(sock: socket.socket) -> bytes:
    """Everything up to the end of the stream."""
    return b"".join(iter(lambda: sock.recv(65536), b""))


# --- Real peers ------------------------------------------------------------------------------------------------------


def test_a_real_peer_answers_echoscu(real_peer: Peer, echoscu: str) -> None:
    result = run_echoscu(echoscu, real_peer)
    assert result.returncode == 0, result.stdout
    assert "Received Echo Response (Success)" in result.stdout


def test_a_real_peer_answers_pynetdicom(real_peer: Peer) -> None:
    assert pynetdicom_echo(real_peer) == 0x0000


@speaks_ipv6
def test_a_real_peer_answers_over_ipv6(ipv6_peer: Peer) -> None:
    assert pynetdicom_echo(ipv6_peer) == 0x0000
    assert pynetdicom_echo(ipv6_peer) == 0x0000, "a second time"
    assert ipv6_peer.address == f"{ipv6_peer.ae_title}@[::1]:{ipv6_peer.port}"


def test_a_lenient_peer_takes_any_called_title(lenient_peer: Peer, echoscu: str) -> None:
    assert run_echoscu(echoscu, lenient_peer, called="WRONG").returncode == 0


def test_a_strict_peer_refuses_a_wrong_called_title(strict_peer: Peer, echoscu: str) -> None:
    result = run_echoscu(echoscu, strict_peer, called="WRONG")
    assert result.returncode != 0
    assert "Rejected Permanent" in result.stdout
    assert "Called AE Title Not Recognized" in result.stdout


@pytest.mark.parametrize(("name", "case_counts"), [("dcmqrscp", True), ("orthanc_strict", False)])
def test_case_counts_in_the_called_title(
    name: str, case_counts: bool, echoscu: str, request: pytest.FixtureRequest
) -> None:
    peer: Peer = request.getfixturevalue(name)
    assert (run_echoscu(echoscu, peer, called=peer.ae_title.lower()).returncode != 0) == case_counts


def test_a_tls_peer_answers(tls_scp: Peer, tls_files: TlsFiles) -> None:
    assert pynetdicom_echo(tls_scp, peers.client_context(tls_files)) == 0x0000


def test_a_mutual_tls_peer_wants_a_certificate(mutual_tls_scp: Peer, tls_files: TlsFiles) -> None:
    assert pynetdicom_echo(mutual_tls_scp, peers.client_context(tls_files, with_certificate=True)) == 0x0000
    context = peers.client_context(tls_files)
    with (
        connected(mutual_tls_scp) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as sock,
        pytest.raises(ssl.SSLError, match=r"(?i)certificate.required"),
    ):
        sock.recv(1)


def test_a_tls_peer_has_no_dicom_for_a_plain_client(tls_scp: Peer) -> None:
    with connected(tls_scp) as sock:
        sock.sendall(rawpeer.release_rq())
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(2) in (b"", b"\x15\x03"), "closed, or a TLS alert: that depends on the OpenSSL"


def test_a_client_that_vanishes_leaves_nothing_behind() -> None:
    with peers.run_pynetdicom() as peer:
        for _ in range(3):
            with connected(peer) as sock:
                sock.sendall(rawpeer.abort())
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert pynetdicom_echo(peer) == 0x0000
    gc.collect()  # a socket that nobody closed would make this a ResourceWarning, which is an error


def test_a_tls_peer_stops_although_a_client_is_silent(authority: trustme.CA) -> None:
    began = time.monotonic()
    with peers.run_pynetdicom(ssl_context=peers.server_context(authority)) as peer, connected(peer):
        pass
    assert time.monotonic() - began < 4


# --- Starting and stopping -------------------------------------------------------------------------------------------


def python(code: str, *arguments: str) -> list[str]:
    """The command line of a small server."""
    return [sys.executable, "-c", code, *arguments]


LISTEN = "import socket, sys, time; s = socket.create_server(('127.0.0.1', int(sys.argv[1]))); time.sleep(60)"


def test_a_server_is_started_again_when_it_ends_at_once(tmp_path: Path) -> None:
    tried: list[int] = []

    def command(port: int) -> list[str]:
        tried.append(port)
        return python("raise SystemExit('no')") if len(tried) == 1 else python(LISTEN, str(port))

    with peers.run_server(command, "TEST", tmp_path) as peer:
        assert peer.port == tried[-1]
        assert len(tried) == 2
        assert peers.accepts(peer.host, peer.port)
    assert not peers.accepts(peer.host, peer.port)


def test_a_server_that_never_starts_shows_its_log(tmp_path: Path) -> None:
    with (
        pytest.raises(peers.PeerFailed, match=r"(?s)out of order.*ended with 1 at its start, 3 times"),
        peers.run_server(lambda port: python("raise SystemExit('out of order')"), "TEST", tmp_path),
    ):
        pass


def test_a_server_that_never_listens_shows_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "START_SECONDS", 0.3)
    with (
        pytest.raises(peers.PeerFailed, match=r"did not listen on port \d+ within 0.3 s"),
        peers.run_server(lambda port: python("import time; time.sleep(60)"), "TEST", tmp_path),
    ):
        pass


def test_a_server_that_dies_in_use_is_reported(tmp_path: Path) -> None:
    dies = LISTEN.replace("time.sleep(60)", "s.accept(); s.accept(); print('gone')")

    def use_it_until_it_is_gone() -> None:
        with peers.run_server(lambda port: python(dies, str(port)), "TEST", tmp_path) as peer, connected(peer) as sock:
            assert receive_all(sock) == b""
            time.sleep(0.5)  # the connection ends a little before the process

    with pytest.raises(peers.PeerFailed, match=r"(?s)gone.*ended with 0 while it was needed"):
        use_it_until_it_is_gone()


def test_scripts_of_python_are_no_peers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, line in (first, "#!/somewhere/bin/python3"), (second, "#!/bin/sh"):
        folder.mkdir()
        (folder / "some-scp").write_text(line + "\n")
        (folder / "some-scp").chmod(0o755)
    monkeypatch.setenv("PATH", f"{first}:{second}")
    assert peers.find_program("some-scp") == str(second / "some-scp")
    assert peers.find_program("no-such-scp") is None


# --- The raw peer as a good peer -------------------------------------------------------------------------------------


def test_the_raw_peer_answers_echoscu(echoscu: str) -> None:
    with RawPeer() as peer:
        result = run_echoscu(echoscu, peer.endpoint, called="SOMEBODY")
        assert result.returncode == 0, result.stdout
        conversation = peer.conversation()
    assert conversation.types == [rawpeer.A_ASSOCIATE_RQ, rawpeer.P_DATA_TF, rawpeer.A_RELEASE_RQ]
    assert (conversation.request.called, conversation.request.calling) == ("SOMEBODY", "ECHOSCU")
    assert conversation.request.application_context == rawpeer.APPLICATION_CONTEXT
    assert conversation.request.max_length == 16384
    assert [context.abstract_syntax for context in conversation.request.contexts] == [rawpeer.VERIFICATION]
    assert conversation.request.contexts[0].transfer_syntaxes == (rawpeer.IMPLICIT_VR_LITTLE_ENDIAN,)
    assert conversation.message_ids == [1]
    assert conversation.commands[0][rawpeer.COMMAND_FIELD] == b"\x30\x00"


def test_the_raw_peer_answers_pynetdicom() -> None:
    with RawPeer() as peer:
        assert pynetdicom_echo(peer.endpoint) == 0x0000
        assert peer.conversation().types == [rawpeer.A_ASSOCIATE_RQ, rawpeer.P_DATA_TF, rawpeer.A_RELEASE_RQ]
        assert rawpeer.EXPLICIT_VR_LITTLE_ENDIAN in peer.received[0].request.contexts[0].transfer_syntaxes


@speaks_ipv6
def test_the_raw_peer_answers_over_ipv6(ipv6: str) -> None:
    with RawPeer(host=ipv6) as peer:
        assert pynetdicom_echo(peer.endpoint) == 0x0000
        assert peer.address == f"ANY-SCP@[::1]:{peer.port}"


def test_the_raw_peer_answers_over_tls(authority: trustme.CA, tls_files: TlsFiles) -> None:
    with RawPeer(ssl_context=peers.server_context(authority)) as peer:
        assert pynetdicom_echo(peer.endpoint, peers.client_context(tls_files)) == 0x0000


def test_a_script_answers_one_echo(echoscu: str) -> None:
    with RawPeer(rawpeer.script()) as peer:
        assert run_echoscu(echoscu, peer.endpoint).returncode == 0


def test_many_echoes_in_one_association(echoscu: str) -> None:
    with RawPeer() as peer:
        assert run_echoscu(echoscu, peer.endpoint).returncode == 0
        command = [echoscu, "--repeat", "3", peer.host, str(peer.port)]
        assert subprocess.run(command, timeout=20, check=False).returncode == 0
        assert peer.conversation(1).message_ids == [1, 2, 3]


@pytest.mark.parametrize("size", [2, 34, 1000])
def test_fragments_are_understood(size: int, echoscu: str) -> None:
    pdvs = rawpeer.fragments(rawpeer.echo_rsp_command(), size)
    answers = [rawpeer.p_data(pdvs), b"".join(rawpeer.p_data([pdv]) for pdv in pdvs)]
    with RawPeer(*[rawpeer.script(echo=answer) for answer in answers]) as peer:
        for _ in answers:
            result = run_echoscu(echoscu, peer.endpoint)
            assert result.returncode == 0, result.stdout


def test_a_stream_in_single_bytes_is_understood(echoscu: str) -> None:
    slow = rawpeer.script(
        accept=rawpeer.Send(rawpeer.accept_proposal, chunk=1, delay=0.0005),
        echo=rawpeer.Drip(rawpeer.GOOD_ECHO, delay=0.0005),
    )
    with RawPeer(slow) as peer:
        assert run_echoscu(echoscu, peer.endpoint).returncode == 0


# --- The raw peer as a bad peer --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (rawpeer.script(accept=rawpeer.associate_rj(1, 1, 7)), "Called AE Title Not Recognized"),
        (rawpeer.script(accept=rawpeer.associate_rj(2, 3, 2)), "Rejected Transient"),
        (rawpeer.script(accept=rawpeer.abort(2, 1)), "Peer aborted Association (or never connected)"),
        (rawpeer.script(accept=rawpeer.associate_ac([(1, 3, None)])), "No Acceptable Presentation Contexts"),
        (rawpeer.script(echo=rawpeer.echo_rsp(1, 0x0122)), "Unknown Status: 0x122"),
        (rawpeer.script(echo=rawpeer.echo_rsp(99)), "Unexpected Response MsgId: 99 (expected: 1)"),
        (rawpeer.script(echo=rawpeer.abort(0, 0)), "Peer aborted Association"),
    ],
)
def test_echoscu_understands_what_is_wrong(script: rawpeer.Script, said: str, echoscu: str) -> None:
    with RawPeer(script) as peer:
        assert said in run_echoscu(echoscu, peer.endpoint).stdout


def test_close_ends_the_stream_and_reset_resets_it() -> None:
    bye = rawpeer.Send(b"bye")
    with RawPeer([bye, rawpeer.Close()], [rawpeer.ReceiveSome(), rawpeer.Reset()]) as peer:
        with connected(peer.endpoint) as sock:
            assert receive_all(sock) == b"bye"
        with connected(peer.endpoint) as sock:
            sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
            with pytest.raises(ConnectionResetError):
                receive_all(sock)
        assert bytes(peer.conversation(1).raw).startswith(b"GET /")


def test_silence_records_what_the_client_still_sends() -> None:
    with RawPeer([rawpeer.Silence()]) as peer:
        with connected(peer.endpoint) as sock:
            sock.sendall(rawpeer.release_rq() + rawpeer.abort() + b"\x16\x03")
        conversation = peer.conversation()
    assert conversation.types == [rawpeer.A_RELEASE_RQ, rawpeer.A_ABORT]
    assert bytes(conversation.raw).endswith(b"\x16\x03")


@pytest.mark.parametrize(
    "step",
    [
        rawpeer.Silence(),
        rawpeer.Expect(rawpeer.A_ASSOCIATE_RQ),
        rawpeer.Pause(60),
        rawpeer.Drip(rawpeer.GOOD_ACCEPT, delay=0.01, endless=True),
        rawpeer.Drip(rawpeer.GOOD_ACCEPT, delay=60),
        rawpeer.Send(bytes(100_000_000)),
    ],
)
def test_the_raw_peer_stops_at_once(step: rawpeer.Step) -> None:
    with contextlib.ExitStack() as stack:
        peer = stack.enter_context(RawPeer([step]))
        client = socket.create_connection((peer.host, peer.port))
        time.sleep(0.1)
        began = time.monotonic()
        stack.close()
        assert time.monotonic() - began < 0.5
        client.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("RawPeer")]


def test_the_raw_peer_stops_within_a_tls_handshake(authority: trustme.CA) -> None:
    began = time.monotonic()
    with RawPeer(ssl_context=peers.server_context(authority)) as peer, connected(peer.endpoint):
        time.sleep(0.1)
    assert time.monotonic() - began < 0.7


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (rawpeer.release_rq(), "PDU type 1 was due, the client sent 5"),
        (b"GET / HTTP/1.0\r\n\r\n", "the client sent no DICOM: b'GET"),
        (rawpeer.pdu(rawpeer.A_ASSOCIATE_RQ, b""), "unpack_from requires a buffer"),
    ],
)
def test_what_goes_wrong_in_a_script_is_raised(data: bytes, complaint: str) -> None:
    def talk() -> None:
        with RawPeer() as peer:
            with connected(peer.endpoint) as sock:
                sock.sendall(data)
            peer.conversation()

    with pytest.raises((AssertionError, struct.error), match=complaint):
        talk()


def test_a_connection_that_is_gone_is_no_error() -> None:
    with RawPeer(rawpeer.script(), rawpeer.script()) as peer:
        with connected(peer.endpoint):
            pass
        with connected(peer.endpoint) as sock:
            sock.sendall(rawpeer.abort())
        assert [peer.conversation(index).types for index in (0, 1)] == [[], [rawpeer.A_ABORT]]


# --- Its encoding, byte by byte --------------------------------------------------------------------------------------


def test_small_pdus() -> None:
    assert rawpeer.associate_rj(1, 2, 3).hex(" ") == "03 00 00 00 00 04 00 01 02 03"
    assert rawpeer.release_rq().hex(" ") == "05 00 00 00 00 04 00 00 00 00"
    assert rawpeer.release_rp().hex(" ") == "06 00 00 00 00 04 00 00 00 00"
    assert rawpeer.abort(2, 6).hex(" ") == "07 00 00 00 00 04 00 00 02 06"
    assert rawpeer.p_data([(1, 3, b"abc")]).hex(" ") == "04 00 00 00 00 09 00 00 00 05 01 03 61 62 63"
    assert rawpeer.pdu(4, b"ab", length=0xFFFFFFFF).hex(" ") == "04 00 ff ff ff ff 61 62"


def test_the_elements_of_a_command_set() -> None:
    command = rawpeer.decode_command(rawpeer.echo_rsp_command(258, 0xFF00, error_comment="odd"))
    assert command == {
        rawpeer.GROUP_LENGTH: b"\x4e\x00\x00\x00",
        rawpeer.AFFECTED_SOP_CLASS_UID: b"1.2.840.10008.1.1\0",
        rawpeer.COMMAND_FIELD: b"\x30\x80",
        rawpeer.MESSAGE_ID_RESPONDED_TO: b"\x02\x01",
        rawpeer.DATA_SET_TYPE: b"\x01\x01",
        rawpeer.STATUS: b"\x00\xff",
        rawpeer.ERROR_COMMENT: b"odd ",
    }


def test_elements_left_out_and_replaced() -> None:
    command = rawpeer.echo_rsp_command(omit=[rawpeer.DATA_SET_TYPE], replace={rawpeer.STATUS: b"\x00", 0x0901: b""})
    assert rawpeer.decode_command(command)[rawpeer.STATUS] == b"\x00"
    assert rawpeer.decode_command(command)[0x0901] == b""
    assert rawpeer.DATA_SET_TYPE not in rawpeer.decode_command(command)
    lies = rawpeer.echo_rsp_command(replace={rawpeer.GROUP_LENGTH: b"\xff\xff\xff\xff"})
    assert rawpeer.decode_command(lies)[rawpeer.GROUP_LENGTH] == b"\xff\xff\xff\xff"
    assert rawpeer.GROUP_LENGTH not in rawpeer.decode_command(rawpeer.echo_rsp_command(omit=[rawpeer.GROUP_LENGTH]))


# --- Ports where nobody answers --------------------------------------------------------------------------------------


def test_a_closed_port_refuses() -> None:
    with rawpeer.closed_port() as endpoint, pytest.raises(ConnectionRefusedError), connected(endpoint):
        pass


def test_a_silent_listener_connects_and_says_nothing() -> None:
    with rawpeer.silent_listener() as endpoint, connected(endpoint) as sock:
        sock.sendall(b"anybody?")
        sock.settimeout(0.1)
        with pytest.raises(NO_ANSWER):
            sock.recv(1)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux drops connections when the backlog is full")
def test_a_full_listener_neither_accepts_nor_refuses() -> None:
    with (
        rawpeer.full_listener() as endpoint,
        pytest.raises(NO_ANSWER),
        socket.create_connection((endpoint.host, endpoint.port), timeout=0.3),
    ):
        pass
