"""TLS against real servers, OpenSSL's and Java's: what is wrong, with which certificate, and what to do about it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from certificates import CLIENT_AUTH, Issued, der, issue, new_key, server_context
from command import HELP, Outcome, posix, run_main
from conftest import require
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import pkcs12
from rawpeer import GOOD_ACCEPT, GOOD_RELEASE, RawPeer, echo_rsp

import dicom_echo as echo

Capsys = pytest.CaptureFixture[str]
Ask = Callable[..., Any]

CA = issue("CA", ca=True)
OTHER_CA = issue("Another CA", ca=True)
PACS = issue("pacs", CA)


def write(folder: Path, *issued: Issued, name: str = "ca.pem") -> Path:
    """A file with certificates only."""
    file = folder / name
    file.write_bytes(b"".join(each.pem for each in issued))
    return file


@pytest.fixture
def cacert(tmp_path: Path) -> Path:
    return write(tmp_path, CA)


@pytest.fixture
def ask(capsys: Capsys) -> Ask:
    """Echoes over TLS, and reads what the command says of it in JSON."""

    def ask(port: int, *options: object, host: str = "127.0.0.1") -> Any:
        code, out, err = run_main(capsys, "--tls", "-t", 30, *options, "--format", "json", f"{host}:{port}")
        said = json.loads(out)
        assert (code, err) == (0 if said["ok"] else 3, "")
        return {**said, "verdict": "Success" if said["ok"] else said["error"]["message"]}

    return ask


@contextlib.contextmanager
def serving(context: ssl.SSLContext) -> Iterator[int]:
    with RawPeer(ssl_context=context) as peer:
        yield peer.port


def application_context(cacert: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cacert)
    return context


# --- The peer's certificate ------------------------------------------------------------------------------------------


def named(*names: str, subject: str = "pacs") -> Issued:
    return issue(subject, CA, names=names)


def of_ca(**how: Any) -> tuple[list[Issued], list[Issued]]:
    """A certificate of a CA made so, and that CA."""
    ca = issue("Other CA", ca=True, **how)
    return [issue("pacs", ca)], [ca]


def below(issuer: Issued) -> list[Issued]:
    """A certificate, and the intermediate CA that issued it."""
    middle = issue("Intermediate", issuer, ca=True)
    return [issue("pacs", middle), middle]


def certificates() -> dict[str, tuple[str, list[Issued], list[Issued]]]:
    """What comes of what the peer shows and of what is trusted."""
    alone, shallow = issue("pacs"), issue("Shallow CA", CA, ca=True, path_length=0)
    same_name = issue("CA", ca=True, key=new_key(number=1))
    not_trusted, expired = "certificate not trusted", "a certificate has expired"
    too_weak, no_ca = "a certificate is too weak", "a CA may not issue this certificate"
    return {
        "of a trusted CA": ("Success", [PACS], [CA]),
        "of another CA": (not_trusted, [PACS], [OTHER_CA]),
        "with its intermediate": ("Success", below(CA), [CA]),
        "without its intermediate": (not_trusted, below(CA)[:1], [CA]),
        "below an anchor that is no root": ("Success", below(CA)[:1], below(CA)[1:]),
        "as its own anchor": ("Success", [PACS], [PACS]),
        "self-signed": (not_trusted, [issue("pacs")], [CA]),
        "self-signed and trusted": ("Success", [alone], [alone]),
        "expired": (expired, [issue("pacs", CA, first=-9, last=-2)], [CA]),
        "of an expired CA": (expired, *of_ca(first=-9, last=-2)),
        "not valid yet": ("a certificate is not valid yet", [issue("pacs", CA, first=2)], [CA]),
        "with a weak key": (too_weak, [issue("pacs", CA, key=new_key("1024"))], [CA]),
        "of a CA with a weak key": (too_weak, *of_ca(key=new_key("1024"))),
        "signed with SHA-1": (too_weak, [issue("pacs", CA, sha1=True)], [CA]),
        "of another CA of the same name": ("certificate not accepted", [PACS], [same_name]),
        "for another purpose": (
            "the certificate is for another purpose", [issue("pacs", CA, purpose=CLIENT_AUTH)], [CA]),
        "of a CA of version 1": ("Success", *of_ca(version=1)),
        "of a CA with uncritical basic constraints": ("Success", *of_ca(critical=False)),
        "issued by one that is no CA": (no_ca, [issue("below", PACS), PACS], [CA]),
        "too far below its CA": (no_ca, [*below(shallow), shallow], [CA]),
        "for a name that its CA may not issue for": (no_ca, *of_ca(permitted="hospital.test")),
    }  # fmt: skip


@pytest.fixture
def verdict_on(ask: Ask, tmp_path: Path) -> Callable[..., str]:
    """What comes of an echo where the peer shows certificates; where it fails, without verification it does not."""

    def verdict_on(chain: list[Issued], trusted: list[Issued], *options: str, host: str = "127.0.0.1") -> str:
        with serving(server_context(tmp_path, *chain)) as port:
            said = ask(port, "-4", "--cacert", write(tmp_path, *trusted), *options, host=host)
            verdict: str = said["verdict"]
            if error := said["error"]:
                assert (error["kind"], error["phase"], said["tls"]) == ("tls", "tls", None)
                assert error["hint"] == echo._HINTS["tls", verdict]
                assert ask(port, "-4", "-k", *options, host=host)["ok"]
        return verdict

    return verdict_on


def test_a_certificate(verdict_on: Callable[..., str]) -> None:
    """The table holds on every Python, whose own default contexts do not agree."""
    table = certificates()
    verdicts = {case: verdict_on(chain, trusted) for case, (_, chain, trusted) in table.items()}
    assert verdicts == {case: expected for case, (expected, _, _) in table.items()}


# Whether a certificate that names these is for the host, or for the name given.
NAMES = {
    ("localhost", named("localhost")): True,
    ("LOCALHOST", named("LocalHost")): True,
    ("a.pacs.test.", named("a.pacs.test")): True,
    ("0:0::1", named("::1")): True,
    ("a.pacs.test", named("*.pacs.test")): True,
    ("b.a.pacs.test", named("*.pacs.test")): False,  # it is for names right below the domain
    ("pacs.test", named("*.test")): False,  # a whole top-level domain
    ("pa.pacs.test", named("p*.pacs.test")): False,
    ("localhost", named(subject="localhost")): True,
    ("localhost", named("pacs.test", subject="localhost")): False,  # then its common name does not count
    ("127.0.0.1", named(subject="127.0.0.1")): False,
    ("127.0.0.1", named("localhost")): False,
}


def test_the_name_of_a_certificate(verdict_on: Callable[..., str]) -> None:
    for (name, certificate), fits in NAMES.items():
        local = name in ("localhost", "LOCALHOST", "127.0.0.1")
        options, host = ([], name) if local else (["--server-name", name], "127.0.0.1")
        expected = "Success" if fits else "the certificate is for another name"
        assert (name, verdict_on([certificate], [CA], *options, host=host)) == (name, expected)


def test_a_dot_at_the_end_of_a_name_is_not_sent(
    ask: Ask, cacert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RFC 6066 3: a server name has none, and an IP address is no server name."""
    asked: list[str | None] = []
    context = server_context(tmp_path, named("pacs.test", "a.pacs.test", "127.0.0.1"))
    context.sni_callback = lambda _socket, name, _context: asked.append(name)
    system = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *rest: system("127.0.0.1", *rest))
    with serving(context) as port:
        for host, *options in (["pacs.test."], ["pacs.test", "--server-name", "a.pacs.test."], ["127.0.0.1"]):
            assert ask(port, "--cacert", cacert, *options, host=host)["ok"]
    assert asked == ["pacs.test", "a.pacs.test", None]


