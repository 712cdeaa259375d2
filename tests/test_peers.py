"""Real peers: pynetdicom, DCMTK's storescp and dcmqrscp, Orthanc; over IPv4, IPv6 and TLS."""

from __future__ import annotations

import contextlib
import copy
import json
import re
import socket
import ssl
import sys
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import trustme
from command import Outcome, run_main
from conftest import require
from peers import Peer, PeerFailed, TlsFiles, client_context, run_pynetdicom, run_storescp, server_context
from pynetdicom.events import EVT_CONN_OPEN, Event
from rawpeer import closed_port, split_pdus

import dicom_echo as echo
from dicom_echo import Phase

Capsys = pytest.CaptureFixture[str]

SUCCESS = Outcome(0, "✅ Success\n", "")
REJECTED = """\
❌ Rejected: called AE title not recognized
   while associating with WRONG@{host_port} as ECHOSCU: rejected-permanent, service-user, reason 7
   hint: the peer does not answer to "WRONG"; use the AE title that is configured on it: AE@HOST:PORT or \
-aec AE (upper and lower case count)
"""
UID = r"[0-9]+(\.[0-9]+)+"


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)


def probe_json(capsys: Capsys, *arguments: object) -> tuple[int, dict[str, Any]]:
    """Exit code and JSON object of an echo."""
    outcome = run_main(capsys, "--format", "json", *arguments)
    assert outcome.err == ""
    result: dict[str, Any] = json.loads(outcome.out)
    return outcome.code, result


def rows(text: str) -> dict[str, str]:
    """What -v prints, by the first word of each row."""
    return dict(line.split(None, 1) for line in text.splitlines()[1:])


# --- Success ---------------------------------------------------------------------------------------------------------


def test_send(real_peer: Peer) -> None:
    assert echo.send(real_peer.address) == 0


def test_the_command(capsys: Capsys, real_peer: Peer) -> None:
    assert run_main(capsys, real_peer.address) == SUCCESS


def test_title_as_option(capsys: Capsys, real_peer: Peer) -> None:
    assert run_main(capsys, "-aec", real_peer.ae_title, real_peer.host_port) == SUCCESS
    assert run_main(capsys, "-aec", real_peer.ae_title, f"WRONG@{real_peer.host_port}") == SUCCESS


def test_the_result(real_peer: Peer) -> None:
    result = echo.probe(real_peer.address, message_id=4711)
    assert (result.ok, result.status, result.error, result.notes) == (True, 0, None, ())
    assert list(result.timings) == [Phase.resolve, Phase.connect, Phase.associate, Phase.echo, Phase.release]
    assert (result.called_ae_title, result.message_id) == (real_peer.ae_title, 4711)
    assert (result.remote, result.tls) == (real_peer.host_port, None)
    assert result.peer is not None
    assert re.fullmatch(UID, result.peer.implementation_class_uid or "")
    assert result.peer.implementation_version_name
    assert (result.peer.max_pdu or 0) >= 4096
    assert result.peer.transfer_syntax in ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1")


def test_ten_echoes_in_a_row(real_peer: Peer) -> None:
    assert {echo.send(real_peer.address) for _ in range(10)} == {0}


def test_ipv6(capsys: Capsys, ipv6_peer: Peer) -> None:
    assert ipv6_peer.host_port.startswith("[::1]:")
    assert echo.send(ipv6_peer.address) == 0
    assert run_main(capsys, ipv6_peer.address) == SUCCESS
    assert run_main(capsys, "-6", ipv6_peer.host_port) == SUCCESS
    assert run_main(capsys, "--source", "::1", ipv6_peer.host_port) == SUCCESS


def test_ipv6_is_shown_in_brackets(capsys: Capsys, ipv6_peer: Peer) -> None:
    code, result = probe_json(capsys, ipv6_peer.address)
    assert code == 0
    assert (result["host"], result["port"]) == ("::1", ipv6_peer.port)
    assert result["remote"] == ipv6_peer.host_port
    assert re.fullmatch(r"\[::1\]:\d+", result["local"])
    assert result["target"] == ipv6_peer.address


