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
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command import (
    MODULE,
    PATIENCE,
    Outcome,
    command_line,
    environment,
    in_shell,
    posix,
    run_main,
    run_process,
    start_process,
)  # fmt: skip
from leaks import nothing_left_behind
from rawpeer import (
    A_ABORT,
    A_ASSOCIATE_RQ,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    Close,
    Conversation,
    Endpoint,
    Expect,
    Link,
    RawPeer,
    Script,
    Send,
    Serve,
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

HELP = " (see dicom-echo --help)\n"
FORM = "; expected [AE-TITLE@]HOST[:PORT]"
SUCCESS = Outcome(0, "✅ Success\n", "")
REFUSED = """\
❌ Unreachable: connection refused
   while connecting to {host_port}
   hint: nothing listens on this port, or a firewall resets the connection; usual DICOM ports: 104, 11112, 4242, 2762 \
(TLS)
"""

MODERN = int(importlib.metadata.version("pynetdicom").partition(".")[0]) > 2  # before, no IPv6, and bytes met text

full_disk = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "DICOM_ECHO_PASSWORD", "DICOM_ECHO_KEY_PASSWORD"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def good() -> Iterator[RawPeer]:
    """A good peer."""
    with RawPeer() as peer:
        yield peer


# --- Help and versions -----------------------------------------------------------------------------------------------

# The names of each option in their order, and its default.
OPTIONS = {
    "-aec --called --called-ae-title": "ANY-SCP", "-aet --calling --calling-ae-title": "ECHOSCU",
    "-id --id --message-id": "1", "--max-pdu": "16382", "--transfer-syntax": "implicit, explicit", "--abort": None,
    "--user": None, "--password-file": None, "--jwt-file": None, "--saml-file": None, "--kerberos-file": None,
    "-t --timeout": "10", "-4": None, "-6": None, "--source": None, "--tls": None, "--cacert": None, "--cert": None,
    "--key": None, "--key-password-file": None, "--ciphers": None, "-k --insecure": None, "--server-name": "HOST",
    "-c --count": "1", "-i --interval": "1", "--reuse": None, "--wait": None, "-T --targets": None, "-j --jobs": "32",
    "-q --quiet": None, "-v --verbose": None, "-d --debug": None, "--format": "text", "--warning": None,
    "--critical": None, "--warning-cert": None, "--critical-cert": None, "--output": None, "--color": "auto",
    "--self-test": None, "--listen": None, "--show-completion": "the login shell",
    "--install-completion": "the login shell", "-V --version": None, "-h": None, "--help": None,
}  # fmt: skip
FLAGS = " ".join(OPTIONS)
VALUED = (
    "-aec -aet -id --max-pdu --transfer-syntax --user --password-file --jwt-file --saml-file --kerberos-file -t "
    "--source --cacert --cert --key --key-password-file --ciphers --server-name -c -i --wait -T -j --format --warning "
    "--critical --warning-cert --critical-cert --output --color --listen"
)


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


def test_the_names_and_defaults_of_each_option() -> None:
    parser = dicom_echo._parser()
    helps = {" ".join(each.option_strings): each.help % vars(each) for each in parser._actions if each.option_strings}
    told = {names: re.search(r" \[([^\]]+)\]$", text) for names, text in helps.items()}
    assert {names: found and found[1] for names, found in told.items()} == OPTIONS
    assert list(helps) == list(OPTIONS)


def test_the_options_that_take_a_value_are_those_listed_here() -> None:
    actions = dicom_echo._parser()._actions
    assert [each.option_strings[0] for each in actions if each.option_strings and each.nargs is None] == VALUED.split()


@pytest.mark.parametrize("flag", ["-V", "--version"])
def test_the_version_names_all_parts_and_sends_nothing(capsys: Capsys, good: RawPeer, flag: str) -> None:
    parts = [f"{name} {importlib.metadata.version(name)}" for name in ("pynetdicom", "pydicom")]
    parts.append(f"Python {platform.python_version().rstrip('+')}")
    line = f"dicom-echo {dicom_echo.__version__} ({', '.join(parts)})\n"
    assert run_main(capsys, flag, good.address) == Outcome(0, line, "")
    assert good.received == []


# --- Options: their effect -------------------------------------------------------------------------------------------

EFFECTS: list[tuple[str, Callable[[Conversation], object], object]] = [
    ("", lambda seen: (seen.request.called, seen.request.calling), ("STORE", "ECHOSCU")),
    ("-aec ANY-SCP", lambda seen: seen.request.called, "ANY-SCP"),
    ("--called-ae-title OTHER", lambda seen: seen.request.called, "OTHER"),
    ("-aet ME", lambda seen: seen.request.calling, "ME"),
    ("--calling=ME", lambda seen: seen.request.calling, "ME"),
    ("", lambda seen: seen.message_ids, [1]),
    ("-id 0", lambda seen: seen.message_ids, [0]),
    ("--message-id 65535 -c 2 -i 0 --reuse", lambda seen: seen.message_ids, [65535, 1]),
    ("", lambda seen: seen.request.max_length, 16382),
    ("--max-pdu 0", lambda seen: seen.request.max_length, 0),
    ("--max-pdu 4294967295", lambda seen: seen.request.max_length, 4294967295),
    (
        "", lambda seen: seen.request.contexts[0].transfer_syntaxes,
        (IMPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_LITTLE_ENDIAN),
    ),
    (
        "--transfer-syntax 1.2.840.10008.1.2.1 --transfer-syntax implicit",
        lambda seen: seen.request.contexts[0].transfer_syntaxes,
        (EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN),
    ),
    ("--abort", lambda seen: seen.types[-1], A_ABORT),
    ("--user alice", lambda seen: b"\x01\x01\x00\x05alice" in seen.raw, True),
    ("--user alice --password-file SECRET", lambda seen: b"\x02\x01\x00\x05alice\x00\x03top" in seen.raw, True),
    ("--kerberos-file SECRET", lambda seen: b"\x03\x01\x00\x03top" in seen.raw, True),
    ("--saml-file SECRET", lambda seen: b"\x04\x01\x00\x03top" in seen.raw, True),
    ("--jwt-file SECRET", lambda seen: b"\x05\x01\x00\x03top" in seen.raw, True),
]  # fmt: skip


@pytest.mark.parametrize(("options", "look", "expected"), EFFECTS, ids=[each[0] for each in EFFECTS])
def test_options_reach_the_wire(
    capsys: Capsys,
    tmp_path: Path,
    good: RawPeer,
    options: str,
    look: Callable[[Conversation], object],
    expected: object,
) -> None:
    (tmp_path / "secret").write_text("top\r\n")
    arguments = options.replace("SECRET", str(tmp_path / "secret")).split()
    assert run_main(capsys, "-q", *arguments, f"STORE@{good.endpoint.host_port}") == Outcome(0, "", "")
    assert look(good.conversation()) == expected


def test_a_password_from_the_environment(capsys: Capsys, good: RawPeer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DICOM_ECHO_PASSWORD", "top")
    note = "   note      the secret of the user identity was sent without TLS\n"
    assert run_main(capsys, "--user", "alice", good.address) == Outcome(0, SUCCESS.out + note, "")
    assert b"\x02\x01\x00\x05alice\x00\x03top" in good.conversation().raw


def test_a_secret_on_standard_input(good: RawPeer) -> None:
    assert run_process(command_line("-q", "--jwt-file", "-", good.address), stdin=b"top\n") == Outcome(0, "", "")
    assert b"\x05\x01\x00\x03top" in good.conversation().raw


@pytest.mark.skipif(sys.platform != "linux", reason="all of 127.0.0.0/8 is this host on Linux alone")
def test_the_source_address(capsys: Capsys, good: RawPeer) -> None:
    outcome = run_main(capsys, "--source", "127.0.0.9", "--format", "json", good.address)
    assert json.loads(outcome.out)["local"].startswith("127.0.0.9:")


@pytest.mark.parametrize(("family", "host"), [("-4", "[::1]"), ("-6", "127.0.0.1")])
def test_a_family_that_does_not_fit(capsys: Capsys, family: str, host: str) -> None:
    outcome = run_main(capsys, family, f"{host}:104")
    assert outcome.code == 3
    assert outcome.out.startswith("❌ Unreachable: the address does not match -4, -6 or --source\n")


def test_the_timeout_is_that_of_the_whole_echo(capsys: Capsys) -> None:
    with silent_listener() as endpoint:
        outcome = run_main(capsys, "-t", "0.3", endpoint.address)
    assert outcome.code == 3
    assert outcome.out.startswith("❌ Timed out: no answer within 0.3 s\n")


@pytest.mark.parametrize("place", ["before", "after", "--"])
def test_options_and_hosts_stand_in_any_order(capsys: Capsys, good: RawPeer, place: str) -> None:
    arguments = {"before": ["-q", good.address], "after": [good.address, "-q"], "--": ["-q", "--", good.address]}
    assert run_main(capsys, *arguments[place], good.address) == Outcome(0, "", "")
    assert len(good.received) == 2


def test_debug_shows_every_pdu_on_standard_error_and_leaves_the_logger_alone(capsys: Capsys, good: RawPeer) -> None:
    logger = logging.getLogger("dicom_echo")
    before = logger.handlers[:], logger.level
    for _ in range(2):
        code, out, err = run_main(capsys, "-d", good.address)
        assert (code, out.splitlines()[0]) == (0, "✅ Success")
        heads = re.findall(
            rf"^\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{{3}} (sent|received) ([A-Z-]+), \d+ bytes, (?:to|from) "
            rf"{re.escape(good.address)}$", err, re.MULTILINE,
        )  # fmt: skip
        assert [f"{direction[0]} {name}" for direction, name in heads] == [
            "s A-ASSOCIATE-RQ", "r A-ASSOCIATE-AC", "s P-DATA-TF", "r P-DATA-TF", "s A-RELEASE-RQ", "r A-RELEASE-RP",
        ]  # fmt: skip
        assert (logger.handlers, logger.level) == before


# --- Options: what is refused ----------------------------------------------------------------------------------------

TLS_ONLY = (
    "--cacert, --cert, --key, --key-password-file, --ciphers, --insecure, --server-name, --warning-cert and "
    "--critical-cert require --tls"
)
QUIET = "--quiet cannot be combined with --verbose, --format and --output"
WAIT = "--wait cannot be combined with --count and --reuse"
NAGIOS_ONLY = "--warning, --critical, --warning-cert and --critical-cert require --format nagios"
AEC, AET = "argument -aec/--called/--called-ae-title: ", "argument -aet/--calling/--calling-ae-title: "
TITLE = "contains a backslash, a control character or a non-ASCII character"

REFUSALS: list[tuple[str, str]] = [
    ("", f"no HOST given{FORM}"),
    ("-v", f"no HOST given{FORM}"),
    ("--self-test pacs", "--self-test cannot be combined with HOST"),
    ("--self-test -T file", "--self-test cannot be combined with HOST"),
    ("--self-test --tls", "--self-test cannot be combined with --tls"),
    ("pacs:0", f"argument HOST: the port 0 is not in the range 1-65535{FORM}"),
    ("X@", f"argument HOST: the host is missing{FORM}"),
    ("pacs|104", f'argument HOST: "pacs 104" is not a host; write pacs:104{FORM}'),
    ("dicom://X@host:104", f'argument HOST: "dicom://X@host:104" is a URL{FORM}'),
    ("a\nb", f'argument HOST: "a\\nb" is not a host name{FORM}'),
    ("pacs -- -q", f'argument HOST: "-q" is not a host name{FORM}'),
    ("-aec", f"{AEC}expected one argument"),
    ("-aec SEVENTEEN-LETTERS pacs", f'{AEC}the AE title "SEVENTEEN-LETTERS" has 17 characters, 16 are allowed'),
    ("--called A\\B pacs", f"{AEC}the AE title 'A\\\\B' {TITLE}"),
    ("--calling-ae-title ÄÖ pacs", f"{AET}the AE title 'ÄÖ' {TITLE}"),
    ("-aet ||| pacs", f"{AET}the AE title is empty"),
    ("-id 65536 pacs", "argument -id/--id/--message-id: must be a whole number between 0 and 65535, not '65536'"),
    ("--id 1.5 pacs", "argument -id/--id/--message-id: must be a whole number between 0 and 65535, not '1.5'"),
    ("--max-pdu 15 pacs", "argument --max-pdu: must be 0 (unlimited) or between 16 and 4294967295, not '15'"),
    ("--max-pdu x pacs", "argument --max-pdu: must be 0 (unlimited) or between 16 and 4294967295, not 'x'"),
    (
        "--transfer-syntax nonsense pacs",
        "argument --transfer-syntax: a transfer syntax is one of implicit, explicit, deflated, big-endian or a UID, "
        "not 'nonsense'",
    ),
    ("--transfer-syntax=implicit " * 101 + "pacs", "--transfer-syntax can be given at most 100 times"),
    ("-t 0 pacs", "argument -t/--timeout: must be between 0.001 and 86400, not '0'"),
    ("-t nan pacs", "argument -t/--timeout: must be between 0.001 and 86400, not 'nan'"),
    ("-t 1e300 pacs", "argument -t/--timeout: must be between 0.001 and 86400, not '1e300'"),
    ("-4 -6 pacs", "argument -6: not allowed with argument -4"),
    ("-6 -4 pacs", "argument -4: not allowed with argument -6"),
    ("-c 1.5 pacs", "argument -c/--count: must be a whole number of at least 0, not '1.5'"),
    ("-i inf pacs", "argument -i/--interval: must be between 0 and 86400, not 'inf'"),
    ("-i 1 pacs", "--interval requires --count"),
    ("-c 1 -i 1 pacs", "--interval requires --count"),
    ("--reuse pacs", "--reuse requires --count"),
    ("--wait 1 -c 2 pacs", WAIT),
    ("--wait 1 --reuse pacs", WAIT),
    ("-j 0 a b", "argument -j/--jobs: must be a whole number between 1 and 10000, not '0'"),
    ("-j 2 pacs", "--jobs requires several targets"),
    ("-q -v pacs", QUIET),
    ("-q --format json pacs", QUIET),
    ("-q --output file pacs", QUIET),
    ("-v --format json pacs", "--verbose cannot be combined with --format"),
    ("-c 0 --format prometheus pacs", "--count 0 cannot be combined with --format prometheus"),
    ("--warning 1 pacs", NAGIOS_ONLY),
    ("--critical 1 --format json pacs", NAGIOS_ONLY),
    ("--tls --warning-cert 1 pacs", NAGIOS_ONLY),
    ("--cacert x pacs", TLS_ONLY),
    ("--cert x pacs", TLS_ONLY),
    ("--key x pacs", TLS_ONLY),
    ("--key-password-file x pacs", TLS_ONLY),
    ("--ciphers x pacs", TLS_ONLY),
    ("-k pacs", TLS_ONLY),
    ("--server-name x pacs", TLS_ONLY),
    ("--tls --key x pacs", "--key requires --cert"),
    ("--tls --key-password-file x pacs", "--key-password-file requires --cert"),
    ("--tls -k --cacert x pacs", "--insecure cannot be combined with --cacert"),
    ("--user a --jwt-file b pacs", "--user, --jwt-file, --saml-file and --kerberos-file cannot be combined"),
    ("--password-file x pacs", "--password-file requires --user"),
    ("--jwt-file no-such pacs", "cannot read no-such: no such file or directory"),
    ("--user a --password-file - -T -", "standard input can be read only once"),
    ("--output /no/such/file pacs", "cannot write /no/such/file: there is no folder /no/such"),
    ("--no-such-option pacs", "unrecognized arguments: --no-such-option"),
    ("--time 1 pacs", "unrecognized arguments: --time"),
    ("-x pacs", "unrecognized arguments: -x"),
]


@pytest.mark.parametrize(("arguments", "why"), REFUSALS, ids=[each[0][:40] for each in REFUSALS])
def test_a_usage_error_is_one_exact_line_on_standard_error(capsys: Capsys, arguments: str, why: str) -> None:
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
    assert (code, out, err.count("\n"), err.startswith(f"dicom-echo: {why}"), err.endswith(HELP)) == (
        2,
        "",
        1,
        True,
        True,
    )


@pytest.mark.parametrize("form", ["separate", "="])
@pytest.mark.parametrize("option", [*VALUED.split(), "--show-completion", "--install-completion"])
def test_an_option_given_as_empty_text_is_an_error(capsys: Capsys, good: RawPeer, option: str, form: str) -> None:
    """As it is when a script's variable is not set: it is never "not given"."""
    arguments = [f"{option}="] if form == "=" and option.startswith("--") else [option, ""]
    code, out, err = run_main(capsys, *arguments, good.address)
    assert (code, out, err.count("\n"), good.received) == (2, "", 1, [])
    assert re.match(rf"dicom-echo: argument (\S+/)?{option}(/\S+)?: ", err)
    assert "not ''" in err or "empty" in err or "invalid choice: ''" in err or "missing" in err


def test_one_bad_address_and_nothing_is_sent(capsys: Capsys, good: RawPeer) -> None:
    assert run_main(capsys, good.address, "pacs:0").code == 2
    assert run_main(capsys, good.address, "pacs:0", "pacs:x").err.count("argument HOST: ") == 2
    assert run_main(capsys, good.address).code == 0
    assert len(good.received) == 1


@posix
def test_an_argument_that_is_no_text() -> None:
    code, out, err = run_process(command_line("\udcff"))
    assert (code, out, err.count("\n")) == (2, "", 1)


@pytest.mark.parametrize("form", [["--format", "nagios"], ["--format=nagios"]], ids=str)
@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ("pacs:0", f"argument HOST: the port 0 is not in the range 1-65535{FORM}"),
        ("", f"no HOST given{FORM}"),
        ("--no-such-option pacs", "unrecognized arguments: --no-such-option"),
        ("--warning x pacs", "argument --warning: must be at least 0, not 'x'"),
        ("--warning 2 --critical 1 pacs", "--warning must not be above --critical"),
        ("--tls --warning-cert 1 --critical-cert 2 pacs", "--warning-cert must not be below --critical-cert"),
        ("--warning-cert 1 pacs", TLS_ONLY),
        ("-c 0 pacs", "--count 0 cannot be combined with --format nagios"),
        ("-v pacs", "--verbose cannot be combined with --format"),
        ("--jwt-file no-such pacs", "cannot read no-such: no such file or directory"),
    ],
)
def test_a_usage_error_is_a_line_on_standard_output_for_nagios(
    capsys: Capsys, form: list[str], arguments: str, why: str
) -> None:
    outcome = run_main(capsys, *form, *arguments.split())
    assert outcome == Outcome(3, f"DICOM ECHO UNKNOWN - {why.replace('|', '')}\n", "")