def test_the_names_in_a_certificate_for_another(ask: Ask, cacert: Path, tmp_path: Path) -> None:
    with serving(server_context(tmp_path, named("pacs.test", "*.hospital.test", "192.0.2.7", "2001:db8::1"))) as port:
        error = ask(port, "--cacert", cacert)["error"]
        result = echo.probe(f"127.0.0.1:{port}", tls=application_context(cacert))
    assert error["names"] == ["pacs.test", "*.hospital.test", "192.0.2.7", "2001:db8::1"]
    assert error["detail"] == "it names pacs.test, *.hospital.test, 192.0.2.7, 2001:db8::1, not 127.0.0.1"
    assert str(result.error) == error["message"], "an application's context checks by itself"
    with serving(server_context(tmp_path, named(subject="127.0.0.1"))) as port:
        error = ask(port, "--cacert", cacert)["error"]
    assert error["detail"] == "it names 127.0.0.1 as its common name, which does not count for an IP address"


def test_an_application_context_keeps_its_own_rules(cacert: Path, tmp_path: Path) -> None:
    context = application_context(cacert)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    with serving(server_context(tmp_path, PACS)) as port:
        error = echo.probe(f"127.0.0.1:{port}", tls=context).error
    assert error is not None
    assert (error.message, error.detail) == ("a certificate breaks RFC 5280", "Missing Authority Key Identifier")
    assert "VERIFY_X509_STRICT" in error.hint


