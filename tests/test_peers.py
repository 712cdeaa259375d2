"""Real peers: pynetdicom, DCMTK's storescp and dcmqrscp, Orthanc; over plain TCP and over TLS."""

from __future__ import annotations

import json
import logging
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from command import Outcome, run_main
from conftest import require
from peers import Peer, TlsFiles, client_context, run_pynetdicom, run_storescp
from pynetdicom.events import EVT_USER_ID
from rawpeer import RawPeer

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


def test_the_result(real_peer: Peer) -> None:
    assert {echo.send(real_peer.address, message_id=message_id) for message_id in (0, 1, 65535)} == {0}
    result = echo.probe(real_peer.address, message_id=4711)
    assert (result.ok, result.released, result.notes) == (True, True, ())
    assert result.peer is not None
    assert re.fullmatch(UID, result.peer.implementation_class_uid or "")
    assert result.peer.implementation_version_name
    assert (result.peer.max_pdu or 0) >= 4096
    assert result.peer.transfer_syntax in ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1")


def test_the_command(capsys: Capsys, real_peer: Peer) -> None:
    for options in ("-aet SIXTEEN-LETTERS!", "--source 127.0.0.1", "--abort"):
        assert run_main(capsys, *options.split(), real_peer.address) == SUCCESS
    for max_pdu in (0, 16, 30, 4096, 131072, 4294967295):
        assert run_main(capsys, "--max-pdu", max_pdu, real_peer.address) == SUCCESS
    assert run_main(capsys, "-aec", real_peer.ae_title, f"WRONG@{real_peer.host_port}") == SUCCESS
    # The peers listen on IPv4 only: where localhost is ::1 first, that refuses, and the next address is tried.
    for family in ([], ["-4"]):
        code, result = probe_json(capsys, *family, f"{real_peer.ae_title}@localhost:{real_peer.port}")
        assert (code, result["host"], result["remote"]) == (0, "localhost", f"127.0.0.1:{real_peer.port}")
    assert "3 sent, 3 succeeded" in run_main(capsys, "-c", 3, "-i", 0, "--reuse", real_peer.address).out


def test_orthanc_that_ends_idle_associations(capsys: Capsys, orthanc: Peer) -> None:
    code, out, err = run_main(capsys, "-c", 2, "-i", 2.5, "--reuse", orthanc.address)
    assert (code, err) == (0, "")
    note = r"   note      the peer ended the association within 2\.\d s after the last echo \(.+\); opened a new one"
    assert re.search(rf"^seq=1 .*\nseq=2 .*\n{note}\n(.*\n)*2 sent, 2 succeeded, 0% loss", out, re.MULTILINE)


def test_ipv6(capsys: Capsys, ipv6: str) -> None:
    """To a raw peer: DCMTK does not serve it, nor does pynetdicom for Python 3.9."""
    with RawPeer(host=ipv6) as peer:
        for options in ([], ["-6"], ["--source", "::1"]):
            code, result = probe_json(capsys, *options, peer.address)
            assert (code, result["host"], result["port"]) == (0, "::1", peer.port)
            assert (result["remote"], result["target"]) == (f"[::1]:{peer.port}", peer.address)
            assert re.fullmatch(r"\[::1\]:\d+", result["local"])


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
    code, result = probe_json(capsys, *options[:2], real_peer.address)
    assert (code, result["error"]["message"]) == (1, "transfer syntaxes not supported")


# --- Titles ----------------------------------------------------------------------------------------------------------


def test_a_wrong_called_title_is_rejected(capsys: Capsys, strict_peer: Peer) -> None:
    expected = Outcome(1, REJECTED.format(host_port=strict_peer.host_port), "")
    assert run_main(capsys, f"WRONG@{strict_peer.host_port}") == expected
    assert run_main(capsys, "-aec", "WRONG", strict_peer.host_port) == expected
    assert run_main(capsys, strict_peer.host_port).code == 1  # the default title


def test_the_hint_names_both_titles_where_the_peer_means_the_calling_one(capsys: Capsys, dcmqrscp: Peer) -> None:
    """dcmqrscp, which knows who is called but not who calls, says that it does not know who is called."""
    address = f"PRIVATE@{dcmqrscp.host_port}"
    assert run_main(capsys, "-aet", "MODALITY", address) == SUCCESS
    code, result = probe_json(capsys, "-aet", "STRANGER", address)
    assert (code, result["error"]["message"]) == (1, "called AE title not recognized")
    assert all(word in result["error"]["hint"] for word in ('"PRIVATE"', '"STRANGER"', "-aet"))


