"""Real peers: pynetdicom, DCMTK's storescp and dcmqrscp, Orthanc; over IPv4, IPv6 and TLS."""

from __future__ import annotations

import contextlib
import json
import logging
import pickle
import re
import ssl
import sys
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
import trustme
from command import Outcome, run_main
from conftest import each_of, require
from peers import Peer, PeerFailed, TlsFiles, client_context, run_dcmqrscp, run_pynetdicom, run_storescp
from pynetdicom.events import EVT_CONN_OPEN, EVT_USER_ID, Event
from rawpeer import split_pdus

import dicom_echo as echo
from dicom_echo import Phase

Capsys = pytest.CaptureFixture[str]

SUCCESS = Outcome(0, "✅ Success\n", "")
REJECTED = """\
❌ Rejected: called AE title not recognized
   while associating with WRONG@{host_port} as ECHOSCU: rejected-permanent, service-user, reason 7
   hint: check the called AE title "WRONG" (upper and lower case may count); some peers answer the same when they do \
not admit the calling AE title "ECHOSCU" (-aet) or this host, 127.0.0.1
"""
UID = r"[0-9]+(\.[0-9]+)+"
HEAD = r"^\S+ \S+ (sent|received) ([A-Z-]+), \d+ bytes, (?:to|from) .*$"


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


# --- Success ---------------------------------------------------------------------------------------------------------


def test_send(real_peer: Peer) -> None:
    assert {echo.send(real_peer.address) for _ in range(10)} == {0}
    assert {echo.send(real_peer.address, message_id=message_id) for message_id in (0, 1, 65535)} == {0}


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


def test_the_command(capsys: Capsys, real_peer: Peer) -> None:
    for options in ([], ["-aet", "SIXTEEN-LETTERS!"], ["--source", "127.0.0.1"]):
        assert run_main(capsys, *options, real_peer.address) == SUCCESS
    for max_pdu in (0, 16, 30, 4096, 131072, 4294967295):
        assert run_main(capsys, "--max-pdu", max_pdu, real_peer.address) == SUCCESS
    for address in (real_peer.host_port, f"WRONG@{real_peer.host_port}"):
        assert run_main(capsys, "-aec", real_peer.ae_title, address) == SUCCESS
    # The peers listen on IPv4 only: where localhost is ::1 first, that refuses, and the next address is tried.
    for family in ([], ["-4"]):
        code, result = probe_json(capsys, *family, f"{real_peer.ae_title}@localhost:{real_peer.port}")
        assert (code, result["host"], result["remote"]) == (0, "localhost", f"127.0.0.1:{real_peer.port}")


def test_ipv6(capsys: Capsys, ipv6_peer: Peer) -> None:
    for options in ([], ["-6"], ["--source", "::1"]):
        code, result = probe_json(capsys, *options, ipv6_peer.address)
        assert (code, result["host"], result["port"]) == (0, "::1", ipv6_peer.port)
        assert (result["remote"], result["target"]) == (f"[::1]:{ipv6_peer.port}", ipv6_peer.address)
        assert re.fullmatch(r"\[::1\]:\d+", result["local"])