def test_a_bare_ipv6_address_has_the_default_port(capsys: Capsys, ipv6: str) -> None:
    _, result = probe_json(capsys, "-6", "-t", "1", ipv6)  # whatever listens there, or nothing
    assert (result["host"], result["port"], result["remote"]) == ("::1", 104, "[::1]:104")


@pytest.mark.parametrize("options", [[], ["-4"]], ids=str)
def test_a_name_that_resolves(capsys: Capsys, real_peer: Peer, options: list[str]) -> None:
    """The peers listen on IPv4 only: where localhost is ::1 first, that refuses, and the next address is tried."""
    code, result = probe_json(capsys, *options, f"{real_peer.ae_title}@localhost:{real_peer.port}")
    assert code == 0
    assert (result["host"], result["remote"]) == ("localhost", f"127.0.0.1:{real_peer.port}")


# --- Titles ----------------------------------------------------------------------------------------------------------


def test_a_wrong_called_title_is_rejected(capsys: Capsys, strict_peer: Peer) -> None:
    expected = Outcome(1, REJECTED.format(host_port=strict_peer.host_port), "")
    assert run_main(capsys, f"WRONG@{strict_peer.host_port}") == expected
    assert run_main(capsys, "-aec", "WRONG", strict_peer.host_port) == expected


def test_the_default_title_is_a_wrong_one_too(capsys: Capsys, strict_peer: Peer) -> None:
    assert run_main(capsys, strict_peer.host_port).code == 1


def test_a_rejection_as_an_exception(strict_peer: Peer) -> None:
    with pytest.raises(echo.Rejected, match=r"^called AE title not recognized$") as caught:
        echo.send(strict_peer.host_port, "WRONG")
    assert (caught.value.result, caught.value.source, caught.value.reason) == (1, 1, 7)
    assert caught.value.phase == Phase.associate


def test_any_called_title_is_taken(capsys: Capsys, lenient_peer: Peer) -> None:
    assert run_main(capsys, f"WRONG@{lenient_peer.host_port}") == SUCCESS
    assert run_main(capsys, lenient_peer.host_port) == SUCCESS


def test_a_title_with_an_at_sign_and_a_space(capsys: Capsys, lenient_peer: Peer) -> None:
    assert run_main(capsys, f"MY @PACS@{lenient_peer.host_port}") == SUCCESS


def test_a_long_calling_title(capsys: Capsys, real_peer: Peer) -> None:
    assert run_main(capsys, "-aet", "SIXTEEN-LETTERS!", real_peer.address) == SUCCESS


# --- Options ---------------------------------------------------------------------------------------------------------


def test_verbose(capsys: Capsys, real_peer: Peer) -> None:
    code, out, err = run_main(capsys, "-v", real_peer.address)
    assert (code, err) == (0, "")
    assert out.startswith("✅ Success\n")
    shown = rows(out)
    for phase in ("resolve", "connect", "associate", "echo", "release"):
        assert re.fullmatch(r"\d+\.\d\d ms +█+", shown[phase])
    assert re.fullmatch(r"\d+\.\d\d ms", shown["total"])
    assert re.fullmatch(r"ECHOSCU at 127\.0\.0\.1:\d+", shown["from"])
    assert shown["to"].startswith(f"{real_peer.ae_title} at {real_peer.host_port}")
    assert re.fullmatch(rf"\S+ \({UID}\)", shown["peer"])
    assert re.fullmatch(rf"maximum PDU length \d+ bytes, transfer syntax (im|ex)plicit \({UID}\)", shown["accepted"])
    assert "tls" not in shown
    assert "note" not in shown


def test_debug_dumps_every_pdu(capsys: Capsys, real_peer: Peer) -> None:
    code, out, err = run_main(capsys, "-d", real_peer.address)
    assert code == 0
    assert out.startswith("✅ Success\n")
    heads = re.findall(r"^(sent|received) ([A-Z-]+), \d+ bytes, (?:to|from) .*$", err, flags=re.MULTILINE)
    assert heads[:3] == [("sent", "A-ASSOCIATE-RQ"), ("received", "A-ASSOCIATE-AC"), ("sent", "P-DATA-TF")]
    assert ("received", "P-DATA-TF") in heads
    assert heads[-2:] == [("sent", "A-RELEASE-RQ"), ("received", "A-RELEASE-RP")]
    assert re.search(rf"^ +Called AET: +{real_peer.ae_title}$", err, flags=re.MULTILINE)
    assert "Result/Reason: Accepted" in err
    dumped = bytes.fromhex("".join(re.findall(r"^  [0-9a-f]{4,}  ((?:[0-9a-f]{2} ?)+)", err, flags=re.MULTILINE)))
    pdus, rest = split_pdus(dumped)
    assert (len(pdus), rest) == (len(heads), b"")
    assert real_peer.ae_title.ljust(16).encode() in pdus[0].body


