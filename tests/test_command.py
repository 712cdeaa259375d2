"""The command: its options, what it refuses, how it leaves, and what it does with streams and inside applications."""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import importlib.metadata
import io
import itertools
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
from pathlib import Path

import pytest
import rawpeer
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
    run_process,
    start_process,
)
from leaks import nothing_left_behind
from rawpeer import Conversation, RawPeer, Script, accept_proposal, close, script

import dicom_echo

Capsys = pytest.CaptureFixture[str]

FORM = "; expected [AE-TITLE@]HOST[:PORT]"
SUCCESS = Outcome(0, "✅ Success\n", "")
OTHER_FAMILY = "❌ Unreachable: the address does not match -4, -6 or --source"

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
    assert set(re.findall(r"(?<![\S-])--?[a-z][\w-]*", out)) <= set(" ".join(OPTIONS).split()), "no option of ours"
    groups = re.findall(r"^([A-Z][A-Za-z ]*):$", out, re.MULTILINE)
    assert groups[:3] == ["Arguments", "DICOM Options", "User Identity Options"]
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

IMPLICIT, EXPLICIT = rawpeer.IMPLICIT_VR_LITTLE_ENDIAN, rawpeer.EXPLICIT_VR_LITTLE_ENDIAN
PLAIN = {
    "called": "STORE", "calling": "ECHOSCU", "ids": [1], "last": rawpeer.A_RELEASE_RQ, "max_pdu": 16382,
    "syntaxes": (IMPLICIT, EXPLICIT), "identity": None,
}  # fmt: skip
# What an option changes in it.
EFFECTS: dict[str, dict[str, object]] = {
    "": {},
    "-aec ANY-SCP": {"called": "ANY-SCP"},
    "--called-ae-title OTHER": {"called": "OTHER"},
    "-aet ME": {"calling": "ME"},
    "--calling=ME": {"calling": "ME"},
    "-id 0": {"ids": [0]},
    "--message-id 65535 -c 2 -i 0 --reuse": {"ids": [65535, 1]},
    "--max-pdu 0": {"max_pdu": 0},
    "--max-pdu 4294967295": {"max_pdu": 4294967295},
    "--transfer-syntax 1.2.840.10008.1.2.1 --transfer-syntax implicit": {"syntaxes": (EXPLICIT, IMPLICIT)},
    "--abort": {"last": rawpeer.A_ABORT},
    "--user alice": {"identity": b"\x01\x01\x00\x05alice\x00\x00"},
    "--user alice --password-file secret": {"identity": b"\x02\x01\x00\x05alice\x00\x03top"},
    "--kerberos-file secret": {"identity": b"\x03\x01\x00\x03top\x00\x00"},
    "--saml-file secret": {"identity": b"\x04\x01\x00\x03top\x00\x00"},
    "--jwt-file secret": {"identity": b"\x05\x01\x00\x03top\x00\x00"},
    "--jwt-file -": {"identity": b"\x05\x01\x00\x03top\x00\x00"},
}


def sent(conversation: Conversation) -> dict[str, object]:
    request = conversation.request
    return {
        "called": request.called, "calling": request.calling, "ids": conversation.message_ids,
        "last": conversation.types[-1], "max_pdu": request.max_length,
        "syntaxes": request.contexts[0].transfer_syntaxes, "identity": request.user_items.get(0x58),
    }  # fmt: skip


def test_options_reach_the_wire(capsys: Capsys, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, peer: RawPeer) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret").write_text("top\r\n")
    for options in EFFECTS:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"top\n")))
        assert run_main(capsys, "-q", *options.split(), f"STORE@{peer.endpoint.host_port}") == Outcome(0, "", "")
    seen = {options: sent(peer.conversation(number)) for number, options in enumerate(EFFECTS)}
    assert seen == {options: {**PLAIN, **changed} for options, changed in EFFECTS.items()}