@posix
def test_an_encrypted_key_is_never_asked_for_at_a_terminal(tmp_path: Path) -> None:
    """Nor is its pass phrase read out of what -T reads."""
    from command import run_on_terminal
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        form.Encoding.PEM, form.PrivateFormat.PKCS8, form.BestAvailableEncryption(b"secret")
    )
    (tmp_path / "key.pem").write_bytes(key)
    import trustme

    trustme.CA().cert_pem.write_to_path(str(tmp_path / "cert.pem"))
    files = ["--cert", tmp_path / "cert.pem", "--key", tmp_path / "key.pem"]
    outcome = run_on_terminal("--tls", *files, "127.0.0.1:1", width=200)
    assert (outcome.code, outcome.out.count("\n")) == (2, 1)
    assert "the key is encrypted: pass --key-password-file FILE or DICOM_ECHO_KEY_PASSWORD" in outcome.out
    assert run_process(command_line("--tls", *files, "-T", "-"), stdin=b"secret\n").code == 2


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
        address = ["-t", "0.3", peer.address]
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


def test_a_port_where_nobody_listens_and_a_name_that_does_not_resolve(capsys: Capsys, refusing: Endpoint) -> None:
    assert run_main(capsys, refusing.host_port) == Outcome(3, REFUSED.format(host_port=refusing.host_port), "")
    assert run_main(capsys, "-q", "no-such-host.invalid") == Outcome(3, "", "")