def test_what_is_shown(capsys: Capsys, real_peer: Peer) -> None:
    """With -d, which shows what -v does, and every PDU."""
    code, out, err = run_main(capsys, "-d", real_peer.address)
    headline, *rows = out.splitlines()
    shown = dict(row.split(None, 1) for row in rows)
    assert (code, headline) == (0, "✅ Success")
    for phase in ("resolve", "connect", "associate", "echo", "release"):
        assert re.fullmatch(r"\d+\.\d\d ms +█+", shown[phase])
    assert re.fullmatch(r"\d+\.\d\d ms", shown["total"])
    assert re.fullmatch(r"ECHOSCU at 127\.0\.0\.1:\d+", shown["from"])
    assert shown["to"].startswith(f"{real_peer.ae_title} at {real_peer.host_port}")
    assert re.fullmatch(rf"\S+ \({UID}\)", shown["peer"])
    assert re.fullmatch(rf"maximum PDU length \d+ bytes, transfer syntax (im|ex)plicit \({UID}\)", shown["accepted"])
    assert not {"tls", "note"} & shown.keys()
    heads = re.findall(HEAD, err, flags=re.MULTILINE)
    assert heads[:3] == [("sent", "A-ASSOCIATE-RQ"), ("received", "A-ASSOCIATE-AC"), ("sent", "P-DATA-TF")]
    assert ("received", "P-DATA-TF") in heads
    assert heads[-2:] == [("sent", "A-RELEASE-RQ"), ("received", "A-RELEASE-RP")]
    assert f'called AE title "{real_peer.ae_title}", calling AE title "ECHOSCU"' in err
    dumped = bytes.fromhex("".join(re.findall(r"^  [0-9a-f]{4,}  ((?:[0-9a-f]{2} ?)+)", err, flags=re.MULTILINE)))
    pdus, rest = split_pdus(dumped)
    assert (len(pdus), rest) == (len(heads), b"")
    assert real_peer.ae_title.ljust(16).encode() in pdus[0].body


SYNTAXES = {
    "implicit": "1.2.840.10008.1.2",
    "explicit": "1.2.840.10008.1.2.1",
    "big-endian": "1.2.840.10008.1.2.2",
    "deflated": "1.2.840.10008.1.2.1.99",  # not accepted everywhere
}
JPEG = "1.2.840.10008.1.2.4.50"  # accepted by nobody for an echo


def test_transfer_syntaxes(capsys: Capsys, real_peer: Peer) -> None:
    for name, uid in SYNTAXES.items():
        code, result = probe_json(capsys, "--transfer-syntax", name, real_peer.address)
        if name == "deflated" and code:
            assert (result["error"]["kind"], result["error"]["result"], code) == ("not-supported", 4, 1)
        else:
            assert (code, result["peer"]["transfer_syntax"]) == (0, uid)
    options = ["--transfer-syntax", JPEG, "--transfer-syntax", "big-endian"]
    code, result = probe_json(capsys, *options, real_peer.address)
    assert (code, result["peer"]["transfer_syntax"]) == (0, SYNTAXES["big-endian"])
    code, out, err = run_main(capsys, *options[:2], real_peer.address)
    assert (code, err) == (1, "")
    assert out.startswith(
        "❌ Not supported: transfer syntaxes not supported\n"
        f"   while associating with {real_peer.address} as ECHOSCU: presentation context result 4\n"
    )


def test_abort_instead_of_release(capsys: Capsys, real_peer: Peer) -> None:
    code, out, err = run_main(capsys, "-d", "--abort", real_peer.address)
    assert (code, out.splitlines()[0], "\n   note " in out) == (0, "✅ Success", False)
    heads = re.findall(HEAD, err, flags=re.MULTILINE)
    assert heads[-1] == ("sent", "A-ABORT")
    assert ("sent", "A-RELEASE-RQ") not in heads
    assert run_main(capsys, real_peer.address) == SUCCESS


def test_the_peer_sees_the_source(capsys: Capsys) -> None:
    seen: list[str] = []

    def opened(event: Event) -> None:
        seen.append(event.address[0])  # type: ignore[attr-defined]  # each kind of event has its own

    sources = ["127.0.0.1", *["127.0.0.2"] * (sys.platform == "linux")]  # only Linux has all of 127/8
    with run_pynetdicom(handlers=[(EVT_CONN_OPEN, opened)]) as peer:
        shown = [probe_json(capsys, "--source", source, peer.address) for source in sources]
    assert [(code, result["local"].rpartition(":")[0]) for code, result in shown] == [(0, source) for source in sources]
    assert seen == sources


# --- Titles ----------------------------------------------------------------------------------------------------------


