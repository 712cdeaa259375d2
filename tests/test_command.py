"""The command: its options, what it refuses, how it leaves, and what it does with streams and inside applications."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import json
import logging
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import (
    HELP,
    MODULE,
    PATIENCE,
    REFUSED,
    Outcome,
    command_line,
    in_shell,
    posix,
    run_main,
    run_on_terminal,
    run_process,
    start_process,
)  # fmt: skip
from cryptography.hazmat.primitives import serialization
from leaks import nothing_left_behind
from peers import TlsFiles
from rawpeer import (
    A_ABORT,
    A_RELEASE_RQ,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    Close,
    Conversation,
    RawPeer,
    Script,
    abort,
    accept_proposal,
    associate_ac,
    associate_rj,
    echo_rsp,
    script,
    silent_listener,
)

import dicom_echo

Capsys = pytest.CaptureFixture[str]

FORM = "; expected [AE-TITLE@]HOST[:PORT]"
SUCCESS = Outcome(0, "✅ Success\n", "")
UNREACHABLE = f"""\
❌ Unreachable: connection refused
   while connecting to {REFUSED}
   hint: nothing listens on this port, or a firewall resets the connection; usual DICOM ports: 104, 11112, 4242, 2762 \
(TLS)
"""
OTHER_FAMILY = "❌ Unreachable: the address does not match -4, -6 or --source\n"

MODERN = int(importlib.metadata.version("pynetdicom").partition(".")[0]) > 2  # before, it compared bytes with text


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "DICOM_ECHO_PASSWORD", "DICOM_ECHO_KEY_PASSWORD"):
        monkeypatch.delenv(name, raising=False)


# --- Help and versions -----------------------------------------------------------------------------------------------

# The names of each option in their order, and its default: empty where there is none, None where it takes no value.
OPTIONS = {
    "-aec --called --called-ae-title": "ANY-SCP", "-aet --calling --calling-ae-title": "ECHOSCU",
    "-id --id --message-id": "1", "--max-pdu": "16382", "--transfer-syntax": "implicit, explicit", "--abort": None,
    "--user": "", "--password-file": "", "--jwt-file": "", "--saml-file": "", "--kerberos-file": "",
    "-t --timeout": "10", "-4": None, "-6": None, "--source": "", "--tls": None, "--cacert": "", "--cert": "",
    "--key": "", "--key-password-file": "", "--ciphers": "", "-k --insecure": None, "--server-name": "HOST",
    "-c --count": "1", "-i --interval": "1", "--reuse": None, "--wait": "", "-T --targets": "", "-j --jobs": "32",
    "-q --quiet": None, "-v --verbose": None, "-d --debug": None, "--format": "text", "--warning": "",
    "--critical": "", "--warning-cert": "", "--critical-cert": "", "--output": "", "--color": "auto",
    "--self-test": None, "--listen": "", "--show-completion": "the login shell",
    "--install-completion": "the login shell", "-V --version": None, "-h": None, "--help": None,
}  # fmt: skip
FLAGS = " ".join(OPTIONS)


def test_short_help_is_one_screen_with_three_examples(capsys: Capsys) -> None:
    code, out, err = run_main(capsys, "-h")
    lines = out.splitlines()
    assert (code, err, len(lines) <= 24, max(map(len, lines)) <= 80) == (0, "", True, True)
    assert lines[0] == "usage: dicom-echo [OPTIONS] HOST [HOST ...]"
    assert len(re.findall(r"^  dicom-echo .*", out, re.MULTILINE)) == 3


def test_help_is_everything_in_groups_at_most_80_columns_wide(capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    code, out, err = run_main(capsys, "--help")
    assert (code, err, out.isascii()) == (0, "", True)
    assert out.startswith("usage: dicom-echo [OPTIONS] HOST [HOST ...]\n")
    assert max(map(len, out.splitlines())) <= 80
    groups = re.findall(r"^([A-Z][A-Za-z ]*):$", out, re.MULTILINE)
    assert groups[:3] == ["Arguments", "DICOM Options", "User Identity Options"]
    assert [flag for flag in FLAGS.split() if not re.search(rf"(?<!\S){flag}(?![\w-])", out)] == []
    assert [flag for flag in set(re.findall(r"(?<![\S-])--?[a-z][\w-]*", out)) if flag not in FLAGS.split()] == []
    for code in (0, 1, 2, 3, 130):
        assert re.search(rf"\b{code} +[a-z]", out.partition("exit codes:")[2])


def test_the_names_and_defaults_of_each_option_and_whether_it_takes_a_value() -> None:
    told = {}
    for each in dicom_echo._parser()._actions:
        default = re.search(r" \[([^\]]+)\]$", each.help % vars(each))
        told[" ".join(each.option_strings)] = default[1] if default else None if each.nargs == 0 else ""
    assert [(names, default) for names, default in told.items() if names] == list(OPTIONS.items())


def test_the_version_names_all_parts_and_sends_nothing(capsys: Capsys, peer: RawPeer) -> None:
    parts = [f"{name} {importlib.metadata.version(name)}" for name in ("pynetdicom", "pydicom")]
    parts.append(f"Python {platform.python_version().rstrip('+')}")
    line = f"dicom-echo {dicom_echo.__version__} ({', '.join(parts)})\n"
    for flag in "-V", "--version":
        assert run_main(capsys, flag, peer.address) == Outcome(0, line, "")
    assert peer.received == []


# --- Options: their effect -------------------------------------------------------------------------------------------

IMPLICIT, EXPLICIT = IMPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_LITTLE_ENDIAN


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        ("", {}),
        ("-aec ANY-SCP", {"called": "ANY-SCP"}),
        ("--called-ae-title OTHER", {"called": "OTHER"}),
        ("-aet ME", {"calling": "ME"}),
        ("--calling=ME", {"calling": "ME"}),
        ("-id 0", {"ids": [0]}),
        ("--message-id 65535 -c 2 -i 0 --reuse", {"ids": [65535, 1]}),
        ("--max-pdu 0", {"max_pdu": 0}),
        ("--max-pdu 4294967295", {"max_pdu": 4294967295}),
        ("--transfer-syntax 1.2.840.10008.1.2.1 --transfer-syntax implicit", {"syntaxes": (EXPLICIT, IMPLICIT)}),
        ("--abort", {"last": A_ABORT}),
    ],
)
def test_options_reach_the_wire(capsys: Capsys, peer: RawPeer, options: str, changed: dict[str, object]) -> None:
    assert run_main(capsys, "-q", *options.split(), f"STORE@{peer.endpoint.host_port}") == Outcome(0, "", "")
    seen = peer.conversation()
    assert {
        "called": seen.request.called, "calling": seen.request.calling, "ids": seen.message_ids, "last": seen.types[-1],
        "max_pdu": seen.request.max_length, "syntaxes": seen.request.contexts[0].transfer_syntaxes,
    } == {
        "called": "STORE", "calling": "ECHOSCU", "ids": [1], "last": A_RELEASE_RQ, "max_pdu": 16382,
        "syntaxes": (IMPLICIT, EXPLICIT), **changed,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        ("--user alice", b"\x01\x01\x00\x05alice\x00\x00"),
        ("--user alice --password-file SECRET", b"\x02\x01\x00\x05alice\x00\x03top"),
        ("--kerberos-file SECRET", b"\x03\x01\x00\x03top"),
        ("--saml-file SECRET", b"\x04\x01\x00\x03top"),
        ("--jwt-file SECRET", b"\x05\x01\x00\x03top"),
        ("--jwt-file -", b"\x05\x01\x00\x03top"),
    ],
)
def test_an_identity_reaches_the_wire(
    capsys: Capsys, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, peer: RawPeer, options: str, sent: bytes
) -> None:
    (tmp_path / "secret").write_text("top\r\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"top\n")))
    arguments = options.replace("SECRET", str(tmp_path / "secret")).split()
    assert run_main(capsys, "-q", *arguments, peer.address) == Outcome(0, "", "")
    assert sent in peer.conversation().raw


def test_a_password_from_the_environment(capsys: Capsys, peer: RawPeer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DICOM_ECHO_PASSWORD", "top")
    note = "   note      the secret of the user identity was sent without TLS\n"
    assert run_main(capsys, "--user", "alice", peer.address) == Outcome(0, SUCCESS.out + note, "")
    assert b"\x02\x01\x00\x05alice\x00\x03top" in peer.conversation().raw


@pytest.mark.skipif(sys.platform != "linux", reason="all of 127.0.0.0/8 is this host on Linux alone")
def test_the_source_address(capsys: Capsys, peer: RawPeer) -> None:
    outcome = run_main(capsys, "--source", "127.0.0.9", "--format", "json", peer.address)
    assert json.loads(outcome.out)["local"].startswith("127.0.0.9:")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (REFUSED, UNREACHABLE), ("-4 [::1]:104", OTHER_FAMILY), ("-6 127.0.0.1:104", OTHER_FAMILY),
        ("-q no-such-host.invalid", ""), ("-t 0.3 SILENT", "❌ Timed out: no answer within 0.3 s\n"),
    ],
)  # fmt: skip
def test_no_answer(capsys: Capsys, arguments: str, told: str) -> None:
    with silent_listener() as silent:
        outcome = run_main(capsys, *arguments.replace("SILENT", silent.address).split())
    assert (outcome.code, outcome.out[: len(told) or None], outcome.err) == (3, told, "")


@pytest.mark.parametrize("arguments", ["-q HOST HOST", "HOST -q HOST", "-q -- HOST HOST"])
def test_options_and_hosts_stand_in_any_order(capsys: Capsys, peer: RawPeer, arguments: str) -> None:
    assert run_main(capsys, *arguments.replace("HOST", peer.address).split()) == Outcome(0, "", "")
    assert len(peer.received) == 2


def test_debug_shows_each_pdu_with_its_time_on_standard_error(capsys: Capsys, peer: RawPeer) -> None:
    code, out, err = run_main(capsys, "-d", peer.address)
    assert (code, out.splitlines()[0]) == (0, "✅ Success")
    head = r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} (sent|received) ([A-Z-]+), \d+ bytes, (?:to|from) (\S+)$"
    assert re.findall(head, err, re.MULTILINE) == [
        (direction, f"{name}-{suffix}", peer.address)
        for name, *suffixes in (("A-ASSOCIATE", "RQ", "AC"), ("P-DATA", "TF", "TF"), ("A-RELEASE", "RQ", "RP"))
        for direction, suffix in zip(("sent", "received"), suffixes)
    ]


# --- Options: what is refused ----------------------------------------------------------------------------------------

TLS_ONLY = ("--cacert", "--cert", "--key", "--key-password-file", "--ciphers", "--server-name")
AEC, AET = "argument -aec/--called/--called-ae-title: ", "argument -aet/--calling/--calling-ae-title: "
SYNTAX = "a transfer syntax is one of implicit, explicit, deflated, big-endian or a UID"
TITLE = "contains a backslash, a control character or a non-ASCII character"

# What is said, and the command lines of which it is said.
REFUSALS: list[tuple[str, ...]] = [
    (f"no HOST given{FORM}", "", "-v"),
    ("--self-test cannot be combined with HOST", "--self-test pacs"),
    ("--self-test cannot be combined with --targets", "--self-test -T file"),
    ("--self-test cannot be combined with --tls", "--self-test --tls"),
    (f"argument HOST: the port 0 is not in the range 1-65535{FORM}", "pacs:0"),
    (f"argument HOST: the host is missing{FORM}", "X@"),
    (f'argument HOST: "pacs 104" is not a host; write pacs:104 as one argument{FORM}', "pacs|104"),
    (f'argument HOST: "dicom://X@host:104" is a URL{FORM}', "dicom://X@host:104"),
    (f'argument HOST: "a\\nb" is not a host name{FORM}', "a\nb"),
    (f'argument HOST: "-q" is not a host name{FORM}', "pacs -- -q"),
    (f"{AEC}expected one argument", "-aec"),
    (f'{AEC}the AE title "SEVENTEEN-LETTERS" has 17 characters, 16 are allowed', "-aec SEVENTEEN-LETTERS pacs"),
    (f"{AEC}the AE title 'A\\\\B' {TITLE}", "--called A\\B pacs"),
    (f"{AET}the AE title 'ÄÖ' {TITLE}", "--calling-ae-title ÄÖ pacs"),
    (f"{AET}the AE title is empty", "-aet ||| pacs"),
    ("argument -id/--id/--message-id: must be a whole number between 0 and 65535, not '65536'", "-id 65536 pacs"),
    ("argument -id/--id/--message-id: must be a whole number between 0 and 65535, not '1.5'", "--id 1.5 pacs"),
    ("--max-pdu must be 0 (unlimited) or an integer from 16 to 4294967295, not 15", "--max-pdu 15 pacs"),
    ("argument --max-pdu: must be a whole number between 0 and 4294967295, not 'x'", "--max-pdu x pacs"),
    (f"argument --transfer-syntax: {SYNTAX}, not 'nonsense'", "--transfer-syntax nonsense pacs"),
    ("argument -t/--timeout: must be between 0.001 and 86400, not '0'", "-t 0 pacs"),
    ("argument -t/--timeout: must be between 0.001 and 86400, not 'nan'", "-t nan pacs"),
    ("argument -t/--timeout: must be between 0.001 and 86400, not '1e300'", "-t 1e300 pacs"),
    ("argument -6: not allowed with argument -4", "-4 -6 pacs"),
    ("argument -4: not allowed with argument -6", "-6 -4 pacs"),
    ("argument -c/--count: must be a whole number of at least 0, not '1.5'", "-c 1.5 pacs"),
    ("argument -i/--interval: must be between 0 and 86400, not 'inf'", "-i inf pacs"),
    ("--interval requires --count", "-i 1 pacs", "-c 1 -i 1 pacs"),
    ("--reuse requires --count", "--reuse pacs"),
    ("--wait cannot be combined with --count", "--wait 1 -c 2 pacs", "--wait 1 -c 2 --reuse pacs"),
    ("argument -j/--jobs: must be a whole number between 1 and 10000, not '0'", "-j 0 a b"),
    ("--jobs requires several targets", "-j 2 pacs"),
    ("--quiet cannot be combined with --verbose", "-q -v pacs"),
    ("--quiet cannot be combined with --format", "-q --format json pacs"),
    ("--quiet cannot be combined with --output", "-q --output file pacs"),
    ("--verbose cannot be combined with --format", "-v --format json pacs"),
    ("--count 0 cannot be combined with --format prometheus", "-c 0 --format prometheus pacs"),
    ("--warning requires --format=nagios", "--warning 1 pacs"),
    ("--critical requires --format=nagios", "--critical 1 --format json pacs"),
    ("--warning-cert requires --format=nagios", "--tls --warning-cert 1 pacs"),
    *((f"{option} requires --tls", f"{option} x pacs") for option in TLS_ONLY),
    ("--insecure requires --tls", "-k pacs"),
    ("--key requires --cert", "--tls --key x pacs"),
    ("--key-password-file requires --cert", "--tls --key-password-file x pacs"),
    ("argument --cacert: not allowed with argument -k/--insecure", "--tls -k --cacert x pacs"),
    ("argument --jwt-file: not allowed with argument --user", "--user a --jwt-file b pacs"),
    ("--password-file requires --user", "--password-file x pacs"),
    ("standard input can be read only once", "-T - -T -", "-T - --jwt-file -", "--user a --password-file - -T -"),
    ("standard input can be read only once", "--tls --cert a --key-password-file - --saml-file - pacs"),
    ("cannot read no-such: no such file or directory", "--jwt-file no-such pacs"),
    ("cannot write /no/such/file: no such file or directory", "--output /no/such/file pacs"),
    ("unrecognized arguments: --no-such-option", "--no-such-option pacs"),
    ("unrecognized arguments: --time", "--time 1 pacs"),
    ("unrecognized arguments: -x", "-x pacs"),
]


@pytest.mark.parametrize("refusal", REFUSALS, ids=[each[1][:40] for each in REFUSALS])
def test_a_usage_error_is_one_exact_line_on_standard_error(capsys: Capsys, refusal: tuple[str, ...]) -> None:
    why, *lines = refusal
    for arguments in lines:
        words = [word.replace("|", " ") for word in arguments.split(" ") if word]
        assert run_main(capsys, *words) == Outcome(2, "", f"dicom-echo: {why}{HELP}")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ("--format xml pacs", "argument --format: invalid choice: 'xml' (choose from "),
        ("--color blue pacs", "argument --color: invalid choice: 'blue' (choose from "),
        ("-id -1 pacs", "argument -id/--id/--message-id: "),
        ("--source 192.0.2.1 pacs", "--source must be an IP address of this host, not '192.0.2.1': "),
        ("--source localhost pacs", "--source must be an IP address of this host, not 'localhost': "),
        ("-6 --source 127.0.0.1 pacs", "--source must be an IP address of this host, not '127.0.0.1': "),
    ],
)
def test_a_usage_error_in_words_of_python_or_the_system(capsys: Capsys, arguments: str, why: str) -> None:
    code, out, err = run_main(capsys, *arguments.split())
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"dicom-echo: {why}")
    assert err.endswith(HELP)


def test_an_option_given_as_empty_text_is_an_error(capsys: Capsys, peer: RawPeer) -> None:
    """As it is when a script's variable is not set: it is never "not given"."""
    failed = []
    for option in [names.split()[0] for names, default in OPTIONS.items() if default is not None]:
        for given in [option, ""], [f"{option}="]:
            if len(given) > 1 or option.startswith("--"):
                code, out, err = run_main(capsys, *given, peer.address)
                told = re.match(rf"dicom-echo: argument (\S+/)?{option}(/\S+)?: ", err)
                why = re.search("not ''|empty|invalid choice: ''|missing", err)
                if (code, out, err.count("\n")) != (2, "", 1) or not told or not why:
                    failed.append((given, code, out, err))
    assert (failed, peer.received) == ([], [])