@pytest.mark.parametrize(
    ("kinds", "code"),
    [("ok ok", 0), ("status ok", 1), ("rejected ok", 1), ("lost rejected ok", 3), ("aborted lost", 3)],
)
@pytest.mark.parametrize("options", ["", "-q", "--format json", "-c 2 -i 0"])
def test_of_several_hosts_the_highest_exit_code(capsys: Capsys, kinds: str, code: int, options: str) -> None:
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(RawPeer(KINDS[kind][0])) for kind in kinds.split()]
        outcome = run_main(capsys, *options.split(), *[peer.address for peer in peers])
    assert (outcome.code, outcome.err, outcome.out == "") == (code, "", options == "-q")


# --- Self-test -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", ["", "-4", "--abort", "-aec OTHER", "-c 2 -i 0 -q", "--format json"])
def test_the_self_test_takes_options_and_leaves_nothing(capsys: Capsys, options: str) -> None:
    with nothing_left_behind(patience=5):
        outcome = run_main(capsys, "--self-test", *options.split())
    assert (outcome.code, outcome.err) == (0, "")
    assert (outcome == SUCCESS) == (options in ("", "-4", "--abort", "-aec OTHER"))


@pytest.mark.skipif(not MODERN, reason="pynetdicom 2 serves IPv4 only")
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


