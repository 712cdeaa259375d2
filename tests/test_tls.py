"""TLS against real servers, OpenSSL's and Java's: what is wrong, with which certificate, and what to do about it."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from certificates import CLIENT_AUTH, Issued, issue, new_key, server_context
from command import run_main
from conftest import require
from cryptography.hazmat.primitives import serialization
from rawpeer import GOOD_ACCEPT, GOOD_RELEASE, RawPeer, echo_rsp

import dicom_echo as echo

Capsys = pytest.CaptureFixture[str]

CA = issue("CA", ca=True)
PACS = issue("pacs", CA)
ALONE = issue("pacs")
SHALLOW = issue("Shallow CA", CA, ca=True, path_length=0)


def ask(capsys: Capsys, address: str, *options: object) -> Any:
    """Echo over TLS and read what the command says of it in JSON."""
    code, out, err = run_main(capsys, "--tls", "-t", 30, *options, "--format", "json", address)
    said = json.loads(out)
    assert (code, err) == (0 if said["ok"] else 3, "")
    return said


def verdict(said: Any) -> str:
    return "Success" if said["ok"] else said["error"]["message"]


def write(folder: Path, *issued: Issued, name: str = "ca.pem") -> Path:
    """A file with certificates only."""
    file = folder / name
    file.write_bytes(b"".join(each.pem for each in issued))
    return file


@contextlib.contextmanager
def serving(context: ssl.SSLContext) -> Iterator[int]:
    with RawPeer(ssl_context=context) as peer:
        yield peer.port


def application_context(cacert: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cacert)
    return context


# --- The peer's certificate ------------------------------------------------------------------------------------------


def named(*names: str, subject: str = "pacs") -> tuple[list[Issued], list[Issued]]:
    """A certificate for these names, and its CA."""
    return [issue(subject, CA, names=names)], [CA]


def of_ca(**how: Any) -> tuple[list[Issued], list[Issued]]:
    """A certificate of a CA made so, and that CA."""
    ca = issue("Other CA", ca=True, **how)
    return [issue("pacs", ca)], [ca]


def below(issuer: Issued, **how: Any) -> list[Issued]:
    """A certificate, and the intermediate CA that issued it."""
    middle = issue("Intermediate", issuer, ca=True, **how)
    return [issue("pacs", middle), middle]


NOT_TRUSTED, EXPIRED = "certificate not trusted", "a certificate has expired"
TOO_WEAK, OTHER_NAME = "a certificate is too weak", "the certificate is for another name"
NO_CA = "a CA may not issue this certificate"
HERE, THERE = ("localhost",), ("127.0.0.1", "--server-name")

# What the peer shows, what is trusted; what comes of it; the host and options.
CERTIFICATES: dict[str, tuple[Callable[[], tuple[list[Issued], list[Issued]]], str, tuple[str, ...]]] = {
    "of a trusted CA": (lambda: ([PACS], [CA]), "Success", ()),
    "of another CA": (lambda: ([PACS], [issue("Another CA", ca=True)]), NOT_TRUSTED, ()),
    "with its intermediate": (lambda: (below(CA), [CA]), "Success", ()),
    "without its intermediate": (lambda: (below(CA)[:1], [CA]), NOT_TRUSTED, ()),
    "below an anchor that is no root": (lambda: (below(CA)[:1], below(CA)[1:]), "Success", ()),
    "as its own anchor": (lambda: ([PACS], [PACS]), "Success", ()),
    "self-signed": (lambda: ([issue("pacs")], [CA]), NOT_TRUSTED, ()),
    "self-signed and trusted": (lambda: ([ALONE], [ALONE]), "Success", ()),
    "expired": (lambda: ([issue("pacs", CA, first=-9, last=-2)], [CA]), EXPIRED, ()),
    "of an expired CA": (lambda: of_ca(first=-9, last=-2), EXPIRED, ()),
    "not valid yet": (lambda: ([issue("pacs", CA, first=2)], [CA]), "a certificate is not valid yet", ()),
    "with a weak key": (lambda: ([issue("pacs", CA, key=new_key("1024"))], [CA]), TOO_WEAK, ()),
    "of a CA with a weak key": (lambda: of_ca(key=new_key("1024")), TOO_WEAK, ()),
    "signed with SHA-1": (lambda: ([issue("pacs", CA, sha1=True)], [CA]), TOO_WEAK, ()),
    "of another CA of the same name": (
        lambda: ([PACS], [issue("CA", ca=True, key=new_key(number=1))]), "certificate not accepted", (),
    ),
    "for another purpose": (
        lambda: ([issue("pacs", CA, purpose=CLIENT_AUTH)], [CA]), "the certificate is for another purpose", (),
    ),
    "of a CA of version 1": (lambda: of_ca(version=1), "Success", ()),
    "of a CA with uncritical basic constraints": (lambda: of_ca(critical=False), "Success", ()),
    "issued by one that is no CA": (lambda: ([issue("below", PACS), PACS], [CA]), NO_CA, ()),
    "too far below its CA": (lambda: ([*below(SHALLOW), SHALLOW], [CA]), NO_CA, ()),
    "for a name that its CA may not issue for": (lambda: of_ca(permitted="hospital.test"), NO_CA, ()),
    "for its name": (lambda: named("localhost"), "Success", HERE),
    "for its name in capitals": (lambda: named("LocalHost"), "Success", ("LOCALHOST",)),
    "for the name given": (lambda: named("a.pacs.test"), "Success", (*THERE, "a.pacs.test.")),
    "for an IPv6 address": (lambda: named("::1"), "Success", (*THERE, "0:0::1")),
    "for all names of a domain": (lambda: named("*.pacs.test"), "Success", (*THERE, "a.pacs.test")),
    "for names right below a domain": (lambda: named("*.pacs.test"), OTHER_NAME, (*THERE, "b.a.pacs.test")),
    "for a whole top-level domain": (lambda: named("*.test"), OTHER_NAME, (*THERE, "pacs.test")),
    "for names that begin alike": (lambda: named("p*.pacs.test"), OTHER_NAME, (*THERE, "pa.pacs.test")),
    "with a common name only": (lambda: named(subject="localhost"), "Success", HERE),
    "for others than its common name": (lambda: named("pacs.test", subject="localhost"), OTHER_NAME, HERE),
    "with an address as its common name": (lambda: named(subject="127.0.0.1"), OTHER_NAME, ()),
    "for a name where an address is asked": (lambda: named("localhost"), OTHER_NAME, ()),
}  # fmt: skip


@pytest.mark.parametrize("case", CERTIFICATES)
def test_a_certificate(capsys: Capsys, tmp_path: Path, case: str) -> None:
    """The table holds on every Python, whose own default contexts do not agree."""
    show, expected, options = CERTIFICATES[case]
    chain, trusted = show()
    host, *rest = options or ["127.0.0.1"]
    with serving(server_context(tmp_path, *chain)) as port:
        said = ask(capsys, f"{host}:{port}", "-4", "--cacert", write(tmp_path, *trusted), *rest)
        assert verdict(said) == expected
        if error := said["error"]:
            assert (error["kind"], error["phase"], said["tls"]) == ("tls", "tls", None)
            assert error["hint"] == echo._HINTS["tls", expected]
            assert verdict(ask(capsys, f"{host}:{port}", "-4", "-k", *rest)) == "Success"


def test_a_dot_at_the_end_of_a_name_is_not_sent(
    capsys: Capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RFC 6066 3: a server name has none, and an IP address is no server name."""
    asked: list[str | None] = []
    context = server_context(tmp_path, *named("pacs.test", "a.pacs.test", "127.0.0.1")[0])
    context.sni_callback = lambda _socket, name, _context: asked.append(name)
    system = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *rest: system("127.0.0.1", *rest))
    with serving(context) as port:
        for host, *options in (["pacs.test."], ["pacs.test", "--server-name", "a.pacs.test."], ["127.0.0.1"]):
            assert verdict(ask(capsys, f"{host}:{port}", "--cacert", write(tmp_path, CA), *options)) == "Success"
    assert asked == ["pacs.test", "a.pacs.test", None]