def test_one_bad_address_and_nothing_is_sent(capsys: Capsys, peer: RawPeer) -> None:
    code, _, err = run_main(capsys, peer.address, "pacs:0", "pacs:x")
    assert (code, err.count("argument HOST: "), peer.received) == (2, 2, [])


@posix
def test_an_argument_that_is_no_text() -> None:
    code, out, err = run_process(command_line("\udcff"))
    assert (code, out, err.count("\n")) == (2, "", 1)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ("pacs:0", f"argument HOST: the port 0 is not in the range 1-65535{FORM}"),
        ("", f"no HOST given{FORM}"),
        ("--no-such-option pacs", "unrecognized arguments: --no-such-option"),
        ("--warning x pacs", "argument --warning: must be at least 0, not 'x'"),
        ("--warning 2 --critical 1 pacs", "--warning must not be above --critical"),
        ("--tls --warning-cert 1 --critical-cert 2 pacs", "--warning-cert must not be below --critical-cert"),
        ("--warning-cert 1 pacs", "--warning-cert requires --tls"),
        ("-c 0 pacs", "--count 0 cannot be combined with --format nagios"),
        ("-v pacs", "--verbose cannot be combined with --format"),
        ("--jwt-file no-such pacs", "cannot read no-such: no such file or directory"),
    ],
)
def test_a_usage_error_is_a_line_on_standard_output_for_nagios(capsys: Capsys, arguments: str, why: str) -> None:
    for form in "--format nagios", "--format=nagios":
        told = run_main(capsys, *form.split(), *arguments.split())
        assert told == Outcome(3, f"DICOM ECHO UNKNOWN - {why}\n", "")