@pytest.mark.parametrize("flags", [["-O"], ["-OO"], [*["-bb"] * MODERN, "-W", "error"], ["-X", "dev"]], ids=str)
def test_as_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_process(command_line("--self-test", flags=flags)) == SUCCESS


@pytest.mark.parametrize("flags", [["-I"], ["-E"]], ids=str)
def test_as_a_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    # -E and -I ignore PYTHONIOENCODING: what is printed is not looked at.
    assert run_process([sys.executable, *flags, str(MODULE), "-q", "--self-test"]) == Outcome(0, "", "")


def test_without_any_installed_package(good: RawPeer) -> None:
    bare = [sys.executable, "-I", "-S", str(MODULE)]
    for flag in ("--help", "-h", "--version"):
        outcome = run_process([*bare, flag])
        assert (outcome.code, outcome.err) == (0, "")
    why = "pynetdicom is not installed: pip install pynetdicom, or use dicom-echo.pyz"
    assert run_process([*bare, good.address]) == Outcome(2, "", f"dicom-echo: {why}{HELP}")
    nagios = run_process([*bare, "--format", "nagios", good.address])
    assert nagios == Outcome(3, f"DICOM ECHO UNKNOWN - {why}\n", "")
    assert good.received == []


@posix
@pytest.mark.parametrize("limit", [5, 6, 7, 9, 12])
def test_few_open_files_are_blamed_on_this_host(good: RawPeer, limit: int) -> None:
    outcome = in_shell(f'ulimit -n {limit}; exec "$@"', "--format", "nagios", good.address)
    assert outcome.out.count("\n") == 1
    assert outcome.err == "" or "site-packages" in outcome.err  # Python's own, on a file there that it cannot open
    assert (outcome.code, outcome.out[:19]) in [(0, "DICOM ECHO OK - ANY"), (3, "DICOM ECHO UNKNOWN ")]
    assert (outcome.code == 0) == (limit > 6)