SYNTAXES = {
    "implicit": "1.2.840.10008.1.2",
    "explicit": "1.2.840.10008.1.2.1",
    "deflated": "1.2.840.10008.1.2.1.99",
    "big-endian": "1.2.840.10008.1.2.2",
}
EVERYWHERE = {"implicit", "explicit", "big-endian"}


@pytest.mark.parametrize("name", SYNTAXES)
def test_each_transfer_syntax(capsys: Capsys, real_peer: Peer, name: str) -> None:
    code, result = probe_json(capsys, "--transfer-syntax", name, real_peer.address)
    if name not in EVERYWHERE and code:
        assert (result["error"]["kind"], result["error"]["result"], code) == ("not-supported", 4, 1)
    else:
        assert (code, result["peer"]["transfer_syntax"]) == (0, SYNTAXES[name])


def test_a_transfer_syntax_that_nobody_offers_for_an_echo(capsys: Capsys, real_peer: Peer) -> None:
    code, out, err = run_main(capsys, "--transfer-syntax", "1.2.840.10008.1.2.4.50", real_peer.address)
    assert (code, err) == (1, "")
    assert out.splitlines()[:2] == [
        "❌ Not supported: transfer syntaxes not supported",
        f"   while associating with {real_peer.address} as ECHOSCU: presentation context result 4",
    ]


def test_several_transfer_syntaxes(capsys: Capsys, real_peer: Peer) -> None:
    options = ["--transfer-syntax", "1.2.840.10008.1.2.4.50", "--transfer-syntax", "big-endian"]
    code, result = probe_json(capsys, *options, real_peer.address)
    assert (code, result["peer"]["transfer_syntax"]) == (0, SYNTAXES["big-endian"])


def test_abort_instead_of_release(capsys: Capsys, real_peer: Peer) -> None:
    code, out, err = run_main(capsys, "-d", "--abort", real_peer.address)
    assert (code, out.splitlines()[0]) == (0, "✅ Success")
    heads = re.findall(r"^(?:sent|received) [A-Z-]+", err, flags=re.MULTILINE)
    assert heads[-1] == "sent A-ABORT"
    assert "sent A-RELEASE-RQ" not in heads
    assert "note" not in rows(out)
    assert run_main(capsys, real_peer.address) == SUCCESS


@pytest.mark.parametrize("max_pdu", [0, 16, 30, 4096, 131072, 4294967295])
def test_every_maximum_pdu_length(capsys: Capsys, real_peer: Peer, max_pdu: int) -> None:
    assert run_main(capsys, "--max-pdu", max_pdu, real_peer.address) == SUCCESS


@pytest.mark.parametrize("message_id", [0, 1, 65535])
def test_message_ids_at_the_edges(real_peer: Peer, message_id: int) -> None:
    assert echo.send(real_peer.address, message_id=message_id) == 0


@pytest.mark.parametrize(
    "source",
    [
        "127.0.0.1",
        pytest.param(
            "127.0.0.2", marks=pytest.mark.skipif(sys.platform != "linux", reason="only Linux has all of 127/8")
        ),
    ],
)
def test_the_peer_sees_the_source(capsys: Capsys, source: str) -> None:
    seen = []

    def opened(event: Event) -> None:
        seen.append(event.address[0])  # type: ignore[attr-defined]  # each kind of event has its own

    with run_pynetdicom(handlers=[(EVT_CONN_OPEN, opened)]) as peer:
        code, result = probe_json(capsys, "--source", source, peer.address)
    assert code == 0
    assert seen == [source]
    assert result["local"].rpartition(":")[0] == source


def test_source_works_with_every_peer(capsys: Capsys, real_peer: Peer) -> None:
    assert run_main(capsys, "--source", "127.0.0.1", real_peer.address) == SUCCESS