@posix
def test_an_encrypted_key_is_never_asked_for_at_a_terminal(tmp_path: Path, tls_files: TlsFiles) -> None:
    """Nor is its pass phrase read out of what -T reads."""
    key = serialization.load_pem_private_key(tls_files.key.read_bytes(), None).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"secret")
    )
    (tmp_path / "key.pem").write_bytes(key)
    options = ["--tls", "--cert", tls_files.certificate, "--key", tmp_path / "key.pem"]
    outcome = run_on_terminal(*options, REFUSED, width=200)
    assert (outcome.code, outcome.out.count("\n")) == (2, 1)
    assert "the key is encrypted: pass --key-password-file FILE or DICOM_ECHO_KEY_PASSWORD" in outcome.out
    assert run_process(command_line(*options, "-T", "-"), stdin=b"secret\n").code == 2


# --- Outcomes --------------------------------------------------------------------------------------------------------

KINDS: dict[str, tuple[Script, int]] = {
    "ok": (script(), 0),
    "status": (script(echo=echo_rsp(1, 0x0122)), 1),
    "rejected": (script(accept=associate_rj(1, 1, 7)), 1),
    "not-supported": (script(accept=associate_ac([(1, 3, None)])), 1),
    "aborted": (script(echo=abort(2, 6)), 1),
    "protocol": (script(accept=b"SSH-2.0-OpenSSH_9.2p1\r\n"), 1),
    "lost": (script(accept=Close()), 3),
    "timeout": (script(accept=None), 3),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_its_exit_code_in_every_format(capsys: Capsys, kind: str) -> None:
    steps, code = KINDS[kind]
    with RawPeer(steps) as peer:
        address = ["-t", "0.1" if kind == "timeout" else "20", peer.address]
        assert run_main(capsys, "-q", *address) == Outcome(code, "", "")
        text = run_main(capsys, *address)
        line = run_main(capsys, "--format", "json", *address)
        nagios = run_main(capsys, "--format", "nagios", *address)
        prometheus = run_main(capsys, "--format", "prometheus", *address)
    assert (text.code, text.err, text.out[0]) == (code, "", "❌" if code else "✅")
    result = json.loads(line.out)
    assert (line.code, result["error"]["kind"] if code else "ok") == (code, kind)
    assert (nagios.code, nagios.out.count("\n")) == (2 if code else 0, 1)
    assert nagios.out.startswith(f"DICOM ECHO {'CRITICAL' if code else 'OK'} - ")
    assert (prometheus.code, f'kind="{kind}"' in prometheus.out) == (code, True)


@pytest.mark.parametrize(
    ("kinds", "code"),
    [("ok ok", 0), ("status ok", 1), ("rejected ok", 1), ("lost rejected ok", 3), ("aborted lost", 3)],
)
def test_of_several_hosts_the_highest_exit_code(capsys: Capsys, kinds: str, code: int) -> None:
    with contextlib.ExitStack() as stack:
        addresses = [stack.enter_context(RawPeer(KINDS[kind][0])).address for kind in kinds.split()]
        for options in "", "-q", "--format json", "-c 2 -i 0":
            outcome = run_main(capsys, *options.split(), *addresses)
            assert (outcome.code, outcome.err, outcome.out == "") == (code, "", options == "-q")


# --- Self-test -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", ["", "-4", "--abort", "-aec OTHER", "-c 2 -i 0 -q", "--format json"])
def test_the_self_test_takes_options_and_leaves_nothing(capsys: Capsys, options: str) -> None:
    with nothing_left_behind(patience=5):
        outcome = run_main(capsys, "--self-test", *options.split())
    assert (outcome.code, outcome.err) == (0, "")
    assert (outcome == SUCCESS) == (options in ("", "-4", "--abort", "-aec OTHER"))


def test_the_self_test_over_ipv6(capsys: Capsys, ipv6: str) -> None:
    outcome = run_main(capsys, "--self-test", "-6", "-v")
    assert outcome.code == 0
    assert f"to        ANY-SCP at [{ipv6}]:" in outcome.out


# --- Processes -------------------------------------------------------------------------------------------------------


@posix
@pytest.mark.parametrize(("arguments", "code"), [(["-h"], 0), (["--format", "nagios"], 3)])
def test_the_console_script(monkeypatch: pytest.MonkeyPatch, capsys: Capsys, arguments: list[str], code: int) -> None:
    """It takes the signals of its process, which is that of the tests here."""
    for name in ("_own_process", "_is_command"):
        monkeypatch.setattr(dicom_echo, name, False)
    monkeypatch.setattr(sys, "argv", ["dicom-echo", *arguments])
    ending = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    before = [signal.getsignal(number) for number in ending]
    try:
        with pytest.raises(SystemExit) as left:
            dicom_echo._command()
        handlers = [signal.getsignal(number) for number in ending]
    finally:
        for number, handler in zip(ending, before):
            signal.signal(number, handler)
    assert left.value.code == code
    assert (handlers[0] == signal.SIG_DFL) == (code == 0)
    capsys.readouterr()


@pytest.mark.parametrize("flags", [["-OO"], [*["-bb"] * MODERN, "-W", "error", "-X", "dev"]], ids=str)
def test_as_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_process(command_line("--self-test", flags=flags)) == SUCCESS


def test_as_a_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # -I ignores PYTHONIOENCODING: what is printed is not looked at.
    assert run_process([sys.executable, "-I", str(MODULE), "-q", "--self-test"]) == Outcome(0, "", "")


def test_without_any_installed_package(peer: RawPeer) -> None:
    bare = [sys.executable, "-I", "-S", str(MODULE)]
    for flag in ("--help", "--version"):
        outcome = run_process([*bare, flag])
        assert (outcome.code, outcome.err) == (0, "")
    why = "pynetdicom 2.0.2 or later is required (pip install pynetdicom); found none (ModuleNotFoundError: No module "
    why += "named 'pynetdicom')"
    assert run_process([*bare, peer.address]) == Outcome(2, "", f"dicom-echo: {why}\n")
    nagios = run_process([*bare, "--format", "nagios", peer.address])
    assert nagios == Outcome(3, f"DICOM ECHO UNKNOWN - {why}\n", "")
    assert not any(each.raw for each in peer.received)


@posix
@pytest.mark.parametrize("limit", [5, 6, 7, 9, 12])
def test_few_open_files_are_blamed_on_this_host(peer: RawPeer, limit: int) -> None:
    outcome = in_shell(f'ulimit -n {limit}; exec "$@"', "--format", "nagios", peer.address)
    assert outcome.out.count("\n") == 1
    assert outcome.err == "" or "site-packages" in outcome.err  # Python's own, on a file there that it cannot open
    assert (outcome.code, outcome.out[:19]) in [(0, "DICOM ECHO OK - ANY"), (3, "DICOM ECHO UNKNOWN ")]
    assert (outcome.code == 0) == (limit > 6)


@posix
def test_more_jobs_than_open_files() -> None:
    hosts = [f"127.0.0.1:{number}" for number in range(1, 10)]
    for jobs in ([], ["-j", "9"]):
        outcome = in_shell('ulimit -Sn 12; ulimit -Hn 70; exec "$@"', *hosts, *jobs)
        assert (outcome.code, outcome.err) == (3, "")


# --- Streams ---------------------------------------------------------------------------------------------------------


@posix
@pytest.mark.parametrize(
    ("closed", "arguments", "code", "out", "err"),
    [
        (">&-", REFUSED, 3, "", ""),
        (">&- 2>&-", REFUSED, 3, "", ""),
        ("<&-", REFUSED, 3, "❌", ""),
        ("<&- >&- 2>&-", f"--format nagios {REFUSED}", 2, "", ""),
        ("2>&-", f"-d {REFUSED}", 3, "❌", ""),
        ("2>&-", "pacs:0", 2, "", ""),
        ("<&-", "-T -", 2, "", f"dicom-echo: cannot read -: standard input is closed{HELP}"),
    ],
)
def test_closed_standard_streams(closed: str, arguments: str, code: int, out: str, err: str) -> None:
    """As a job has them that a daemon starts."""
    outcome = in_shell(f'exec "$@" {closed}', *arguments.split())
    assert (outcome.code, outcome.out[:1], outcome.err) == (code, out, err)


UNREADABLE: list[tuple[str, int]] = [
    ("--version", 0), ("--help", 0), ("HOST", 0), ("pacs:0", 2), ("--format nagios pacs:0", 3),
    ("--format nagios HOST", 0), ("-u --version", 0), ("-u --format nagios --version", 0), ("-u HOST", 0),
]  # fmt: skip


@posix
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
@pytest.mark.parametrize("which", ["stdout is full", "stdout is gone", "stdout and stderr are gone", "stderr is full"])
def test_what_nobody_can_read_has_its_exit_code_and_no_traceback(peer: RawPeer, which: str) -> None:
    """A full disk is trouble: exit code 2, for nagios 3. Where a pipe is closed, what went well has gone well."""
    reader, gone = os.pipe()
    os.close(reader)
    full = os.open("/dev/full", os.O_WRONLY)
    sink = full if "full" in which else gone
    out, err = (sink if name in which else subprocess.PIPE for name in ("stdout", "stderr"))
    for arguments, code in UNREADABLE if "stdout" in which else [("pacs:0", 2), ("-d HOST", 0)]:
        words = arguments.replace("HOST", peer.address).split()
        flags = [words.pop(0)] if words[0] == "-u" else []
        with start_process(command_line(*words, flags=flags), out, err) as process:
            told = "".join(filter(None, process.communicate(timeout=PATIENCE)))
        unwritten = 0 if which != "stdout is full" else 3 if "nagios" in words else 2
        assert process.returncode == (code or unwritten), arguments
        assert not re.search("Traceback|Exception ignored", told)
        assert ("no space left on device\n" in told) == bool(unwritten and arguments != "pacs:0")
    os.close(gone)
    os.close(full)


@posix
def test_nothing_more_is_sent_for_who_reads_the_first_line_only() -> None:
    closed = threading.Event()

    def accept(conversation: Conversation) -> bytes:
        closed.wait(PATIENCE)
        return accept_proposal(conversation)

    with RawPeer(script(), script(accept=accept)) as peer:
        with start_process(command_line("-j", "1", *[peer.address] * 99)) as process:
            assert process.stdout
            assert process.stderr
            assert "✅ Success" in process.stdout.readline()
            process.stdout.close()
            closed.set()
            assert (process.wait(PATIENCE), process.stderr.read()) == (0, "")
        assert len(peer.received) < 99


def encoded(monkeypatch: pytest.MonkeyPatch, encoding: str, *arguments: str) -> Outcome:
    """What the command prints where the standard streams have this encoding."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding, write_through=True) for _ in range(2)]
    for name, stream in zip(("stdout", "stderr"), streams):
        monkeypatch.setattr(sys, name, stream)
    code = dicom_echo.main(arguments)
    out, err = (stream.buffer.getvalue().decode(encoding) for stream in streams)
    return Outcome(code, out, err)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "cp437", "utf-8", "utf-16-le"])
def test_ascii_stands_in_where_symbols_cannot_be_encoded(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    with contextlib.ExitStack() as stack:
        addresses = [stack.enter_context(RawPeer(KINDS[kind][0])).address for kind in ("ok", "status", "lost")]
        code, out, err = encoded(monkeypatch, encoding, "-v", *addresses)
    assert (code, err, out.isascii()) == (3, "", not encoding.startswith("utf"))
    symbols, bar = ({"❌", "✅"}, "█") if encoding.startswith("utf") else ({"[FAILED]", "[OK]"}, "#")
    assert set(re.findall(r"\[[A-Z]+\]|❌|✅", out)) == symbols
    assert re.search(rf" ms +{bar}+$", out, re.MULTILINE)
    assert not re.search(r"\\u|\?", out)


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
@pytest.mark.parametrize("options", [[], ["--format", "json"]], ids=["text", "json"])
def test_a_name_that_cannot_be_encoded_is_escaped(
    monkeypatch: pytest.MonkeyPatch, encoding: str, options: list[str]
) -> None:
    code, out, err = encoded(monkeypatch, encoding, *options, "bücher-東京.invalid")
    assert (code, err) == (3, "")
    assert ("東京" if encoding == "utf-8" and not options else "\\u6771\\u4eac") in out


def test_a_usage_error_and_help_in_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = encoded(monkeypatch, "ascii", "ü ü")
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1)
    for flag in ("--help", "-h", "--version"):
        outcome = encoded(monkeypatch, "ascii", flag)
        assert (outcome.code, outcome.err) == (0, "")


# --- In an application -----------------------------------------------------------------------------------------------


class Bare:
    """All that a stream must have: no encoding, no isatty, no flush, no fileno."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)


class Odd(Bare):
    encoding = None
    isatty = None


class Broken(Bare):
    """A pipe that nobody reads any more, which is no error."""

    def write(self, text: str) -> int:
        raise BrokenPipeError


def closed_stream() -> Any:
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("kind", [Bare, Odd, Broken, io.StringIO, closed_stream, type(None)])
@pytest.mark.parametrize("arguments", [REFUSED, f"{REFUSED} 127.0.0.1:2 -v", "--format nagios pacs:0"])
def test_another_standard_output(
    monkeypatch: pytest.MonkeyPatch, capsys: Capsys, kind: Callable[[], Any], arguments: str
) -> None:
    stream = kind()
    monkeypatch.setattr(sys, "stdout", stream)
    assert dicom_echo.main(arguments.split()) == 3
    assert "internal error" not in capsys.readouterr().err
    if type(stream) in (Bare, Odd):
        assert stream.text.startswith("DICOM ECHO UNKNOWN" if "nagios" in arguments else ("❌", "[FAILED]", "ANY-SCP@"))


@posix
def test_what_belongs_to_the_caller_stays_as_it_was(capsys: Capsys, peer: RawPeer) -> None:
    def belongings() -> list[object]:
        logger = logging.getLogger("dicom_echo")
        handlers = [signal.getsignal(number) for number in signal.valid_signals()]
        streams = [(stream.errors, stream.encoding) for stream in (sys.stdout, sys.stderr)]
        hooks = [sys.unraisablehook, sys.excepthook, threading.excepthook, socket.getaddrinfo]
        return [handlers, streams, hooks, warnings.filters[:], logger.handlers[:], logger.level]

    before = belongings()
    signal.setitimer(signal.ITIMER_REAL, 3600)
    try:
        for arguments in (
            "HOST", "HOST -c 2 -i 0", f"HOST {REFUSED}", "pacs:0", "-h", "--self-test", "--format nagios HOST",
            "-d HOST",
        ):  # fmt: skip
            run_main(capsys, *arguments.replace("HOST", peer.address).split())
            assert belongings() == before
            assert 3500 < signal.getitimer(signal.ITIMER_REAL)[0] < 3600
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def test_in_a_thread_that_is_not_the_main_one(capsys: Capsys, peer: RawPeer) -> None:
    codes: list[int] = []
    for addresses in [peer.address], [peer.address, REFUSED]:
        thread = threading.Thread(target=lambda: codes.append(dicom_echo.main(addresses)))  # noqa: B023
        thread.start()
        thread.join()
    assert codes == [0, 3]


SUBINTERPRETER = """
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
import sys
failed = interpreters.run_string(interpreters.create(), '''
import sys, dicom_echo
with open({file!r}, "w") as file:
    print(dicom_echo.main(["-q", {address!r}]), dicom_echo.main(["-q", {address!r}, "127.0.0.1:1"]), file=file)
''')
sys.stdout.flush()
import os
os._exit(bool(failed))  # to delete a subinterpreter that has imported this much crashes some Pythons
"""


def test_in_a_subinterpreter(tmp_path: Path, peer: RawPeer) -> None:
    program = SUBINTERPRETER.format(file=str(tmp_path / "codes"), address=peer.address)
    outcome = run_process([sys.executable, "-c", program])
    assert (outcome.code, outcome.err) == (0, "")
    assert (tmp_path / "codes").read_text() == "0 3\n"


WITHOUT_THREADS = """
import sys, threading, dicom_echo
def start(self):
    raise RuntimeError("can't start new thread")
threading.Thread.start = start
sys.exit(dicom_echo.main(sys.argv[1:]))
"""


def test_where_no_thread_can_be_started(peer: RawPeer) -> None:
    named = peer.address.replace("127.0.0.1", "localhost")
    hosts = [named, REFUSED, peer.address]
    outcome = run_process([sys.executable, "-c", WITHOUT_THREADS, "-4", "--format", "json", *hosts, "-c2", "-i0"])
    assert (outcome.code, outcome.err, outcome.out.count('"type": "echo"')) == (3, "", 6)
    assert outcome.out.count('"ok": true') == 4


@pytest.mark.parametrize("nagios", [False, True])
def test_whatever_escapes_is_one_line(capsys: Capsys, monkeypatch: pytest.MonkeyPatch, nagios: bool) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("a bug | of\nours")

    monkeypatch.setattr(dicom_echo, "_campaign", fail)
    code, out, err = run_main(capsys, "pacs", *["--format", "nagios"] * nagios, bug=True)
    told = out if nagios else err
    assert (code, out + err) == (3 if nagios else 2, told)
    assert told.count("\n") == 1
    assert told.startswith("DICOM ECHO UNKNOWN - internal error: " if nagios else "dicom-echo: internal error: ")
    assert "ZeroDivisionError: a bug" in told
    assert "please report it at https://" in told


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no /proc on this system")
def test_a_host_s_broken_stream_stays_the_host_s() -> None:
    """A process of our own points it at devnull before its exit; an application's descriptor is not ours to change."""
    program = "import os, sys, dicom_echo; dicom_echo.main(['-h']); sys.stderr.write(os.readlink('/proc/self/fd/1'))"
    reader, writer = os.pipe()
    os.close(reader)
    with start_process([sys.executable, "-c", program], writer) as process:
        os.close(writer)
        assert process.communicate(timeout=PATIENCE)[1].startswith("pipe:")


@posix
@pytest.mark.parametrize(
    ("wanted", "soft", "hard", "expected", "raised"),
    [
        (None, 1024, 4096, 32, []), (None, 70, 4096, 32, [(96, 4096)]), (None, 70, 80, 16, [(80, 80)]),
        (None, 10, 50, 1, [(50, 50)]), (100, 70, 4096, 100, [(164, 4096)]), (100, 70, 80, 16, [(80, 80)]),
    ],
)  # fmt: skip
def test_the_limit_of_open_files_is_raised_as_far_as_it_may(
    monkeypatch: pytest.MonkeyPatch, wanted: int | None, soft: int, hard: int, expected: int, raised: list[object]
) -> None:
    import resource

    seen: list[object] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: seen.append(limits))
    assert dicom_echo._jobs(wanted, 200) == expected
    assert seen == raised