def test_the_names_in_a_certificate_for_another(capsys: Capsys, tmp_path: Path) -> None:
    context = server_context(tmp_path, *named("pacs.test", "*.hospital.test", "192.0.2.7", "2001:db8::1")[0])
    with serving(context) as port:
        cacert = write(tmp_path, CA)
        error = ask(capsys, f"127.0.0.1:{port}", "--cacert", cacert)["error"]
        result = echo.probe(f"127.0.0.1:{port}", tls=application_context(cacert))
    assert error["names"] == ["pacs.test", "*.hospital.test", "192.0.2.7", "2001:db8::1"]
    assert error["detail"] == "it names pacs.test, *.hospital.test, 192.0.2.7, 2001:db8::1, not 127.0.0.1"
    assert str(result.error) == OTHER_NAME, "an application's context checks by itself"
    with serving(server_context(tmp_path, *named(subject="127.0.0.1")[0])) as port:
        error = ask(capsys, f"127.0.0.1:{port}", "--cacert", cacert)["error"]
    assert error["detail"] == "it names 127.0.0.1 as its common name, which does not count for an IP address"


def test_an_application_context_keeps_its_own_rules(tmp_path: Path) -> None:
    context = application_context(write(tmp_path, CA))
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    with serving(server_context(tmp_path, PACS)) as port:
        error = echo.probe(f"127.0.0.1:{port}", tls=context).error
    assert error is not None
    assert (error.message, error.detail) == ("a certificate breaks RFC 5280", "Missing Authority Key Identifier")
    assert "VERIFY_X509_STRICT" in error.hint