@posix
@pytest.mark.parametrize(("limit", "jobs", "code"), [(70, "", 0), (70, "-j 9", 2), (70, "-j 6", 0)])
def test_more_jobs_than_open_files_are_refused(limit: int, jobs: str, code: int) -> None:
    hosts = [f"127.0.0.1:{number}" for number in range(1, 10)]
    outcome = in_shell(f'ulimit -Sn 12; ulimit -Hn {limit}; exec "$@"', *hosts, *jobs.split())
    assert outcome.code == (code or 3)
    assert outcome.err == ((code and f"dicom-echo: --jobs 9 needs 73 open files, but the system allows 70{HELP}") or "")


# --- Streams ---------------------------------------------------------------------------------------------------------


@posix
@pytest.mark.parametrize("options", ["", "-v", "--format json", "-q", "--format nagios"])
@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-", "<&-", "<&- >&- 2>&-"])
def test_closed_standard_streams(refusing: Endpoint, closed: str, options: str) -> None:
    outcome = in_shell(f'exec "$@" {closed}', *options.split(), refusing.host_port)
    assert (outcome.code, outcome.err) == (2 if "nagios" in options else 3, "")
    assert (outcome.out == "") == (">&-" in closed.split() or options == "-q")


@posix
@pytest.mark.parametrize("arguments", ["pacs:0", "-d 127.0.0.1:1"])
def test_standard_error_is_closed(arguments: str) -> None:
    outcome = in_shell('exec "$@" 2>&-', *arguments.split())
    assert (outcome.code, outcome.err) == (2 if "pacs" in arguments else 3, "")
    assert outcome.out[:1] == ("" if "pacs" in arguments else "❌")