def test_the_worst_of_two_peers_is_the_exit_code(capsys: Capsys, storescp: Peer, dcmqrscp: Peer) -> None:
    wrong = f"WRONG@{dcmqrscp.host_port}"
    assert run_main(capsys, storescp.address, dcmqrscp.address).code == 0
    assert run_main(capsys, storescp.address, wrong).code == 1
    assert run_main(capsys, wrong, storescp.address).code == 1
    with closed_port() as nobody:
        assert run_main(capsys, nobody.address, wrong, storescp.address).code == 3
        assert run_main(capsys, storescp.address, wrong, nobody.address).code == 3


# --- TLS -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def storescp_tls(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    """DCMTK's storescp over TLS; it does not ask for a client certificate."""
    folder: Path = tmp_path_factory.mktemp("storescp_tls")
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    certificate.private_key_pem.write_to_path(str(folder / "key.pem"))
    certificate.cert_chain_pems[0].write_to_path(str(folder / "cert.pem"))
    program = require("storescp", "dcmtk")
    options = ["--enable-tls", str(folder / "key.pem"), str(folder / "cert.pem"), "--ignore-peer-cert"]
    with contextlib.ExitStack() as stack:
        try:
            yield stack.enter_context(run_storescp(program, folder, *options))
        except PeerFailed as error:
            if "nknown option" in str(error):
                pytest.skip("this storescp was built without TLS")
            raise


@pytest.fixture(params=["tls_scp", "storescp_tls"])
def tls_peer(request: pytest.FixtureRequest) -> Peer:
    """Each real peer that speaks TLS and asks for no certificate."""
    peer: Peer = request.getfixturevalue(request.param)
    return peer


def test_tls(capsys: Capsys, tls_peer: Peer, tls_files: TlsFiles) -> None:
    assert run_main(capsys, "--tls", "--cacert", tls_files.authority, tls_peer.address) == SUCCESS


def test_tls_by_name(capsys: Capsys, tls_peer: Peer, tls_files: TlsFiles) -> None:
    address = f"{tls_peer.ae_title}@localhost:{tls_peer.port}"
    assert run_main(capsys, "--tls", "--cacert", tls_files.authority, address) == SUCCESS


def test_tls_from_python(tls_peer: Peer, tls_files: TlsFiles) -> None:
    result = echo.probe(tls_peer.address, tls=client_context(tls_files))
    assert result.ok
    assert list(result.timings) == list(Phase)
    assert result.tls is not None
    assert re.fullmatch(r"TLSv1\.[23]", result.tls.version)
    assert result.tls.cipher
    assert result.tls.certificate_expiry is not None
    assert result.tls.certificate_expiry.utcoffset() == timedelta(0)
    assert result.tls.certificate_expiry > datetime.now(timezone.utc)
    assert result.tls.certificate_verified


def test_the_default_port_over_tls_is_2762() -> None:
    context = ssl.create_default_context()
    assert echo.probe("no-such-host.invalid", tls=context).port == 2762
    assert echo.probe("no-such-host.invalid").port == 104


def test_verbose_tells_of_tls(capsys: Capsys, tls_peer: Peer, tls_files: TlsFiles) -> None:
    code, out, err = run_main(capsys, "--tls", "--cacert", tls_files.authority, "-v", tls_peer.address)
    assert (code, err) == (0, "")
    lines = [line.split(None, 1) for line in out.splitlines()[1:]]
    phase, about = (rest for word, rest in lines if word == "tls")
    assert re.fullmatch(r"\d+\.\d\d ms +█+", phase)
    assert re.fullmatch(r"TLSv1\.[23], [A-Z0-9_-]+, certificate valid until \d{4}-\d\d-\d\d \d\d:\d\d UTC", about)