@pytest.mark.parametrize("verified", [True, False])
def test_what_is_told_of_a_certificate(capsys: Capsys, tmp_path: Path, verified: bool) -> None:
    shown = issue("Böse\x1b[31m", CA, names=("localhost", "127.0.0.1"))
    options = ["--cacert", write(tmp_path, CA)] if verified else ["-k"]
    with serving(server_context(tmp_path, shown)) as port:
        tls = ask(capsys, f"127.0.0.1:{port}", *options)["tls"]
        code, out, _ = run_main(capsys, "--tls", *options, "-v", f"127.0.0.1:{port}")
    expiry = datetime.strptime(tls.pop("certificate_expiry"), "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=timezone.utc)
    assert 29 <= (expiry - datetime.now(timezone.utc)).days <= 30
    assert tls == {
        "version": "TLSv1.3",
        "cipher": "TLS_AES_256_GCM_SHA384",
        "certificate_verified": verified,
        "subject": "O=Hôpital, CN=Böse\x1b[31m",
        "issuer": "O=Hôpital, CN=CA",
        "names": ["localhost", "127.0.0.1"],
    }
    assert code == 0
    assert "O=Hôpital, CN=Böse\\x1b[31m\n" in out
    assert "O=Hôpital, CN=CA\n" in out
    assert "localhost, 127.0.0.1\n" in out


def test_the_days_until_a_certificate_expires_are_watched(capsys: Capsys, tmp_path: Path) -> None:
    for limit, state, name in ((20, 1, "WARNING, certificate expires in 1[45] days"), (10, 0, "OK")):
        with serving(server_context(tmp_path, issue("pacs", CA, last=15))) as port:
            watched = ["--format", "nagios", f"--warning-cert={limit}", "--critical-cert=5"]
            code, out, err = run_main(capsys, "--tls", "-k", *watched, f"127.0.0.1:{port}")
        verdict, comma, why = name.partition(", ")
        assert (code, err) == (state, "")
        assert re.match(rf"DICOM ECHO {verdict} - \S+ answered in [\d.]+ ms{comma}{why} \| time=", out)
        assert re.search(rf" certificate_days=1[45]\.\d\d;{limit}:;5: ", out)


@pytest.mark.parametrize("kind", [b"TRUSTED CERTIFICATE", b"X509 CERTIFICATE"])
def test_an_authority_under_another_name_of_openssl(capsys: Capsys, tmp_path: Path, kind: bytes) -> None:
    """As in the files of `openssl x509 -trustout`, and of Red Hat's ca-bundle.trust.crt."""
    (tmp_path / "ca.pem").write_bytes(CA.pem.replace(b"CERTIFICATE", kind))
    with serving(server_context(tmp_path, PACS)) as port:
        assert verdict(ask(capsys, f"127.0.0.1:{port}", "--cacert", tmp_path / "ca.pem")) == "Success"


@pytest.mark.parametrize("hashed", [True, False])
def test_a_directory_of_authorities(capsys: Capsys, tmp_path: Path, hashed: bool) -> None:
    folder = tmp_path / "authorities"
    folder.mkdir()
    (folder / "README").write_text("not a certificate")
    write(folder, issue("Another CA", ca=True), name="another.crt")
    write(folder, CA, name="8d33f237.0" if hashed else "ours.pem")
    with serving(server_context(tmp_path, PACS)) as port:
        assert verdict(ask(capsys, f"127.0.0.1:{port}", "--cacert", folder)) == "Success"


# --- Our certificate -------------------------------------------------------------------------------------------------

WANTED = "the peer wants a client certificate"
UNACCEPTED = "the peer does not accept our certificate"

# Our certificate; what comes of it with OpenSSL, and with Java.
OURS: dict[str, tuple[Callable[[], Issued], str, str]] = {
    "good": (lambda: issue("ours", CA), "Success", "Success"),
    "of another CA": (
        lambda: issue("ours", issue("Another CA", ca=True)), "the peer does not trust our certificate", UNACCEPTED,
    ),
    "expired": (
        lambda: issue("ours", CA, first=-9, last=-2), "the peer says our certificate has expired", UNACCEPTED,
    ),
}  # fmt: skip
NONE = {"TLSv1.2": "the peer refused the handshake", "TLSv1.3": WANTED}


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
@pytest.mark.parametrize("which", ["none", *OURS])
def test_our_certificate_and_openssl(capsys: Capsys, tmp_path: Path, version: str, which: str) -> None:
    context = server_context(tmp_path, PACS, clients=CA)
    context.maximum_version = ssl.TLSVersion[version.replace(".", "_")]
    make, expected, _ = OURS.get(which, (None, NONE[version], ""))
    options: list[object] = ["--cert", make().write(tmp_path)] if make else []
    with serving(context) as port:
        said = ask(capsys, f"127.0.0.1:{port}", "--cacert", write(tmp_path, CA), *options)
    assert verdict(said) == expected
    assert make or "--cert" in said["error"]["hint"]


@pytest.fixture(scope="module")
def java(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, int]]:
    """The ports of a server in Java, by what it asks for."""
    folder = tmp_path_factory.mktemp("java")
    (folder / "identity.p12").write_bytes(issue("pacs", CA, key=new_key("2048")).pkcs12(CA))
    modes = ["need:TLSv1.3", "need:TLSv1.2", "want:TLSv1.3", "none:TLSv1.2:TLS_RSA_WITH_AES_128_CBC_SHA"]
    pdus = [pdu.hex() for pdu in (GOOD_ACCEPT, echo_rsp(), GOOD_RELEASE)]
    source = Path(__file__).with_name("JsseServer.java")
    # The last cipher is retired in Java as well, which has to be told to go on with it.
    (folder / "security").write_text("jdk.tls.disabledAlgorithms=SSLv3\n")
    command = [
        require("java", "default-jdk-headless"), "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC",
        f"-Djava.security.properties={folder / 'security'}", str(source), str(folder / "identity.p12"),
        str(write(folder, CA)), *pdus, *modes,
    ]  # fmt: skip
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        yield {mode: int(process.stdout.readline()) for mode in modes}
        process.stdin.close()