@posix
def test_standard_input_is_closed() -> None:
    """As it is for a job that a daemon starts."""
    outcome = in_shell('exec "$@" <&-', "-T", "-")
    assert outcome == Outcome(2, "", f"dicom-echo: cannot read -: standard input is closed{HELP}")


@posix
@full_disk
@pytest.mark.parametrize("reader", [">/dev/full", "| true", "2>&1 | true", "2>/dev/full"])
@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ("--version", 0), ("--help", 0), ("-h", 0), ("--self-test", 0), ("pacs:0", 2),
        ("--format nagios pacs:0", 3), ("--format nagios --self-test", 0),
    ],
)  # fmt: skip
def test_what_nobody_can_read_has_its_exit_code_and_no_traceback(
    reader: str, unbuffered: str, arguments: str, code: int
) -> None:
    """A full disk is trouble: exit code 2, for nagios 3. Where a pipe is closed, what went well has gone well."""
    outcome = in_shell(
        f'set -o pipefail; (sleep 0.1; exec "$@") {reader}', *arguments.split(), PYTHONUNBUFFERED=unbuffered
    )
    full = ">/dev/full" in reader and "2>/dev" not in reader and code == 0
    assert outcome.code == ((3 if "nagios" in arguments else 2) if full else code)
    assert "Traceback" not in outcome.err + outcome.out
    assert "Exception ignored" not in outcome.err + outcome.out
    if full:
        assert "dicom-echo: cannot write the results: no space left on device\n" in outcome.err + outcome.out