# --- User identity ---------------------------------------------------------------------------------------------------

SECRET = "open-sesame-4711"


@pytest.mark.parametrize(
    ("parts", "answer", "shown"),
    [
        ({"jwt": SECRET}, (True, b"welcome"), "accepted"),
        ({"user": "me", "password": SECRET}, (False, None), None),
        ({"user": SECRET}, None, "not stated"),
    ],
)
def test_a_user_identity_and_nothing_of_it_in_what_is_kept_or_shown(
    capsys: Capsys, caplog: pytest.LogCaptureFixture, tmp_path: Path, parts: dict[str, str], answer: Any, shown: Any
) -> None:
    seen: list[str] = []

    def on_identity(event: Any) -> Any:
        seen.append((event.secondary_field or event.primary_field).decode())
        return answer

    handlers: list[Any] = [(EVT_USER_ID, on_identity)] if answer else []
    options: list[object] = []
    for name, value in parts.items():
        (tmp_path / name).write_text(value)
        options += ["--user", value] if name == "user" else [f"--{name}-file", tmp_path / name]
    with run_pynetdicom(handlers=handlers) as peer, caplog.at_level(logging.DEBUG, logger="dicom_echo"):
        result = echo.probe(peer.address, identity=echo.Identity(**parts))
        texts = [run_main(capsys, *extra, *options, peer.address) for extra in (["-d"], ["--format", "json"])]
    assert seen == [SECRET] * 3 * bool(answer)
    assert (result.peer and result.peer.user_identity) == shown
    assert [text.code for text in texts] == [int(not shown)] * 2
    assert not result.error or "identity" in result.error.hint
    kept = [repr(result), str(result.error), json.dumps(result.to_dict()), caplog.text, *map(str, texts)]
    hexed = SECRET.encode().hex(" ")
    assert [text for text in kept if SECRET in text or hexed[:20] in text] == []
    assert SECRET.encode() not in pickle.dumps(result)


# --- TLS; more of it in test_tls -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def storescp_tls(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    """DCMTK's storescp over TLS; it does not ask for a client certificate."""
    program, folder = require("storescp", "dcmtk"), tmp_path_factory.mktemp("storescp_tls")
    certificate, files = authority.issue_cert("localhost", "127.0.0.1"), (str(folder / "key"), str(folder / "cert"))
    certificate.private_key_pem.write_to_path(files[0])
    certificate.cert_chain_pems[0].write_to_path(files[1])
    with run_storescp(program, folder, "--enable-tls", *files, "--ignore-peer-cert") as peer:
        yield peer


def test_tls(capsys: Capsys, storescp_tls: Peer, tls_files: TlsFiles) -> None:
    result = echo.probe(storescp_tls.address, tls=client_context(tls_files))
    assert (result.ok, list(result.timings)) == (True, list(Phase))
    options = ["--tls", "--cacert", tls_files.authority]
    assert run_main(capsys, *options, f"{storescp_tls.ae_title}@localhost:{storescp_tls.port}") == SUCCESS
    assert run_main(capsys, "--tls", storescp_tls.address).out.startswith("❌ TLS failed: certificate not trusted\n")
    for reuse in ([], ["--reuse"]):
        assert "3 sent, 3 succeeded" in run_main(capsys, *options, "-c", 3, "-i", 0, *reuse, storescp_tls.address).out
    code, _, err = run_main(capsys, "-d", *options, storescp_tls.address)
    assert (code, err.count(" A-ASSOCIATE-RQ, "), err.count(" A-RELEASE-RP, ")) == (0, 1, 1)  # plain PDUs


def test_tls_on_a_plain_port(capsys: Capsys, real_peer: Peer) -> None:
    code, out, err = run_main(capsys, "--tls", real_peer.address)
    headline, circumstances, *_ = out.splitlines()
    assert (code, err) == (3, "")
    assert headline in ("❌ TLS failed: the peer does not speak TLS", "❌ TLS failed: closed during the handshake")
    assert circumstances.startswith(f"   while negotiating TLS with {real_peer.host_port}: ")
    assert "--tls" in out
    assert "[Errno" not in out


def test_a_plain_echo_on_a_tls_port(capsys: Capsys, storescp_tls: Peer) -> None:
    """The peer closes, resets or sends a TLS alert: each is answered with the same advice."""
    code, out, err = run_main(capsys, storescp_tls.address)
    assert (code in (1, 3), err) == (True, "")
    assert "try --tls" in out