def test_a_wrong_called_title_is_rejected(capsys: Capsys, strict_peer: Peer) -> None:
    expected = Outcome(1, REJECTED.format(host_port=strict_peer.host_port), "")
    assert run_main(capsys, f"WRONG@{strict_peer.host_port}") == expected
    assert run_main(capsys, "-aec", "WRONG", strict_peer.host_port) == expected
    assert run_main(capsys, strict_peer.host_port).code == 1  # the default title
    with pytest.raises(echo.Rejected, match=r"^called AE title not recognized$") as caught:
        echo.send(strict_peer.host_port, "WRONG")
    assert (caught.value.result, caught.value.source, caught.value.reason) == (1, 1, 7)
    assert caught.value.phase == Phase.associate


def test_any_called_title_is_taken(capsys: Capsys, lenient_peer: Peer) -> None:
    for title in ("WRONG@", "", "MY @PACS@"):
        assert run_main(capsys, f"{title}{lenient_peer.host_port}") == SUCCESS


def test_the_hint_names_both_titles_where_the_peer_means_the_calling_one(
    capsys: Capsys, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """dcmqrscp, which knows who is called but not who calls, says that it does not know who is called."""
    program, folder = require("dcmqrscp", "dcmtk"), tmp_path_factory.mktemp("dcmqrscp_admitting")
    with run_dcmqrscp(program, folder, admits="MODALITY") as peer:
        code, result = probe_json(capsys, "-aet", "STRANGER", peer.address)
        assert run_main(capsys, "-aet", "MODALITY", peer.address) == SUCCESS
    assert (code, result["error"]["message"]) == (1, "called AE title not recognized")
    assert all(word in result["error"]["hint"] for word in ('"QRSCP"', '"STRANGER"', "-aet"))


def test_a_peer_that_does_not_know_who_calls() -> None:
    with run_pynetdicom(admits=["MODALITY"]) as peer:
        error = echo.probe(peer.address, calling_ae_title="STRANGER").error
        assert echo.send(peer.address, calling_ae_title="MODALITY") == 0
    assert isinstance(error, echo.Rejected)
    assert (str(error), error.reason) == ("calling AE title not recognized", 3)
    assert all(word in error.hint for word in ('"STRANGER"', "127.0.0.1", "-aet"))


# --- User identity ---------------------------------------------------------------------------------------------------

SECRET = "open-sesame-4711"
IDENTITIES: dict[str, tuple[int, dict[str, str]]] = {
    "user": (1, {"user": SECRET}),
    "password": (2, {"user": "me", "password": SECRET}),
    "kerberos": (3, {"kerberos": SECRET}),
    "saml": (4, {"saml": SECRET}),
    "jwt": (5, {"jwt": SECRET}),
}


@pytest.mark.parametrize(
    ("kind", "answer", "shown"),
    [
        *((kind, (True, b"welcome"), "accepted") for kind in ("kerberos", "saml", "jwt")),
        *((kind, (True, b"welcome"), "not stated") for kind in ("user", "password")),  # pynetdicom does not confirm it
        ("jwt", (True, None), "not stated"),
        ("password", (False, None), None),
        ("password", None, "not stated"),
    ],
)
def test_a_user_identity_and_nothing_of_it_in_what_is_kept_or_shown(
    capsys: Capsys, caplog: pytest.LogCaptureFixture, tmp_path: Path, kind: str, answer: Any, shown: str | None
) -> None:
    number, parts = IDENTITIES[kind]
    seen = list[tuple[Any, ...]]()

    def on_identity(event: Any) -> Any:
        seen.append((event.user_id_type, event.primary_field, event.secondary_field or b""))
        return answer

    handlers: list[Any] = [] if answer is None else [(EVT_USER_ID, on_identity)]
    identity = echo.Identity(**parts)
    options: list[object] = []
    for name, value in parts.items():
        (tmp_path / name).write_text(value)
        options += ["--user", value] if name == "user" else [f"--{name}-file", tmp_path / name]
    with run_pynetdicom(handlers=handlers) as peer, caplog.at_level(logging.DEBUG, logger="dicom_echo"):
        result = echo.probe(peer.address, identity=identity)
        [many] = echo.probe_many([peer.address], identity=identity)
        texts = [run_main(capsys, *extra, *options, peer.address) for extra in (["-d"], ["--format", "json"])]
    values = [value.encode() for value in parts.values()]
    assert seen[:1] == ([(number, values[0], values[1] if number == 2 else b"")] if answer else [])
    assert result.kind == many.kind == ("ok" if shown else "rejected")
    assert {text.code for text in texts} == {0 if shown else 1}
    assert (result.peer and result.peer.user_identity) == shown
    assert not result.error or "identity" in result.error.hint
    kept = [repr(result), str(result.error), json.dumps(result.to_dict()), caplog.text, *map(str, texts)]
    hexed = SECRET.encode().hex(" ")
    assert [text for text in kept if SECRET in text or hexed[:20] in text] == []
    assert SECRET.encode() not in pickle.dumps(result)


# --- TLS; more of it in test_tls -------------------------------------------------------------------------------------


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


tls_peer = each_of("tls_scp", "storescp_tls")  # those that ask for no certificate


def test_tls(capsys: Capsys, tls_peer: Peer, tls_files: TlsFiles) -> None:
    options = ["--tls", "--cacert", tls_files.authority]
    assert run_main(capsys, *options, f"{tls_peer.ae_title}@localhost:{tls_peer.port}") == SUCCESS
    for name in ("localhost", "localhost."):
        assert run_main(capsys, *options, "--server-name", name, tls_peer.address) == SUCCESS
    assert run_main(capsys, *options, "--server-name", "pacs.example", tls_peer.address).code == 3
    assert run_main(capsys, "--tls", tls_peer.address).out.startswith("❌ TLS failed: certificate not trusted\n")
    assert run_main(capsys, "--tls", "-k", tls_peer.address) == SUCCESS
    for reuse in ([], ["--reuse"]):
        assert "3 sent, 3 succeeded" in run_main(capsys, *options, "-c", 3, "-i", 0, *reuse, tls_peer.address).out
    code, _, err = run_main(capsys, "-d", *options, tls_peer.address)
    heads = re.findall(HEAD, err, flags=re.MULTILINE)  # of plain PDUs
    assert (code, heads[0], heads[-1]) == (0, ("sent", "A-ASSOCIATE-RQ"), ("received", "A-RELEASE-RP"))


def test_tls_from_python(tls_peer: Peer, tls_files: TlsFiles) -> None:
    result = echo.probe(tls_peer.address, tls=client_context(tls_files))
    assert result.ok
    assert list(result.timings) == list(Phase)
    assert result.tls is not None
    assert re.fullmatch(r"TLSv1\.[23]", result.tls.version)
    assert result.tls.cipher
    assert result.tls.certificate_verified
    assert result.tls.certificate_expiry is not None
    assert result.tls.certificate_expiry > datetime.now(timezone.utc)
    assert [each.ok for each in echo.probe_many([tls_peer.address] * 3, tls=client_context(tls_files))] == [True] * 3
    with pytest.raises(echo.TLSFailed, match=r"^certificate not trusted$") as caught:
        echo.send(tls_peer.address, tls=ssl.create_default_context())
    assert caught.value.phase == Phase.tls


def test_tls_on_a_plain_port(capsys: Capsys, real_peer: Peer) -> None:
    code, out, err = run_main(capsys, "--tls", real_peer.address)
    headline, circumstances, *_ = out.splitlines()
    assert (code, err) == (3, "")
    assert headline in ("❌ TLS failed: the peer does not speak TLS", "❌ TLS failed: closed during the handshake")
    assert circumstances.startswith(f"   while negotiating TLS with {real_peer.host_port}: ")
    assert "--tls" in out
    assert "[Errno" not in out


def test_a_plain_echo_on_a_tls_port(capsys: Capsys, tls_peer: Peer) -> None:
    """The peer closes, resets or sends a TLS alert: each is answered with the same advice."""
    code, out, err = run_main(capsys, tls_peer.address)
    assert (code in (1, 3), err) == (True, "")
    assert "try --tls" in out