@posix
def test_nothing_more_is_sent_for_who_reads_the_first_line_only() -> None:
    waiting = threading.Event()

    class Hold:
        """Waits until the test lets go."""

        def run(self, link: Link) -> None:
            waiting.wait(PATIENCE)

    held: Script = (Expect(A_ASSOCIATE_RQ), Hold(), Send(accept_proposal), Serve())
    with RawPeer(script(), held) as peer:
        with start_process(command_line("-j", "1", *[peer.address] * 6)) as process:
            assert process.stdout
            assert process.stderr
            first = process.stdout.readline()
            process.stdout.close()
            waiting.set()
            assert (process.wait(PATIENCE), process.stderr.read()) == (0, "")
        assert len(peer.received) < 6
    assert "✅ Success" in first


def three_outcomes(encoding: str, *options: str) -> Outcome:
    """A success, a failing status and a lost association, printed in this encoding."""
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(RawPeer(KINDS[kind][0])) for kind in ("ok", "status", "lost")]
        command = command_line(*options, *[peer.address for peer in peers])
        return run_process(command, environment(PYTHONIOENCODING=encoding), encoding)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "cp437"])
def test_ascii_stands_in_where_symbols_cannot_be_encoded(encoding: str) -> None:
    code, out, err = three_outcomes(encoding, "-v")
    assert (code, err, out.isascii()) == (3, "", True)
    assert sorted(set(re.findall(r"\[[A-Z]+\]", out))) == ["[FAILED]", "[OK]"]
    assert re.search(r" ms +#+$", out, re.MULTILINE)
    assert "\\u" not in out
    assert "?" not in out


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le"])
def test_symbols_where_they_can_be_encoded(encoding: str) -> None:
    code, out, err = three_outcomes(encoding)
    assert (code, err) == (3, "")
    assert [symbol for symbol in ("✅", "❌", "[OK]") if symbol in out] == ["✅", "❌"]


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
@pytest.mark.parametrize("options", [[], ["--format", "json"]], ids=["text", "json"])
def test_a_name_that_cannot_be_encoded_is_escaped(encoding: str, options: list[str]) -> None:
    command = command_line(*options, "bücher-東京.invalid")
    code, out, err = run_process(command, environment(PYTHONIOENCODING=encoding), encoding)
    assert (code, err) == (3, "")
    assert ("東京" if encoding == "utf-8" and not options else "\\u6771\\u4eac") in out


def test_a_usage_error_and_help_in_ascii() -> None:
    env = environment(PYTHONIOENCODING="ascii:strict")
    outcome = run_process(command_line("ü ü"), env, "ascii")
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1)
    for flag in ("--help", "-h", "--version"):
        outcome = run_process(command_line(flag), env, "ascii")
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
    encoding = "no-such-encoding"
    isatty = None


def closed_stream() -> Any:
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("kind", [Bare, Odd, io.StringIO, closed_stream, type(None)])
@pytest.mark.parametrize(
    ("arguments", "code"), [("127.0.0.1:1", 3), ("127.0.0.1:1 127.0.0.1:2 -v", 3), ("--format nagios pacs:0", 3)]
)
def test_another_standard_output(
    monkeypatch: pytest.MonkeyPatch, capsys: Capsys, kind: Callable[[], Any], arguments: str, code: int
) -> None:
    stream = kind()
    monkeypatch.setattr(sys, "stdout", stream)
    assert dicom_echo.main(arguments.split()) == code
    assert "internal error" not in capsys.readouterr().err
    if isinstance(stream, Bare):
        assert stream.text.startswith("DICOM ECHO UNKNOWN" if "nagios" in arguments else ("❌", "[FAILED]", "ANY-SCP@"))


def test_what_belongs_to_the_caller_stays_as_it_was(capsys: Capsys, good: RawPeer, refusing: Endpoint) -> None:
    def belongings() -> list[object]:
        numbers = [
            getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGALRM") if hasattr(signal, name)
        ]
        streams = [(stream.errors, stream.encoding) for stream in (sys.stdout, sys.stderr)]
        return [
            [signal.getsignal(number) for number in numbers], streams, warnings.filters[:], sys.unraisablehook,
            sys.excepthook, threading.excepthook, logging.getLogger("dicom_echo").handlers[:], socket.getaddrinfo,
        ]  # fmt: skip

    before = belongings()
    timer = hasattr(signal, "setitimer")
    if timer:
        signal.setitimer(signal.ITIMER_REAL, 3600)
    try:
        for arguments in (
            [good.address], [good.address, "-c", "2", "-i", "0"], [good.address, refusing.address], ["pacs:0"], ["-h"],
            ["--self-test"], [good.address, "--format", "nagios"], ["-d", good.address],
        ):  # fmt: skip
            run_main(capsys, *arguments)
            assert belongings() == before
            assert not timer or 3500 < signal.getitimer(signal.ITIMER_REAL)[0] < 3600
    finally:
        if timer:
            signal.setitimer(signal.ITIMER_REAL, 0)