def test_what_is_told_of_a_certificate(ask: Ask, cacert: Path, tmp_path: Path) -> None:
    shown = issue("Böse\x1b[31m", CA, names=("localhost", "127.0.0.1"))
    with serving(server_context(tmp_path, shown)) as port:
        told = {verified: ask(port, *options)["tls"] for verified, options in (
            (True, ["--cacert", cacert]), (False, ["-k"]))}  # fmt: skip
    for verified, tls in told.items():
        expiry = datetime.strptime(tls.pop("certificate_expiry"), "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=timezone.utc)
        assert 29 <= (expiry - datetime.now(timezone.utc)).days <= 30
        assert tls == {
            "version": "TLSv1.3", "cipher": "TLS_AES_256_GCM_SHA384", "certificate_verified": verified,
            "subject": "O=Hôpital, CN=Böse\x1b[31m", "issuer": "O=Hôpital, CN=CA", "names": ["localhost", "127.0.0.1"],
        }  # fmt: skip


def test_a_certificate_that_python_cannot_decode(ask: Ask, capsys: Capsys, cacert: Path, tmp_path: Path) -> None:
    """Its expiry is unknown, which must not look like far away; and that it has no names is not said, either."""
    latin = der(0x30, der(0x82, "hôpital".encode("latin-1")), der(0x82, b"localhost"))
    with serving(server_context(tmp_path, issue("pacs", CA, names=latin))) as port:
        error = ask(port, "--cacert", cacert, host="localhost")["error"]
        plain = ["--tls", "-k", "--format", "nagios", f"localhost:{port}"]
        limits: list[list[object]] = [[], ["--warning-cert", 5], ["--warning-cert", 5, "--critical", 0.001]]
        watched = [run_main(capsys, *plain, *options) for options in limits]
    assert (error["message"], error["detail"]) == ("certificate not accepted", "its names cannot be read")
    assert [code for code, _, _ in watched] == [0, 3, 2]
    assert re.match(r"DICOM ECHO UNKNOWN - .* ms, certificate of unknown expiry \| time=", watched[1].out)


def test_the_days_until_a_certificate_expires_are_watched(capsys: Capsys, tmp_path: Path) -> None:
    with serving(server_context(tmp_path, issue("pacs", CA, last=15))) as port:
        watched = ["--format", "nagios", "--warning-cert=20", "--critical-cert=5"]
        code, out, err = run_main(capsys, "--tls", "-k", *watched, f"127.0.0.1:{port}")
    assert (code, err) == (1, "")
    told = r"DICOM ECHO WARNING - \S+ answered in [\d.]+ ms, certificate expires in 1[45] days"
    assert re.match(rf"{told} \| time=.* certificate_days=1[45]\.\d\d;20:;5: ", out)


def test_authorities_that_openssl_does_not_find_by_itself(ask: Ask, tmp_path: Path) -> None:
    """As in the files of `openssl x509 -trustout`, of Red Hat's ca-bundle.trust.crt, and in directories."""
    files = []
    for kind in (b"TRUSTED CERTIFICATE", b"X509 CERTIFICATE"):
        files.append(tmp_path / f"{kind.decode()}.pem")
        files[-1].write_bytes(CA.pem.replace(b"CERTIFICATE", kind))
    for name in ("8d33f237.0", "ours.pem"):  # the first is the name by which OpenSSL would look for it
        files.append(tmp_path / f"directory of {name}")
        files[-1].mkdir()
        (files[-1] / "README").write_text("not a certificate")
        write(files[-1], OTHER_CA, name="another.crt")
        write(files[-1], CA, name=name)
    with serving(server_context(tmp_path, PACS)) as port:
        assert [ask(port, "--cacert", file)["verdict"] for file in files] == ["Success"] * 4


@posix
def test_authorities_from_a_pipe(ask: Ask, tmp_path: Path) -> None:
    """Which can be read only once: as from `--cacert <(vault read ...)` in a shell."""
    ours, theirs = os.pipe()
    os.write(theirs, CA.pem)
    os.close(theirs)
    with serving(server_context(tmp_path, PACS)) as port, os.fdopen(ours):
        assert ask(port, "--cacert", f"/dev/fd/{ours}")["verdict"] == "Success"


# --- Our certificate -------------------------------------------------------------------------------------------------

WANTED = "the peer wants a client certificate"
UNACCEPTED = "the peer does not accept our certificate"
NOT_TRUSTED = "the peer does not trust our certificate"
OURS_EXPIRED = "the peer says our certificate has expired"

# Our certificate; what comes of it with OpenSSL, and with Java.
OURS = [
    (issue("ours", CA), "Success", "Success"),
    (issue("ours", OTHER_CA), NOT_TRUSTED, UNACCEPTED),
    (issue("ours", CA, first=-9, last=-2), OURS_EXPIRED, UNACCEPTED),
]
NONE = {"TLSv1.2": "the peer refused the handshake", "TLSv1.3": WANTED}


@pytest.mark.parametrize("version", NONE)
def test_our_certificate_and_openssl(ask: Ask, cacert: Path, tmp_path: Path, version: str) -> None:
    context = server_context(tmp_path, PACS, clients=CA)
    context.maximum_version = ssl.TLSVersion[version.replace(".", "_")]
    with serving(context) as port:
        error = ask(port, "--cacert", cacert)["error"]
        assert error["message"] == NONE[version]
        assert "--cert" in error["hint"]
        for ours, expected, _ in OURS:
            assert ask(port, "--cacert", cacert, "--cert", ours.write(tmp_path))["verdict"] == expected


@pytest.fixture(scope="module")
def java(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, int]]:
    """The ports of a server in Java, by what it asks for."""
    folder = tmp_path_factory.mktemp("java")
    server, encrypted = issue("pacs", CA, key=new_key("2048")), serialization.BestAvailableEncryption(b"password")
    store = pkcs12.serialize_key_and_certificates(b"us", server.key, server.certificate, [CA.certificate], encrypted)
    (folder / "identity.p12").write_bytes(store)
    modes = ["need:TLSv1.3", "need:TLSv1.2", "want:TLSv1.3", "none:TLSv1.2:TLS_RSA_WITH_AES_128_CBC_SHA"]
    pdus = [pdu.hex() for pdu in (GOOD_ACCEPT, echo_rsp(), GOOD_RELEASE)]
    # The last cipher is retired in Java as well, which has to be told to go on with it.
    (folder / "security").write_text("jdk.tls.disabledAlgorithms=SSLv3\n")
    command = [
        require("java", "default-jdk-headless"), "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC",
        f"-Djava.security.properties={folder / 'security'}", str(Path(__file__).with_name("JsseServer.java")),
        str(folder / "identity.p12"), str(write(folder, CA)), *pdus, *modes,
    ]  # fmt: skip
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        yield {mode: int(process.stdout.readline()) for mode in modes}
        process.stdin.close()