def test_json_tells_of_tls(capsys: Capsys, tls_peer: Peer, tls_files: TlsFiles) -> None:
    code, result = probe_json(capsys, "--tls", "--cacert", tls_files.authority, tls_peer.address)
    assert code == 0
    assert list(result["phases_ms"]) == ["resolve", "connect", "tls", "associate", "echo", "release"]
    tls = result["tls"]
    assert set(tls) == {
        "version", "cipher", "certificate_expiry", "certificate_verified", "subject", "issuer", "names",
    }  # fmt: skip
    assert tls["version"] in ("TLSv1.2", "TLSv1.3")
    assert tls["cipher"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", tls["certificate_expiry"])


def test_a_certificate_that_is_not_trusted(capsys: Capsys, tls_peer: Peer) -> None:
    code, out, err = run_main(capsys, "--tls", tls_peer.address)
    first, second, third = out.splitlines()
    assert (code, err) == (3, "")
    assert first == "❌ TLS failed: certificate not trusted"
    assert second.startswith(f"   while negotiating TLS with {tls_peer.host_port}: ")
    assert third.startswith("   hint: pass the issuing CA with --cacert FILE, ")


def test_tls_failures_are_errors_of_their_kind(tls_peer: Peer) -> None:
    with pytest.raises(echo.TLSFailed, match=r"^certificate not trusted$") as caught:
        echo.send(tls_peer.address, tls=ssl.create_default_context())
    assert caught.value.phase == Phase.tls


@contextlib.contextmanager
def tls_server(context: ssl.SSLContext, *, hang_up: bool) -> Iterator[str]:
    """Something that speaks TLS but not DICOM: it hangs up after the first bytes, or says nothing."""
    stopping = threading.Event()

    def serve(listener: socket.socket) -> None:
        with contextlib.suppress(OSError), listener.accept()[0] as plain:
            plain.settimeout(5)
            with context.wrap_socket(plain, server_side=True) as secured:
                secured.recv(1000)
                if not hang_up:
                    stopping.wait(20)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=[listener])
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            stopping.set()
            thread.join()


@pytest.mark.parametrize(
    ("hang_up", "kind", "hint"),
    [
        (True, "lost", "the peer hung up after the TLS handshake: it may want a client certificate"),
        (False, "timeout", "TLS is up but nothing answers: the peer may hang or be overloaded"),
    ],
)
def test_no_hint_asks_for_tls_where_it_is_spoken(
    authority: trustme.CA, tls_files: TlsFiles, hang_up: bool, kind: str, hint: str
) -> None:
    with tls_server(server_context(authority), hang_up=hang_up) as address:
        result = echo.probe(address, tls=client_context(tls_files), timeout=2)
    assert result.error is not None
    assert (result.kind, result.error.phase) == (kind, Phase.associate)
    assert result.error.hint.startswith(hint)
    assert copy.deepcopy(result.error).hint == result.error.hint


def test_the_right_server_name(capsys: Capsys, tls_peer: Peer, tls_files: TlsFiles) -> None:
    options = ["--tls", "--cacert", tls_files.authority, "--server-name", "localhost"]
    assert run_main(capsys, *options, tls_peer.address) == SUCCESS


@pytest.mark.parametrize("option", ["-k", "--insecure"])
def test_without_verification(capsys: Capsys, tls_peer: Peer, option: str) -> None:
    code, out, err = run_main(capsys, "--tls", option, "-v", tls_peer.address)
    assert (code, err) == (0, "")
    assert out.startswith("✅ Success\n")
    assert re.search(r", certificate not verified, valid until \d{4}-\d\d-\d\d \d\d:\d\d UTC$", out, re.MULTILINE)


@pytest.mark.parametrize("expiry", ["1999-12-31 23:59:58", "2049-12-31 23:59:59", "2050-01-01 00:00:00", "9999-12-31"])
@pytest.mark.parametrize("verified", [False, True])
def test_the_expiry_is_that_of_the_certificate(
    authority: trustme.CA, tls_files: TlsFiles, expiry: str, verified: bool
) -> None:
    """Verified or not, in each of the two forms that X.509 has for a time."""
    last = datetime.fromisoformat(expiry)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate = authority.issue_cert("127.0.0.1", not_before=datetime(1990, 1, 1), not_after=last)
    certificate.configure_cert(context)
    ours = client_context(tls_files)
    if not verified:
        ours.check_hostname, ours.verify_mode = False, ssl.CERT_NONE
    with tls_server(context, hang_up=True) as address:
        tls = echo.probe(address, tls=ours, timeout=5).tls
    if verified and last.year < 2000:
        assert tls is None
    else:
        assert tls is not None
        assert (tls.certificate_expiry, tls.certificate_verified) == (last.replace(tzinfo=timezone.utc), verified)