def test_in_a_thread_that_is_not_the_main_one(capsys: Capsys, good: RawPeer, refusing: Endpoint) -> None:
    codes: list[int] = []
    for addresses in [good.address], [good.address, refusing.address]:
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


def test_in_a_subinterpreter(tmp_path: Path, good: RawPeer) -> None:
    program = SUBINTERPRETER.format(file=str(tmp_path / "codes"), address=good.address)
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


def test_where_no_thread_can_be_started(good: RawPeer, refusing: Endpoint) -> None:
    named = good.address.replace("127.0.0.1", "localhost")
    command = [sys.executable, "-c", WITHOUT_THREADS]
    assert run_process([*command, "-4", named]) == SUCCESS
    outcome = run_process([*command, "-4", "--format", "json", named, refusing.address, good.address, "-c", "2"])
    assert (outcome.code, outcome.err, outcome.out.count('"type": "echo"')) == (3, "", 6)


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


def test_the_process_s_own_arguments(capsys: Capsys, monkeypatch: pytest.MonkeyPatch, good: RawPeer) -> None:
    monkeypatch.setattr(sys, "argv", ["dicom-echo", "-q", good.address])
    assert dicom_echo.main() == 0
    assert len(good.received) == 1


def test_a_host_s_broken_stream_stays_the_host_s() -> None:
    """A process of our own points it at devnull before its exit; an application's descriptor is not ours to change."""
    program = "import os, sys, dicom_echo; dicom_echo.main(['127.0.0.1:1']); print(os.readlink('/proc/self/fd/1'))"
    if not Path("/proc/self/fd").exists():
        pytest.skip("no /proc on this system")
    reader, writer = os.pipe()
    os.close(reader)
    shown = f"{program.replace('print(', 'sys.stderr.write(')}"
    with start_process([sys.executable, "-u", "-c", shown], writer) as process:
        os.close(writer)
        _, err = process.communicate(timeout=PATIENCE)
    assert err.startswith("pipe:")


# --- In this process, what others show in one of their own -----------------------------------------------------------


@pytest.mark.parametrize(("columns", "size"), [("77", (77, 0)), ("", (80, 0)), ("many", (80, 0))])
def test_the_size_of_what_is_no_terminal(monkeypatch: pytest.MonkeyPatch, columns: str, size: tuple[int, int]) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert dicom_echo._terminal_size(io.StringIO()) == size


@posix
@pytest.mark.parametrize(
    ("wanted", "soft", "hard", "expected", "raised"),
    [
        (None, 1024, 4096, 32, []),
        (None, 70, 4096, 32, [(96, 4096)]),
        (None, 70, 80, 16, [(80, 80)]),
        (None, 10, 50, 1, [(50, 50)]),
        (100, 70, 4096, 100, [(164, 4096)]),
        (100, 70, 80, None, [(80, 80)]),
    ],
)
def test_the_limit_of_open_files_is_raised_as_far_as_it_may(
    monkeypatch: pytest.MonkeyPatch,
    wanted: int | None,
    soft: int,
    hard: int,
    expected: int | None,
    raised: list[object],
) -> None:
    import resource

    seen: list[object] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: seen.append(limits))
    if expected is None:
        with pytest.raises(ValueError, match="--jobs 100 needs 164 open files, but the system allows 80"):
            dicom_echo._jobs(wanted, 200)
    else:
        assert dicom_echo._jobs(wanted, 200) == expected
    assert seen == raised


def test_targets_from_what_an_application_has_put_in_the_place_of_standard_input(
    monkeypatch: pytest.MonkeyPatch, capsys: Capsys, refusing: Endpoint
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{refusing.host_port} # one\n"))
    assert run_main(capsys, "-q", "-T", "-") == Outcome(3, "", "")
    monkeypatch.setattr(sys, "stdin", None)
    assert run_main(capsys, "-q", "-T", "-").err == f"dicom-echo: cannot read -: standard input is closed{HELP}"


def test_a_full_disk_is_reported_and_a_closed_pipe_is_not(capsys: Capsys) -> None:
    assert dicom_echo._unwritten(BrokenPipeError()) == 0
    assert dicom_echo._unwritten(OSError(28, "No space left on device")) == 2
    assert capsys.readouterr().err == "dicom-echo: cannot write the results: no space left on device\n"