def test_our_certificate_and_java(capsys: Capsys, tmp_path: Path, java: dict[str, int]) -> None:
    """In one case, as each process that runs some of the tests would have to start Java."""
    cacert = write(tmp_path, CA)
    for version in NONE:
        server = f"127.0.0.1:{java[f'need:{version}']}"
        said = ask(capsys, server, "--cacert", cacert)
        assert verdict(said) in NONE.values()  # newer ones say over TLS 1.2 what OpenSSL says
        assert "--cert" in said["error"]["hint"]
        for make, _, expected in OURS.values():
            said = ask(capsys, server, "--cacert", cacert, "--cert", make().write(tmp_path))
            assert verdict(said) == expected
            assert not said["error"] or "may not trust the CA that issued it" in said["error"]["hint"]
    optional = ask(capsys, f"127.0.0.1:{java['want:TLSv1.3']}", "--cacert", cacert)
    assert verdict(optional) == "Success"
    error = echo.probe(f"127.0.0.1:{java['need:TLSv1.3']}", tls=application_context(cacert)).error
    assert str(error) == "client certificate missing or not accepted", "its context does not say whether it has one"
    assert error is not None
    assert error.hint.startswith("if the SSLContext has no certificate loaded, load one")


# --- Ciphers, versions, alerts ---------------------------------------------------------------------------------------