def test_a_password_from_the_environment(capsys: Capsys, peer: RawPeer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DICOM_ECHO_PASSWORD", "top")
    note = "   note      the secret of the user identity was sent without TLS\n"
    assert run_main(capsys, "--user", "alice", peer.address) == Outcome(0, SUCCESS.out + note, "")
    assert sent(peer.conversation())["identity"] == b"\x02\x01\x00\x05alice\x00\x03top"


@pytest.mark.skipif(sys.platform != "linux", reason="all of 127.0.0.0/8 is this host on Linux alone")
def test_the_source_address(capsys: Capsys, peer: RawPeer) -> None:
    outcome = run_main(capsys, "--source", "127.0.0.9", "--format", "json", peer.address)
    assert json.loads(outcome.out)["local"].startswith("127.0.0.9:")


def test_options_and_hosts_stand_in_any_order(capsys: Capsys, peer: RawPeer) -> None:
    for arguments in ("-q HOST HOST", "HOST -q HOST", "-q -- HOST HOST"):
        assert run_main(capsys, *arguments.replace("HOST", peer.address).split()) == Outcome(0, "", "")
    assert len(peer.received) == 6


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

AEC, AET = "argument -aec/--called/--called-ae-title: ", "argument -aet/--calling/--calling-ae-title: "
SYNTAX = "a transfer syntax is one of implicit, explicit, deflated, big-endian or a UID"
TITLE = "contains a backslash, a control character or a non-ASCII character"
PORT = f"argument HOST: the port 0 is not in the range 1-65535{FORM}"

# Command lines, in which | is a space in an argument, and what is said of them.
REFUSALS: dict[str, str] = {
    **dict.fromkeys(("", "-v", "--format nagios"), f"no HOST given{FORM}"),
    **dict.fromkeys(("pacs:0", "--format nagios pacs:0", "--format=nagios pacs:0"), PORT),
    "a\nb": f'argument HOST: "a\\nb" is not a host name{FORM}',
    "\udcff": f'argument HOST: "\\udcff" is not a host name{FORM}',
    "pacs -- -q": f'argument HOST: "-q" is not a host name{FORM}',
    "--self-test pacs": "--self-test cannot be combined with HOST",
    "--self-test -T file": "--self-test cannot be combined with --targets",
    "--self-test --tls": "--self-test cannot be combined with --tls",
    "-aec": f"{AEC}expected one argument",
    "-aec SEVENTEEN-LETTERS pacs": f'{AEC}the AE title "SEVENTEEN-LETTERS" has 17 characters, 16 are allowed',
    "--called A\\B pacs": f"{AEC}the AE title 'A\\\\B' {TITLE}",
    "--calling-ae-title ÄÖ pacs": f"{AET}the AE title 'ÄÖ' {TITLE}",
    "-aet ||| pacs": f"{AET}the AE title is empty",
    "-id 65536 pacs": "argument -id/--id/--message-id: must be a whole number between 0 and 65535, not '65536'",
    "--id 1.5 pacs": "argument -id/--id/--message-id: must be a whole number between 0 and 65535, not '1.5'",
    "--max-pdu 15 pacs": "--max-pdu must be 0 (unlimited) or an integer from 16 to 4294967295, not 15",
    "--max-pdu x pacs": "argument --max-pdu: must be a whole number between 0 and 4294967295, not 'x'",
    "--transfer-syntax nonsense pacs": f"argument --transfer-syntax: {SYNTAX}, not 'nonsense'",
    **{f"-t {wrong} pacs": f"argument -t/--timeout: must be between 0.001 and 86400, not '{wrong}'"
       for wrong in ("0", "nan", "1e300")},
    "-4 -6 pacs": "argument -6: not allowed with argument -4",
    "-c 1.5 pacs": "argument -c/--count: must be a whole number of at least 0, not '1.5'",
    "-i inf pacs": "argument -i/--interval: must be between 0 and 86400, not 'inf'",
    **dict.fromkeys(("-i 1 pacs", "-c 1 -i 1 pacs"), "--interval requires --count"),
    "--reuse pacs": "--reuse requires --count",
    **dict.fromkeys(("--wait 1 -c 2 pacs", "--wait 1 -c 2 --reuse pacs"), "--wait cannot be combined with --count"),
    "-j 0 a b": "argument -j/--jobs: must be a whole number between 1 and 10000, not '0'",
    "-j 2 pacs": "--jobs requires several targets",
    "-q -v pacs": "--quiet cannot be combined with --verbose",
    "-q --format json pacs": "--quiet cannot be combined with --format",
    "-q --output file pacs": "--quiet cannot be combined with --output",
    **dict.fromkeys(("-v --format json pacs", "-v --format nagios pacs"), "--verbose cannot be combined with --format"),
    **{f"-c 0 --format {form} pacs": f"--count 0 cannot be combined with --format {form}"
       for form in ("prometheus", "nagios")},
    "--format nagios --warning x pacs": "argument --warning: must be at least 0, not 'x'",
    "--format nagios --warning 2 --critical 1 pacs": "--warning must not be above --critical",
    "--format nagios --tls --warning-cert 1 --critical-cert 2 pacs": "--warning-cert must not be below --critical-cert",
    "--format nagios --warning-cert 1 pacs": "--warning-cert requires --tls",
    "--warning 1 pacs": "--warning requires --format=nagios",
    "--critical 1 --format json pacs": "--critical requires --format=nagios",
    "--tls --warning-cert 1 pacs": "--warning-cert requires --format=nagios",
    **{f"{option} x pacs": f"{option} requires --tls"
       for option in ("--cacert", "--cert", "--key", "--key-password-file", "--ciphers", "--server-name")},
    "-k pacs": "--insecure requires --tls",
    "--tls --key x pacs": "--key requires --cert",
    "--tls --key-password-file x pacs": "--key-password-file requires --cert",
    "--tls -k --cacert x pacs": "argument --cacert: not allowed with argument -k/--insecure",
    "--user a --jwt-file b pacs": "argument --jwt-file: not allowed with argument --user",
    "--password-file x pacs": "--password-file requires --user",
    **dict.fromkeys(
        ("-T - -T -", "-T - --jwt-file -", "--user a --password-file - -T -",
         "--tls --cert a --key-password-file - --saml-file - pacs"), "standard input can be read only once"),
    **dict.fromkeys(("--jwt-file no-such pacs", "--format nagios --jwt-file no-such pacs"),
        "cannot read no-such: no such file or directory"),
    f"-T {os.devnull}": f"{os.devnull} contains no addresses",
    "--output /no/such/file pacs": "cannot write /no/such/file: no such file or directory",
    **dict.fromkeys(("--no-such-option pacs", "--format nagios --no-such-option pacs"),
        "unrecognized arguments: --no-such-option"),
    "--time 1 pacs": "unrecognized arguments: --time",
    "-x pacs": "unrecognized arguments: -x",
}  # fmt: skip
# Those of which Python, or the system, says more.
IN_OTHER_WORDS = {
    "--format xml pacs": "argument --format: invalid choice: 'xml' (choose from ",
    "--color blue pacs": "argument --color: invalid choice: 'blue' (choose from ",
    "-id -1 pacs": "argument -id/--id/--message-id: ",
    "-6 --source 127.0.0.1 pacs": "--source must be an IP address of this host, not '127.0.0.1': ",
}


def refused(capsys: Capsys, arguments: str) -> Outcome:
    return run_main(capsys, *(word.replace("|", " ") for word in arguments.split(" ") if word))


def test_a_usage_error_is_one_exact_line_on_standard_error_or_for_nagios_on_standard_output(capsys: Capsys) -> None:
    def told(arguments: str, why: str) -> Outcome:
        if "nagios" in arguments:
            return Outcome(3, f"DICOM ECHO UNKNOWN - {why}\n", "")
        return Outcome(2, "", f"dicom-echo: {why}{HELP}")

    assert {each: refused(capsys, each) for each in REFUSALS} == {each: told(each, REFUSALS[each]) for each in REFUSALS}


def test_a_usage_error_in_words_of_python_or_the_system_is_one_line_too(capsys: Capsys) -> None:
    for arguments, why in IN_OTHER_WORDS.items():
        code, out, err = refused(capsys, arguments)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert err.startswith(f"dicom-echo: {why}")
        assert err.endswith(HELP)


def test_each_bad_address_is_told(capsys: Capsys) -> None:
    told = f"dicom-echo: {PORT}{HELP}argument HOST: the port x is not in the range 1-65535{FORM}\n"
    assert run_main(capsys, "pacs", "pacs:0", "pacs:x") == Outcome(2, "", told)


def test_an_option_given_as_empty_text_is_an_error(capsys: Capsys, peer: RawPeer) -> None:
    """As it is when a script's variable is not set: it is never "not given"."""
    options = [names.split()[0] for names, default in OPTIONS.items() if default is not None]
    separate, joined = ([option, ""] for option in options), ([f"{each}="] for each in options if each[:2] == "--")
    for given in itertools.chain(separate, joined):
        code, out, err = run_main(capsys, *given, peer.address)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert re.match(rf"dicom-echo: argument (\S+/)?{given[0].rstrip('=')}(/\S+)?: ", err)
        assert re.search("not ''|empty|invalid choice: ''|missing", err)
    assert peer.received == []


# --- Outcomes --------------------------------------------------------------------------------------------------------

# Options and what a peer does, or the address of none; the exit code, and the headline.
KINDS: dict[str, tuple[str, Script, int, str]] = {
    "ok": ("", script(), 0, "✅ Success"),
    "status": ("", script(echo=rawpeer.echo_rsp(1, 0x0122)), 1, "❌ Failed: status 0122H, SOP class not supported"),
    "rejected": ("", script(accept=rawpeer.associate_rj(1, 1, 7)), 1, "❌ Rejected: called AE title not recognized"),
    "not supported": (
        "", script(accept=rawpeer.associate_ac([(1, 3, None)])), 1, "❌ Not supported: abstract syntax not supported"),
    "aborted": ("", script(echo=rawpeer.abort(2, 6)), 1, "❌ Aborted: invalid PDU parameter value"),
    "protocol": ("", script(accept=b"SSH-2.0-OpenSSH_9.2p1\r\n"), 1, "❌ Protocol error: the answer is SSH, not DICOM"),
    "lost": ("", script(accept=close), 3, "❌ Connection lost: closed by the peer without an answer"),
    "timeout": ("-t 0.3", script(accept=None), 3, "❌ Timed out: no answer within 0.3 s"),
    "TLS": (
        "--tls", (rawpeer.Link.receive, b"220 mail", close), 3,
        "❌ TLS failed: the peer does not speak TLS"),
    "unreachable": (REFUSED, (), 3, "❌ Unreachable: connection refused"),
    "not IPv6": ("-4 [::1]:104", (), 3, OTHER_FAMILY),
    "not IPv4": ("-6 127.0.0.1:104", (), 3, OTHER_FAMILY),
}  # fmt: skip


def test_each_kind_has_its_exit_code_and_headline(capsys: Capsys) -> None:
    def told(options: str, played: Script) -> tuple[int, str]:
        with RawPeer(played) as peer:
            code, out, err = run_main(capsys, *options.split(), *[peer.address] * bool(played))
        assert err == ""
        return code, out.partition("\n")[0]

    expected = {kind: (code, headline) for kind, (_, _, code, headline) in KINDS.items()}
    assert {kind: told(options, played) for kind, (options, played, _, _) in KINDS.items()} == expected


def test_of_several_hosts_the_highest_exit_code(capsys: Capsys) -> None:
    expected = {"ok ok": 0, "status ok": 1, "rejected ok": 1, "lost rejected ok": 3, "aborted lost": 3}

    def quietly(kinds: str) -> Outcome:
        with contextlib.ExitStack() as stack:
            peers = [stack.enter_context(RawPeer(KINDS[kind][1])) for kind in kinds.split()]
            return run_main(capsys, "-q", *(peer.address for peer in peers))

    assert {kinds: quietly(kinds) for kinds in expected} == {kinds: (code, "", "") for kinds, code in expected.items()}


# --- Self-test -------------------------------------------------------------------------------------------------------


def test_the_self_test_takes_options_and_leaves_nothing(capsys: Capsys) -> None:
    for options in "", "-4 --abort -aec OTHER":
        with nothing_left_behind(patience=5):
            assert run_main(capsys, "--self-test", *options.split()) == SUCCESS
    assert run_main(capsys, "--self-test", "-q", "-c", 2, "-i", 0) == Outcome(0, "", "")


def test_the_self_test_over_ipv6(capsys: Capsys, ipv6: str) -> None:
    outcome = run_main(capsys, "--self-test", "-6", "-v")
    assert outcome.code == 0
    assert f"to        ANY-SCP at [{ipv6}]:" in outcome.out


# --- Processes -------------------------------------------------------------------------------------------------------


def test_as_a_module_and_as_a_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    strict = [*["-bb"] * MODERN, "-W", "error", "-X", "dev"]
    assert [run_process(command_line("--self-test", flags=flags)) for flags in (["-OO"], strict)] == [SUCCESS] * 2
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
def test_few_open_files_are_blamed_on_this_host(peer: RawPeer) -> None:
    for limit in (5, 6, 7, 9, 12):
        outcome = in_shell(f'ulimit -n {limit}; exec "$@"', "--format", "nagios", peer.address)
        code, verdict = (3, "UNKNOWN") if limit <= 6 else (0, "OK")
        assert (outcome.code, outcome.out.count("\n")) == (code, 1)
        assert outcome.out.startswith(f"DICOM ECHO {verdict} - ")
        assert outcome.err == "" or "site-packages" in outcome.err  # Python's own, on a file there that it cannot open


@posix
def test_the_limit_of_open_files_is_raised_as_far_as_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    # What is wanted, and the two limits; how many targets are asked in parallel, and the limits that are set.
    expected: dict[tuple[int | None, int, int], tuple[int, list[object]]] = {
        (None, 1024, 4096): (32, []),
        (None, 70, 4096): (32, [(96, 4096)]),
        (None, 70, 80): (16, [(80, 80)]),
        (None, 10, 50): (1, [(50, 50)]),
        (100, 70, 4096): (100, [(164, 4096)]),
        (100, 70, 80): (16, [(80, 80)]),
    }

    def jobs(wanted: int | None, soft: int, hard: int) -> tuple[int, list[object]]:
        raised: list[object] = []
        monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
        monkeypatch.setattr(resource, "setrlimit", lambda _, limits: raised.append(limits))
        return dicom_echo._jobs(wanted, 200), raised

    assert {each: jobs(*each) for each in expected} == expected


# --- Streams ---------------------------------------------------------------------------------------------------------

FULL = "dicom-echo: cannot write the results: no space left on device\n"
GONE = "exec 3> >(:); wait $!;"  # descriptor 3 is a pipe that nobody reads any more
UNBUFFERED = "export PYTHONUNBUFFERED=1;"
FEW_FILES = "ulimit -Sn 12; ulimit -Hn 70"
NINE = " ".join(f"127.0.0.1:{number}" for number in range(1, 10))

# What a shell does before, and the arguments; the exit code, how standard output begins, and what is on standard error.
IN_A_SHELL: dict[tuple[str, str], tuple[int, str, str]] = {
    ("exec >&-", REFUSED): (3, "", ""),
    ("exec >&- 2>&-", REFUSED): (3, "", ""),
    ("exec <&-", REFUSED): (3, "❌", ""),
    ("exec <&- >&- 2>&-", f"--format nagios {REFUSED}"): (2, "", ""),
    ("exec 2>&-", f"-d {REFUSED}"): (3, "❌", ""),
    ("exec 2>&-", "pacs:0"): (2, "", ""),
    ("exec <&-", "-T -"): (2, "", f"dicom-echo: cannot read -: standard input is closed{HELP}"),
    ("exec >/dev/full", "--version"): (2, "", FULL),
    ("exec >/dev/full", "HOST"): (2, "", FULL),
    ("exec >/dev/full", "pacs:0"): (2, "", f"dicom-echo: {PORT}{HELP}"),
    ("exec >/dev/full", "--format nagios pacs:0"): (3, "", FULL),
    ("exec >/dev/full", "--format nagios HOST"): (3, "", FULL),
    (f"{UNBUFFERED} exec >/dev/full", "--version"): (2, "", FULL),
    (f"{UNBUFFERED} exec >/dev/full", "--format nagios --version"): (3, "", FULL),
    (f"{UNBUFFERED} exec >/dev/full", "HOST"): (2, "", FULL),
    (f"{UNBUFFERED} exec >/dev/full", "--format nagios HOST"): (3, "", FULL),
    ("exec 2>/dev/full", "pacs:0"): (2, "", ""),
    ("exec 2>/dev/full", "-d HOST"): (0, "✅", ""),
    (f"{GONE} exec >&3", "--version"): (0, "", ""),
    (f"{GONE} exec >&3", "HOST"): (0, "", ""),
    (f"{GONE} exec >&3", "--format nagios HOST"): (0, "", ""),
    (f"{GONE} exec >&3", "--format nagios pacs:0"): (3, "", ""),
    (f"{GONE} {UNBUFFERED} exec >&3", "HOST"): (0, "", ""),
    (f"{GONE} exec >&3 2>&3", "HOST"): (0, "", ""),
    (f"{GONE} exec >&3 2>&3", "pacs:0"): (2, "", ""),
    (FEW_FILES, NINE): (3, "A", ""),
    (FEW_FILES, f"-j 9 {NINE}"): (3, "A", ""),
}


@posix
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_streams_that_are_closed_full_or_not_read_and_few_open_files(peer: RawPeer) -> None:
    """A full disk is trouble: exit code 2, for nagios 3. Where a pipe is closed, what went well has gone well."""

    def run(case: tuple[str, str]) -> tuple[int, str, str]:
        before, arguments = case
        code, out, err = in_shell(f'{before}; exec "$@"', *arguments.replace("HOST", peer.address).split())
        return code, out[:1], err

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert dict(zip(IN_A_SHELL, pool.map(run, IN_A_SHELL))) == IN_A_SHELL


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


def test_ascii_stands_in_where_symbols_cannot_be_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = {
        **dict.fromkeys(("ascii", "latin-1", "cp1252", "cp437"), "[FAILED] Unreachable"),
        **dict.fromkeys(("utf-8", "utf-16-le"), "❌ Unreachable"),
    }
    assert {each: encoded(monkeypatch, each, REFUSED).out.partition(":")[0] for each in starts} == starts


def test_what_cannot_be_encoded_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    for encoding, name in ("ascii", "\\u6771\\u4eac"), ("utf-8", "東京"):
        outcome = encoded(monkeypatch, encoding, "bücher-東京.invalid")
        assert (outcome.code, outcome.err, name in outcome.out) == (3, "", True)
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
    encoding = "no-such-encoding"
    isatty = None

    def fileno(self) -> None:
        """There is none, but nothing is raised."""


def test_another_standard_output(monkeypatch: pytest.MonkeyPatch, capsys: Capsys) -> None:
    begins = {
        REFUSED: ("❌", "[FAILED]"),
        f"{REFUSED} 127.0.0.1:2 -v": ("ANY-SCP@",),
        "--format nagios pacs:0": ("DICOM ECHO UNKNOWN",),
    }
    closed = io.StringIO()
    closed.close()
    for arguments in begins:
        for stream in Bare(), Odd(), io.StringIO(), closed, None:
            monkeypatch.setattr(sys, "stdout", stream)
            assert dicom_echo.main(arguments.split()) == 3
            assert "internal error" not in capsys.readouterr().err
            if isinstance(stream, Bare):
                assert stream.text.startswith(begins[arguments])


def test_a_standard_error_that_cannot_be_flushed_says_nothing_of_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(Bare):
        def flush(self) -> None:
            raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(sys, "stderr", stream := Full())
    assert (dicom_echo.main([REFUSED]), stream.text) == (3, "")


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
        for arguments in ("HOST", "HOST -c 2 -i 0", f"HOST {REFUSED}", "pacs:0", "-h", "--self-test", "-d HOST"):
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


def test_whatever_escapes_is_one_line(capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("a bug | of\nours")

    monkeypatch.setattr(dicom_echo, "_campaign", fail)
    where = "please report it at https://github.com/rusty-dicom/dicom-echo/issues\n"
    told = f"dicom-echo: internal error: ZeroDivisionError: a bug | of\\nours; {where}"
    assert run_main(capsys, "pacs", bug=True) == Outcome(2, "", told)
    told = f"DICOM ECHO UNKNOWN - internal error: ZeroDivisionError: a bug / of\\nours; {where}"
    assert run_main(capsys, "pacs", "--format", "nagios", bug=True) == Outcome(3, told, "")


def test_a_host_s_broken_stream_stays_the_host_s() -> None:
    """A process of our own points it at devnull before its exit; an application's descriptor is not ours to change."""
    program = "import os, sys, dicom_echo; dicom_echo.main(['-h']); sys.stderr.write(os.readlink('/proc/self/fd/1'))"
    reader, writer = os.pipe()
    os.close(reader)
    with start_process([sys.executable, "-c", program], writer) as process:
        os.close(writer)
        assert process.communicate(timeout=PATIENCE)[1].startswith("pipe:")