def test_java(ask: Ask, cacert: Path, tmp_path: Path, java: dict[str, int]) -> None:
    """In one case, as each process that runs some of the tests would have to start Java."""
    for version in NONE:
        port = java[f"need:{version}"]
        said = ask(port, "--cacert", cacert)
        assert said["verdict"] in NONE.values()  # newer ones say over TLS 1.2 what OpenSSL says
        assert "--cert" in said["error"]["hint"]
        for ours, _, expected in OURS:
            said = ask(port, "--cacert", cacert, "--cert", ours.write(tmp_path))
            assert said["verdict"] == expected
            assert not said["error"] or "may not trust the CA that issued it" in said["error"]["hint"]
    assert ask(java["want:TLSv1.3"], "--cacert", cacert)["ok"]
    error = echo.probe(f"127.0.0.1:{java['need:TLSv1.3']}", tls=application_context(cacert)).error
    assert error is not None
    assert str(error) == "client certificate missing or not accepted", "its context does not say whether it has one"
    assert error.hint.startswith("if the SSLContext has no certificate loaded, load one")
    # And a peer of the retired AES profile:
    retired = java["none:TLSv1.2:TLS_RSA_WITH_AES_128_CBC_SHA"]
    refused = ask(retired, "--cacert", cacert)
    assert refused["verdict"] == "the peer refused the handshake"
    assert "--ciphers" in refused["error"]["hint"]
    assert ask(retired, "--cacert", cacert, "--ciphers", "AES128-SHA")["tls"]["cipher"] == "AES128-SHA"