def test_a_peer_of_the_retired_aes_profile(capsys: Capsys, tmp_path: Path, java: dict[str, int]) -> None:
    address = f"127.0.0.1:{java['none:TLSv1.2:TLS_RSA_WITH_AES_128_CBC_SHA']}"
    refused = ask(capsys, address, "--cacert", write(tmp_path, CA))
    assert verdict(refused) == "the peer refused the handshake"
    assert "--ciphers" in refused["error"]["hint"]
    reached = ask(capsys, address, "--cacert", write(tmp_path, CA), "--ciphers", "AES128-SHA")
    assert (verdict(reached), reached["tls"]["cipher"]) == ("Success", "AES128-SHA")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated:DeprecationWarning")
def test_a_peer_of_a_retired_version(capsys: Capsys, tmp_path: Path) -> None:
    context = server_context(tmp_path, PACS)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with serving(context) as port:
        error = ask(capsys, f"127.0.0.1:{port}", "-k")["error"]
    assert error["message"] == "no common TLS version"
    assert error["hint"].startswith("the peer must speak TLS 1.2 or later (PS3.15 B.12)")


ALERTS: dict[str, tuple[int, ...]] = {
    "the peer refused the handshake": (40,),
    "the peer denied access": (49,),
    "no common TLS version": (70, 86),
    "no common cipher": (71,),
    "the peer does not know this server name": (112,),
    "the peer ended the handshake": (10, 20, 22, 47, 50, 51, 80, 109, 110, 113, 115, 120),
    WANTED: (42, 43, 44, 45, 46, 48, 116),  # where we have none
}
ALERTS_ON_OURS = {
    42: UNACCEPTED,
    43: "the peer does not support our certificate",
    44: "the peer says our certificate has been revoked",
    45: "the peer says our certificate has expired",
    46: UNACCEPTED,
    48: "the peer does not trust our certificate",
}


def test_every_alert_has_words() -> None:
    """What OpenSSL makes of each, in memory."""

    def failed(alert: int, has_certificate: bool) -> echo.TLSFailed:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        vars(context)["_has_certificate"] = has_certificate
        received = ssl.MemoryBIO()
        received.write(bytes([0x15, 3, 3, 0, 2, 2, alert]))
        with pytest.raises(ssl.SSLError) as caught:
            context.wrap_bio(received, ssl.MemoryBIO()).do_handshake()
        return echo._tls_failed(caught.value, context)

    def hint(alert: int) -> str:
        return echo._hint("tls", failed(alert, True)._case)

    alone = {alert: message for message, alerts in ALERTS.items() for alert in alerts}
    assert {alert: str(failed(alert, False)) for alert in alone} == alone
    assert {alert: str(failed(alert, True)) for alert in alone} == {**alone, **ALERTS_ON_OURS}
    assert all(map(hint, alone))
    assert [hint(alert).split(" or ")[0] for alert in (42, 44, 45)] == [
        "the peer may not trust the CA that issued it (put the intermediate certificates behind ours in --cert FILE),",
        "have a new one issued (--cert, --key)",
        "renew it,",
    ]


# --- Files -----------------------------------------------------------------------------------------------------------

ENCRYPTED = "the key is encrypted: pass --key-password-file FILE or DICOM_ECHO_KEY_PASSWORD"


@pytest.mark.parametrize("traditional", [True, False])
def test_an_encrypted_key_is_never_asked_about(
    capsys: Capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, traditional: bool
) -> None:
    cert, key, password = write(tmp_path, PACS, name="cert.pem"), tmp_path / "key.pem", tmp_path / "password"
    key.write_bytes(PACS.key_pem(b"open sesame", traditional=traditional))
    options = ["--tls", "-k", "--cert", cert, "--key", key]
    code, out, err = run_main(capsys, *options, "127.0.0.1:1")
    assert (code, out) == (2, "")
    assert f"cannot use {key}: {ENCRYPTED}" in err
    password.write_text("wrong\n")
    assert "the pass phrase is wrong" in run_main(
        capsys, *options, "--key-password-file", password, "127.0.0.1:1"
    ).err  # fmt: skip
    with serving(server_context(tmp_path, PACS, clients=CA)) as port:
        password.write_text("open sesame\n")
        assert run_main(capsys, *options, "--key-password-file", password, f"127.0.0.1:{port}").code == 0
        monkeypatch.setenv("DICOM_ECHO_KEY_PASSWORD", "open sesame")
        assert run_main(capsys, *options, f"127.0.0.1:{port}").code == 0