def test_a_client_certificate_is_wanted(capsys: Capsys, mutual_tls_scp: Peer, tls_files: TlsFiles) -> None:
    """Under TLS 1.3, the client is through with the handshake before the server finds the certificate missing."""
    code, out, err = run_main(capsys, "--tls", "--cacert", tls_files.authority, mutual_tls_scp.address)
    first, second, third = out.splitlines()
    assert (code, err) == (3, "")
    assert first == "❌ TLS failed: the peer wants a client certificate"
    assert second.startswith(f"   while associating with {mutual_tls_scp.address} as ECHOSCU: ")
    assert third == "   hint: present a client certificate: --cert FILE --key FILE"


def test_a_client_certificate_is_wanted_over_tls_1_2(mutual_tls_scp: Peer, tls_files: TlsFiles) -> None:
    context = client_context(tls_files)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    error = echo.probe(mutual_tls_scp.address, tls=context).error
    assert isinstance(error, echo.TLSFailed)
    assert error.phase == Phase.tls
    assert "--cert" in error.hint


def test_a_client_certificate_is_given(capsys: Capsys, mutual_tls_scp: Peer, tls_files: TlsFiles) -> None:
    options = ["--tls", "--cacert", tls_files.authority, "--cert", tls_files.certificate, "--key", tls_files.key]
    assert run_main(capsys, *options, mutual_tls_scp.address) == SUCCESS


def test_certificate_and_key_in_one_file(
    capsys: Capsys, mutual_tls_scp: Peer, tls_files: TlsFiles, tmp_path: Path
) -> None:
    both = tmp_path / "both.pem"
    both.write_bytes(tls_files.certificate.read_bytes() + tls_files.key.read_bytes())
    options = ["--tls", "--cacert", tls_files.authority, "--cert", both]
    assert run_main(capsys, *options, mutual_tls_scp.address) == SUCCESS


def test_a_client_certificate_of_a_stranger(
    capsys: Capsys, mutual_tls_scp: Peer, tls_files: TlsFiles, tmp_path: Path
) -> None:
    stranger = tmp_path / "stranger.pem"
    trustme.CA().issue_cert("stranger.test").private_key_and_cert_chain_pem.write_to_path(str(stranger))
    options = ["--tls", "--cacert", tls_files.authority, "--cert", stranger]
    code, out, err = run_main(capsys, *options, mutual_tls_scp.address)
    assert (code, err) == (3, "")
    assert out.startswith("❌ TLS failed: the peer does not trust our certificate\n")
    assert "   hint: have the peer trust the CA that issued it, " in out


def test_tls_on_a_plain_port(capsys: Capsys, real_peer: Peer) -> None:
    code, out, err = run_main(capsys, "--tls", real_peer.address)
    first, second, third = out.splitlines()
    assert (code, err) == (3, "")
    assert first in ("❌ TLS failed: the peer does not speak TLS", "❌ TLS failed: closed during the handshake")
    assert second.startswith(f"   while negotiating TLS with {real_peer.host_port}: ")
    assert third.startswith(
        ("   hint: the port does not speak TLS: drop --tls", "   hint: the port may not speak TLS (try without --tls)")
    )


def test_no_error_numbers_of_the_system_are_shown(capsys: Capsys, real_peer: Peer) -> None:
    assert "[Errno" not in run_main(capsys, "--tls", real_peer.address).out


def test_a_plain_echo_on_a_tls_port(capsys: Capsys, tls_peer: Peer) -> None:
    """The peer closes, resets or sends a TLS alert: each is answered with the same advice."""
    code, out, err = run_main(capsys, tls_peer.address)
    assert code in (1, 3)
    assert err == ""
    assert "try --tls" in out.splitlines()[-1]


def test_debug_over_tls_shows_plain_pdus(capsys: Capsys, tls_peer: Peer, tls_files: TlsFiles) -> None:
    code, _, err = run_main(capsys, "-d", "--tls", "--cacert", tls_files.authority, tls_peer.address)
    assert code == 0
    assert "sent A-ASSOCIATE-RQ" in err
    assert "received A-RELEASE-RP" in err