# --- Versions, alerts ------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated:DeprecationWarning")
def test_a_peer_of_a_retired_version(ask: Ask, tmp_path: Path) -> None:
    context = server_context(tmp_path, PACS)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with serving(context) as port:
        error = ask(port, "-k")["error"]
    assert error["message"] == "no common TLS version"
    assert error["hint"].startswith("the peer must speak TLS 1.2 or later (PS3.15 B.12)")


ALERTS = {
    **dict.fromkeys((10, 20, 22, 47, 50, 51, 80, 109, 110, 113, 115, 120), "the peer ended the handshake"),
    **dict.fromkeys((42, 43, 44, 45, 46, 48, 116), WANTED),  # where we have none
    40: "the peer refused the handshake",
    49: "the peer denied access",
    70: "no common TLS version",
    71: "no common cipher",
    86: "no common TLS version",
    112: "the peer does not know this server name",
}
ALERTS_ON_OURS = {
    42: UNACCEPTED,
    43: "the peer does not support our certificate",
    44: "the peer says our certificate has been revoked",
    45: OURS_EXPIRED,
    46: UNACCEPTED,
    48: NOT_TRUSTED,
}
HINTS = {
    42: "the peer may not trust the CA that issued it (put the intermediate certificates behind ours in --cert FILE),",
    44: "have a new one issued (--cert, --key)",
    45: "renew it,",
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

    hints = {alert: echo._hint("tls", failed(alert, True)._case) for alert in ALERTS}
    assert {alert: str(failed(alert, False)) for alert in ALERTS} == ALERTS
    assert {alert: str(failed(alert, True)) for alert in ALERTS} == {**ALERTS, **ALERTS_ON_OURS}
    assert all(hints.values())
    assert {alert: hints[alert].split(" or ")[0] for alert in HINTS} == HINTS


# --- Files -----------------------------------------------------------------------------------------------------------


def test_an_encrypted_key_is_never_asked_about(capsys: Capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cert, key, password = write(tmp_path, PACS, name="cert.pem"), tmp_path / "key.pem", tmp_path / "password"
    monkeypatch.delenv("DICOM_ECHO_KEY_PASSWORD", raising=False)

    def run(port: int, *options: object) -> tuple[int, str]:
        return run_main(capsys, "--tls", "-k", "--cert", cert, "--key", key, *options, f"127.0.0.1:{port}")[::2]

    encrypted = "the key is encrypted: pass --key-password-file FILE or DICOM_ECHO_KEY_PASSWORD"
    for traditional in (True, False):
        key.write_bytes(PACS.key_pem(b"open sesame", traditional=traditional))
        password.write_text("wrong\n")
        for options, why in (([], f"cannot use {key}: {encrypted}"), (["--key-password-file", password], "is wrong")):
            code, err = run(1, *options)
            assert (code, why in err) == (2, True), err
        password.write_text("open sesame\n")
        with serving(server_context(tmp_path, PACS, clients=CA)) as port, monkeypatch.context() as with_variable:
            assert run(port, "--key-password-file", password) == (0, "")
            with_variable.setenv("DICOM_ECHO_KEY_PASSWORD", "open sesame")
            assert run(port) == (0, "")


def test_files_that_cannot_be_used(capsys: Capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "folder").mkdir()
    weak, bad_pem = issue("ours", CA, key=new_key("1024")), PACS.pem.replace(b"\nMII", b"\nXII")
    for name, content in {
        "cert.pem": PACS.pem,
        "key.pem": PACS.key_pem(),
        "cert.der": PACS.certificate.public_bytes(serialization.Encoding.DER),
        "bad.pem": bad_pem,
        "folder/bad.pem": bad_pem,
        "cut.pem": CA.pem + PACS.pem[:-30],
        "weak.pem": weak.key_pem() + weak.pem,
        "rsa.pem": weak.key_pem(),
        "new.pem": issue("x", key=new_key(number=1)).key_pem(),
    }.items():
        Path(name).write_bytes(content)
    for options, why in {
        "--cacert missing": "cannot use missing: no such file or directory",
        "--cacert key.pem": "cannot use key.pem: contains no certificate in PEM format",
        "--cacert cert.der": "cannot use cert.der: contains no certificate in PEM format",
        "--cacert bad.pem": "cannot use bad.pem: a certificate in it is damaged",
        "--cacert cut.pem": "cannot use cut.pem: a certificate in it is damaged",
        "--cacert folder": f"cannot use {Path('folder/bad.pem')}: a certificate in it is damaged",
        "--cacert empty": "cannot use empty: contains no certificate in PEM format",
        "--cert missing": "cannot use missing: no such file or directory",
        "--cert cert.der": "cannot use cert.der: contains no certificate in PEM format",
        "--cert cert.pem": "cannot use cert.pem: contains no private key in PEM format",
        "--cert weak.pem": "cannot use weak.pem: the key of a certificate is too weak (RSA needs 2048 bits)",
        "--cert bad.pem --key key.pem": "cannot use bad.pem, key.pem: a certificate or key is damaged",
        "--cert cert.pem --key missing": "cannot use missing: no such file or directory",
        "--cert cert.pem --key cert.der": "cannot use cert.der: contains no private key in PEM format",
        "--cert cert.pem --key new.pem": "cannot use new.pem: the key does not belong to the certificate in cert.pem",
        "--cert cert.pem --key rsa.pem": "cannot use rsa.pem: the key does not belong to the certificate in cert.pem",
        "--ciphers nonsense": f"--ciphers: no cipher known to {ssl.OPENSSL_VERSION} in 'nonsense'",
        "--server-name pa\u200bcs": 'argument --server-name: "pa\\u200bcs" is not a host name',
    }.items():
        assert run_main(capsys, "--tls", *options.split(), "127.0.0.1:1") == Outcome(2, "", f"dicom-echo: {why}{HELP}")


def test_times_of_certificates() -> None:
    times = {
        "Jan  5 09:34:43 2018 GMT": datetime(2018, 1, 5, 9, 34, 43, tzinfo=timezone.utc),
        "Dec 31 23:59:59 9999 GMT": datetime(9999, 12, 31, 23, 59, 59, tzinfo=timezone.utc),
        "Bad time value": None, "Foo  5 09:34:43 2018 GMT": None, "": None,
    }  # fmt: skip
    assert {text: echo._read_time(text) for text in times} == times