def test_files_that_cannot_be_used(capsys: Capsys, tmp_path: Path) -> None:
    def file(name: str, content: bytes) -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    cert, key = write(tmp_path, PACS, name="cert.pem"), file("key.pem", PACS.key_pem())
    binary = file("cert.der", PACS.certificate.public_bytes(serialization.Encoding.DER))
    damaged = file("damaged.pem", PACS.pem.replace(b"\nMII", b"\nXII"))
    weak = issue("ours", CA, key=new_key("1024"))
    cut = file("cut.pem", CA.pem + PACS.pem[:-30])
    empty, folder = tmp_path / "empty", tmp_path / "folder"
    empty.mkdir()
    folder.mkdir()
    (folder / "damaged.pem").write_bytes(damaged.read_bytes())
    missing = tmp_path / "missing"
    elsewhere = file("elsewhere.pem", issue("x", key=new_key(number=1)).key_pem())
    other_kind = file("rsa.pem", issue("x", key=new_key("1024")).key_pem())
    for options, why in {
        ("--cacert", missing): f"cannot use {missing}: no such file or directory",
        ("--cacert", key): f"cannot use {key}: contains no certificate in PEM format",
        ("--cacert", binary): f"cannot use {binary}: contains no certificate in PEM format",
        ("--cacert", damaged): f"cannot use {damaged}: a certificate in it is damaged",
        ("--cacert", cut): f"cannot use {cut}: a certificate in it is damaged",
        ("--cacert", folder): f"cannot use {folder / 'damaged.pem'}: a certificate in it is damaged",
        ("--cacert", empty): f"cannot use {empty}: contains no certificate in PEM format",
        ("--cert", missing): f"cannot use {missing}: no such file or directory",
        ("--cert", binary): f"cannot use {binary}: contains no certificate in PEM format",
        ("--cert", cert): f"cannot use {cert}: contains no private key in PEM format",
        ("--cert", weak.write(tmp_path)): "the key of a certificate is too weak (RSA needs 2048 bits)",
        ("--cert", damaged, "--key", key): "a certificate or key is damaged",
        ("--cert", cert, "--key", missing): f"cannot use {missing}: no such file or directory",
        ("--cert", cert, "--key", binary): f"cannot use {binary}: contains no private key in PEM format",
        ("--cert", cert, "--key", elsewhere): f"cannot use {elsewhere}: the key does not belong to the certificate in",
        ("--cert", cert, "--key", other_kind): f"cannot use {other_kind}: the key does not belong to the certificate",
        ("--ciphers", "nonsense"): "'nonsense'",
    }.items():
        code, out, err = run_main(capsys, "--tls", *options, "127.0.0.1:1")
        assert (code, out, err.count("\n")) == (2, "", 1), options
        assert why in err


def test_invisible_characters_in_a_host(capsys: Capsys) -> None:
    for each in "\u00ad\u200b\u2060\ufeff\ufe0f":
        for arguments in ([f"pa{each}cs.test"], ["--tls", "-k", "--server-name", f"pa{each}cs", "127.0.0.1:1"]):
            code, out, err = run_main(capsys, *arguments)
            assert (arguments, code, out, "is not a host name" in err) == (arguments, 2, "", True)


# --- What is pure ----------------------------------------------------------------------------------------------------


def test_times_of_certificates() -> None:
    years = {
        (0x17, "491231235959Z"): 2049, (0x17, "500101000000Z"): 1950, (0x18, "20500101000000Z"): 2050,
        (0x18, "99991231235959Z"): 9999, (0x17, "500101000000+0100"): None, (0x18, "20501301000000Z"): None,
    }  # fmt: skip
    times = {each: echo._decode_time(each[0], each[1].encode()) for each in years}
    assert {each: time and time.year for each, time in times.items()} == years


def test_a_damaged_certificate_is_read_or_refused_as_a_value() -> None:
    whole = PACS.certificate.public_bytes(serialization.Encoding.DER)
    assert echo._decode_certificate(whole)["names"] == ("localhost", "127.0.0.1")
    for at in range(len(whole)):
        for damaged in (whole[:at], whole[:at] + bytes([whole[at] ^ 0x81]) + whole[at + 1 :]):
            with contextlib.suppress(ValueError, IndexError):
                echo._decode_certificate(damaged)
