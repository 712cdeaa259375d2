"""The command: what it prints where, what it refuses, how it leaves."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import logging
import os
import platform
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from command import MODULE, PATIENCE, Outcome, command_line, environment, run_main, run_process, start_process
from leaks import nothing_left_behind
from rawpeer import (
    A_ASSOCIATE_RQ,
    IMPLEMENTATION_CLASS_UID,
    VERSION_NAME,
    Close,
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
    closed_port,
    command_pdu,
    echo_rsp,
    echo_rsp_command,
    script,
)

import dicom_echo

Capsys = pytest.CaptureFixture[str]

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX only")

REFUSED = """\
❌ Unreachable: connection refused
   while connecting to {host_port}
   hint: the host is up, but nothing listens on this port; usual DICOM ports: 104, 11112, 4242, 2762 (TLS)
"""


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def good() -> Iterator[RawPeer]:
    """A good peer."""
    with RawPeer() as peer:
        yield peer


@pytest.fixture
def refusing() -> Iterator[Endpoint]:
    """A port where nobody listens."""
    with closed_port() as endpoint:
        yield endpoint


# --- Help and versions -----------------------------------------------------------------------------------------------

DICOM_OPTIONS = (
    "-aec --called --called-ae-title -aet --calling --calling-ae-title -id --id --message-id "
    "--max-pdu --transfer-syntax --abort"
)
OTHER_OPTIONS = (
    "-t --timeout -4 -6 --source --tls --cacert --cert --key -k --insecure --server-name "
    "-q --quiet -v --verbose -d --debug --format --color --self-test -V --version -h --help"
)


def help_groups(text: str) -> dict[str, str]:
    """The parts of a help text by their heading, without what the width of the terminal makes of them."""
    parts = re.split(r"^([A-Z][A-Za-z ]*):$", text, flags=re.MULTILINE)
    return {heading: " ".join(body.split()) for heading, body in zip(parts[1::2], parts[2::2], strict=True)}


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_is_printed(capsys: Capsys, monkeypatch: pytest.MonkeyPatch, flag: str) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    code, out, err = run_main(capsys, flag)
    assert (code, err) == (0, "")
    assert out.startswith("usage: dicom-echo [OPTIONS] HOST [HOST ...]\n")
    assert {"Arguments", "Options", "DICOM Options"} <= set(help_groups(out))


def missing_flags(flags: str, text: str) -> list[str]:
    return [flag for flag in flags.split() if not re.search(rf"(?<!\S){flag}(?![\w-])", text)]


def test_help_shows_every_option(capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    groups = help_groups(run_main(capsys, "--help").out)
    assert missing_flags(DICOM_OPTIONS, groups["DICOM Options"]) == []
    assert missing_flags(OTHER_OPTIONS, " ".join(groups.values())) == []
    assert missing_flags("-h -V", groups["Options"]) == []


def test_help_tells_defaults_and_exit_codes(capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    text = " ".join(run_main(capsys, "--help").out.split())
    for default in ("[ANY-SCP]", "[ECHOSCU]", "[1]", "[16382]", "[implicit, explicit]", "[10]", "[text]", "[auto]"):
        assert default in text
    for code in (0, 1, 2, 3, 130):
        assert re.search(rf"\b{code} [a-z]", text.partition("exit codes:")[2])
    assert text.isascii()


@pytest.mark.parametrize("flag", ["-V", "--version"])
def test_the_version_names_all_parts(capsys: Capsys, flag: str) -> None:
    parts = [
        f"dicom-echo {dicom_echo.__version__}",
        f"pynetdicom {importlib.metadata.version('pynetdicom')}",
        f"pydicom {importlib.metadata.version('pydicom')}",
        f"Python {platform.python_version().rstrip('+')}",
    ]
    code, out, err = run_main(capsys, flag)
    assert (code, err) == (0, "")
    assert len(out.splitlines()) == 1
    assert [part for part in parts if part not in out] == []


def test_the_version_needs_no_host_and_sends_nothing(capsys: Capsys, good: RawPeer) -> None:
    assert run_main(capsys, "--version", good.address).code == 0
    assert good.received == []


# --- The command line is wrong ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "no HOST given; expected [AE-TITLE@]HOST[:PORT]"),
        (["-v"], "no HOST given"),
        (["--self-test", "pacs"], "--self-test takes no HOST"),
        (["pacs:0"], "the port 0 is not in the range 1-65535"),
        (["pacs:"], "the port after the colon is missing"),
        ([""], "the host is missing"),
        (["X@"], "the host is missing"),
        (["pa cs"], '"pa cs" is not a host name'),
        (["ü ü"], "is not a host name"),
        (["a\nb"], "is not a host name"),
        (["SEVENTEEN-LETTERS@pacs"], "has 17 characters, 16 are allowed"),
        (["-aec", "", "pacs"], "the AE title is empty"),
        (["-aec", "SEVENTEEN-LETTERS", "pacs"], "has 17 characters, 16 are allowed"),
        (["--called", "A\\B", "pacs"], "holds a backslash"),
        (["-aet", "   ", "pacs"], "the AE title is empty"),
        (["--calling-ae-title", "ÄÖ", "pacs"], "outside of ASCII"),
        (["-id", "-1", "pacs"], "-id"),
        (["-id", "65536", "pacs"], "65536"),
        (["--id", "one", "pacs"], "one"),
        (["--message-id", "1.5", "pacs"], "1.5"),
        (["-id"], "expected one argument"),
        (["-t", "0", "pacs"], "0"),
        (["-t", "-1", "pacs"], "-t"),
        (["--timeout", "nan", "pacs"], "nan"),
        (["--timeout", "inf", "pacs"], "inf"),
        (["--timeout", "soon", "pacs"], "soon"),
        (["--max-pdu", "-1", "pacs"], "--max-pdu"),
        (["--max-pdu", "15", "pacs"], "16-4294967295"),
        (["--max-pdu", "4294967296", "pacs"], "4294967295"),
        (["--transfer-syntax", "jpeg", "pacs"], "or a UID, not 'jpeg'"),
        (["--source", "192.0.2.1", "pacs"], "source must be an IP address of this host, not '192.0.2.1'"),
        (["--source", "localhost", "pacs"], "source must be an IP address of this host"),
        (["--source", "127.0.0.1", "-6", "pacs"], "source"),
        (["-4", "-6", "pacs"], "not allowed with argument"),
        (["--format", "xml", "pacs"], "invalid choice: 'xml'"),
        (["--color", "blue", "pacs"], "invalid choice: 'blue'"),
        (["--cacert", "ca.pem", "pacs"], "go with --tls"),
        (["--cert", "cert.pem", "pacs"], "go with --tls"),
        (["--key", "key.pem", "pacs"], "go with --tls"),
        (["--warning", "0", "pacs"], "go with --format nagios"),
        (["--self-test", "--tls"], "--self-test goes without --tls"),
        (["--transfer-syntax=implicit"] * 101 + ["pacs"], "must name one at least, and 100 at most"),
        (["-k", "pacs"], "go with --tls"),
        (["--insecure", "pacs"], "go with --tls"),
        (["--server-name", "pacs", "pacs"], "go with --tls"),
        (["--tls", "--cacert", "no-such-file", "pacs"], "cannot use no-such-file: no such file"),
        (["--tls", "--cert", "no-such-file", "pacs"], "cannot use no-such-file: no such file"),
        (["--tls", "--key", "no-such-file", "pacs"], "--key goes with --cert"),
        (["--tls", "--cacert", str(MODULE), "pacs"], f"cannot use {MODULE}"),
        (["--tls", "--cert", str(MODULE), "pacs"], f"cannot use {MODULE}"),
        (["--no-such-option", "pacs"], "unrecognized arguments: --no-such-option"),
        (["--time", "pacs"], "unrecognized arguments: --time"),
        (["-x", "pacs"], "unrecognized arguments: -x"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_usage_errors_are_one_line_on_standard_error(capsys: Capsys, arguments: list[str], why: str) -> None:
    code, out, err = run_main(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("dicom-echo: ")
    assert err.endswith(" (see dicom-echo --help)\n")
    assert err.count("\n") == 1
    assert why in err


@pytest.mark.parametrize("arguments", [["-aec", "A\\B"], ["-aet", ""], ["-aec", "SEVENTEEN-LETTERS"]], ids=str)
def test_a_bad_title_option_is_not_blamed_on_the_address(capsys: Capsys, arguments: list[str]) -> None:
    assert "HOST" not in run_main(capsys, *arguments, "pacs").err


@pytest.mark.parametrize("value", ["x", "99999999999"])
def test_a_range_is_told_in_whole_numbers(capsys: Capsys, value: str) -> None:
    err = run_main(capsys, "--max-pdu", value, "pacs").err
    assert "4294967295" in err
    assert "e+" not in err


def test_one_bad_address_and_nothing_is_sent(capsys: Capsys, good: RawPeer) -> None:
    assert run_main(capsys, good.address, "pacs:0").code == 2
    assert run_main(capsys, good.address).code == 0
    assert len(good.received) == 1


@posix
def test_an_argument_that_is_no_text() -> None:
    code, out, err = run_process(command_line("\udcff"))
    assert (code, out, err.count("\n")) == (2, "", 1)


@pytest.mark.parametrize("seconds", ["1e10", "1e300"])
def test_a_very_long_timeout_is_taken_or_refused(capsys: Capsys, refusing: Endpoint, seconds: str) -> None:
    assert run_main(capsys, "-t", seconds, refusing.address).code in (2, 3)


def test_a_usage_error_is_told_even_if_quiet(capsys: Capsys) -> None:
    code, out, err = run_main(capsys, "-q", "pacs:0")
    assert (code, out, err.count("\n")) == (2, "", 1)


# --- Outcomes --------------------------------------------------------------------------------------------------------

OUTCOMES: dict[str, tuple[Script, int, str]] = {
    "ok": (script(), 0, "✅ Success\n"),
    "status": (
        script(echo=echo_rsp(1, 0x0122)),
        1,
        "⚠️ Warning: received non-zero status code: 290 (0122H, SOP class not supported)\n",
    ),
    "rejected": (
        script(accept=associate_rj(1, 1, 7)),
        1,
        "❌ Rejected: called AE title not recognized\n"
        "   while associating with {address} as ECHOSCU: rejected-permanent, service-user, reason 7\n"
        '   hint: the peer does not answer to "ANY-SCP"; use the AE title that is configured on it: AE@HOST:PORT or '
        "-aec AE (upper and lower case count)\n",
    ),
    "not-supported": (
        script(accept=associate_ac([(1, 3, None)])),
        1,
        "❌ Not supported: abstract syntax not supported\n"
        "   while associating with {address} as ECHOSCU: presentation context result 3\n"
        "   hint: the peer knows the AE title but does not offer Verification to us\n",
    ),
    "aborted": (
        script(echo=abort(2, 6)),
        1,
        "❌ Aborted: invalid PDU parameter value\n   while echoing {address} as ECHOSCU: service-provider, reason 6\n",
    ),
    "protocol": (
        script(accept=b"SSH-2.0-OpenSSH_9.2p1\r\n"),
        1,
        "❌ Protocol error: the answer is SSH, not DICOM\n"
        "   while associating with {address} as ECHOSCU\n"
        "   hint: this is not a DICOM port\n",
    ),
    "lost": (
        script(accept=Close()),
        3,
        "❌ Connection lost: closed by the peer without an answer\n"
        "   while associating with {address} as ECHOSCU\n"
        "   hint: a port that speaks TLS only (try --tls), a peer that admits only known addresses, "
        "or a load balancer with no server behind it\n",
    ),
    "timeout": (
        script(accept=None),
        3,
        "❌ Timed out: no answer within 0.2 s\n"
        "   while associating with {address} as ECHOSCU\n"
        "   hint: the port is open but nothing answers: the peer hangs or is overloaded, "
        "or it is not a DICOM port, or it waits for TLS (try --tls)\n",
    ),
}
outcomes = pytest.mark.parametrize(("steps", "code", "text"), OUTCOMES.values(), ids=OUTCOMES.keys())


@outcomes
def test_every_outcome_in_words_and_exit_code(capsys: Capsys, steps: Script, code: int, text: str) -> None:
    with RawPeer(steps) as peer:
        outcome = run_main(capsys, "-t", "0.2", peer.address)
        assert outcome == Outcome(code, text.format(address=peer.address), "")


@outcomes
def test_quiet_prints_nothing(capsys: Capsys, steps: Script, code: int, text: str) -> None:
    with RawPeer(steps) as peer:
        assert run_main(capsys, "-q", "-t", "0.2", peer.address) == Outcome(code, "", "")


def test_quiet_about_what_is_not_reached(capsys: Capsys, refusing: Endpoint) -> None:
    assert run_main(capsys, "-q", refusing.address) == Outcome(3, "", "")
    assert run_main(capsys, "--quiet", "no-such-host.invalid") == Outcome(3, "", "")


def test_quiet_self_test(capsys: Capsys) -> None:
    assert run_main(capsys, "-q", "--self-test") == Outcome(0, "", "")


def test_a_refused_connection(capsys: Capsys, refusing: Endpoint) -> None:
    expected = REFUSED.format(host_port=refusing.host_port)
    assert run_main(capsys, refusing.host_port) == Outcome(3, expected, "")


def test_a_name_that_does_not_resolve(capsys: Capsys) -> None:
    code, out, err = run_main(capsys, "no-such-host.invalid:11112")
    first, second, third = out.splitlines()
    assert (code, err) == (3, "")
    assert first == "❌ Unreachable: name not resolved"
    assert second.startswith("   while resolving no-such-host.invalid: ")
    assert third.startswith("   hint: check the spelling and the name server")


@pytest.mark.parametrize(("family", "host"), [("-4", "[::1]"), ("-6", "127.0.0.1")])
def test_a_family_that_does_not_fit_is_named_in_the_hint(capsys: Capsys, family: str, host: str) -> None:
    code, out, err = run_main(capsys, family, f"{host}:104")
    assert code in (2, 3)
    assert family in out + err


def test_a_port_that_nobody_listens_on_in_a_process_of_its_own(refusing: Endpoint) -> None:
    assert run_process(command_line(refusing.host_port)) == Outcome(3, REFUSED.format(host_port=refusing.host_port), "")


# --- Several hosts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kinds", "code"),
    [
        (["ok", "ok"], 0),
        (["status", "ok"], 1),
        (["rejected", "ok"], 1),
        (["lost", "rejected", "ok"], 3),
        (["aborted", "lost"], 3),
    ],
    ids=str,
)
def test_the_highest_exit_code_of_several_hosts(capsys: Capsys, kinds: list[str], code: int) -> None:
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(RawPeer(OUTCOMES[kind][0])) for kind in kinds]
        outcome = run_main(capsys, "--format", "json", *[peer.address for peer in peers])
    results = [json.loads(line) for line in outcome.out.splitlines()]
    echoes = [result for result in results if result["type"] == "echo"]
    seen = ["ok" if each["ok"] else each["error"]["kind"] if each["error"] else "status" for each in echoes]
    assert outcome.code == code
    assert sorted(seen) == sorted(kinds)


def test_several_hosts_are_told_apart(capsys: Capsys, good: RawPeer, refusing: Endpoint) -> None:
    outcome = run_main(capsys, good.address, refusing.address)
    assert (outcome.code, outcome.err) == (3, "")
    lines = outcome.out.splitlines()
    for address, verdict in ((good.address, "✅ Success"), (refusing.address, "❌ Unreachable: connection refused")):
        assert len([line for line in lines if address in line and verdict in line]) == 1


@pytest.mark.parametrize("option", ["-q", "--quiet"])
def test_quiet_about_several_hosts(capsys: Capsys, good: RawPeer, refusing: Endpoint, option: str) -> None:
    assert run_main(capsys, option, good.address, refusing.address) == Outcome(3, "", "")


# --- Self-test -------------------------------------------------------------------------------------------------------


def test_the_self_test_prints_what_a_success_prints(capsys: Capsys, good: RawPeer) -> None:
    success = run_main(capsys, good.address)
    assert run_main(capsys, "--self-test") == success == Outcome(0, "✅ Success\n", "")


@pytest.mark.parametrize("options", [["-v"], ["--format", "json"], ["-4"], ["--abort"], ["-aec", "OTHER"]], ids=str)
def test_the_self_test_takes_options(capsys: Capsys, options: list[str]) -> None:
    assert run_main(capsys, "--self-test", *options).code == 0


def test_the_self_test_over_ipv6(capsys: Capsys, ipv6: str) -> None:
    outcome = run_main(capsys, "--self-test", "-6", "-v")
    assert outcome.code == 0
    assert f"to        ANY-SCP at [{ipv6}]:" in outcome.out


def test_the_self_test_leaves_no_thread(capsys: Capsys) -> None:
    with nothing_left_behind(patience=5):
        assert run_main(capsys, "--self-test").code == 0


# --- Verbose and debug -----------------------------------------------------------------------------------------------


def test_verbose_goes_to_standard_output(capsys: Capsys, good: RawPeer) -> None:
    code, out, err = run_main(capsys, "-v", "-aet", "ME", "-id", "7", good.address)
    assert (code, err) == (0, "")
    verdict, *lines = out.splitlines()
    assert verdict == "✅ Success"
    assert all(line.startswith("   ") for line in lines)
    rows = dict(line.split(None, 1) for line in lines)
    for phase in ("resolve", "connect", "associate", "echo", "release"):
        assert re.fullmatch(r"\d+\.\d\d ms +█+", rows[phase])
    assert re.fullmatch(r"\d+\.\d\d ms", rows["total"])
    assert re.fullmatch(r"ME at 127\.0\.0\.1:\d+", rows["from"])
    assert rows["to"] == f"ANY-SCP at {good.endpoint.host_port}"
    assert rows["message"] == "id 7"
    assert rows["peer"] == f"{VERSION_NAME} ({IMPLEMENTATION_CLASS_UID})"
    assert rows["accepted"] == "maximum PDU length 16384 bytes, transfer syntax implicit (1.2.840.10008.1.2)"


def test_verbose_about_a_failed_release_keeps_its_bars_in_place(capsys: Capsys) -> None:
    with RawPeer(script(release=None)) as peer:
        outcome = run_main(capsys, "-v", peer.address)
    assert outcome.code == 0
    assert max(map(len, outcome.out.splitlines())) < 110


def test_verbose_about_a_failure_shows_the_phases_that_ran(capsys: Capsys, refusing: Endpoint) -> None:
    code, out, err = run_main(capsys, "-v", refusing.host_port)
    assert (code, err) == (3, "")
    assert out.startswith(REFUSED.format(host_port=refusing.host_port))
    rows = [row.split() for row in out.splitlines()[3:]]
    assert [row[0] for row in rows][:4] == ["resolve", "connect", "total", "to"]


def test_a_verbose_note(capsys: Capsys) -> None:
    with RawPeer(script(release=Close())) as peer:
        code, out, _ = run_main(capsys, "-v", peer.address)
    assert code == 0
    notes = [row.split(None, 1)[1] for row in out.splitlines() if row.strip().startswith("note")]
    assert notes == ["after the answer, while releasing: connection lost: closed by the peer without an answer"]


@pytest.mark.parametrize(
    "steps",
    [
        script(accept=associate_ac(version_name="\x1b[2J\r\nEVIL")),
        script(echo=command_pdu(echo_rsp_command(1, 0, error_comment="\x1b[2J\r\nEVIL"))),
    ],
    ids=["version name", "error comment"],
)
def test_what_a_peer_says_cannot_move_the_cursor(capsys: Capsys, steps: Script) -> None:
    with RawPeer(steps) as peer:
        code, out, _ = run_main(capsys, "-v", "--color", "never", peer.address)
    assert code == 0
    assert "\x1b" not in out
    assert "\r" not in out
    assert "\\x1b[2J\\r\\nEVIL" in out


def test_debug_goes_to_standard_error(capsys: Capsys, good: RawPeer) -> None:
    code, out, err = run_main(capsys, "-d", good.address)
    assert code == 0
    assert out.startswith("✅ Success\n")
    assert "A-ASSOCIATE" not in out
    address = re.escape(good.address)
    heads = re.findall(rf"^(sent|received) ([A-Z-]+), (\d+) bytes, (?:to|from) {address}$", err, flags=re.MULTILINE)
    assert [head[:2] for head in heads] == [
        ("sent", "A-ASSOCIATE-RQ"),
        ("received", "A-ASSOCIATE-AC"),
        ("sent", "P-DATA-TF"),
        ("received", "P-DATA-TF"),
        ("sent", "A-RELEASE-RQ"),
        ("received", "A-RELEASE-RP"),
    ]
    sent = sum(int(size) for direction, _, size in heads if direction == "sent")
    assert sent == len(good.conversation().raw)
    dump = bytes.fromhex("".join(re.findall(r"^  [0-9a-f]{4}  ((?:[0-9a-f]{2} ?)+)", err, flags=re.MULTILINE)))
    assert len(dump) == sum(int(size) for *_, size in heads)
    assert "Calling AET: ECHOSCU" in err


def test_debug_shows_what_is_no_dicom(capsys: Capsys) -> None:
    with RawPeer(script(accept=b"HTTP/1.1 400 Bad Request\r\n")) as peer:
        err = run_main(capsys, "-d", peer.address).err
    assert "  0000  48 54 54 50 2f 31 2e 31 20 34 30 30 20 42 61 64  HTTP/1.1 400 Bad\n" in err


def test_debug_twice_is_not_double(capsys: Capsys, good: RawPeer) -> None:
    """`main` is a function: what it does to the logger ends with it."""
    logger = logging.getLogger("dicom_echo")
    before = logger.handlers[:], logger.level
    try:
        dicom_echo.main(["-d", good.address])
        assert (logger.handlers, logger.level) == before
    finally:
        logger.handlers[:] = before[0]
        logger.setLevel(before[1])


# --- JSON ------------------------------------------------------------------------------------------------------------

KEYS = [
    "schema_version", "type", "time", "target", "label", "host", "port", "local", "remote", "called_ae_title",
    "calling_ae_title", "message_id", "ok", "status", "status_text", "phases_ms", "total_ms", "peer", "tls", "notes",
    "error",
]  # fmt: skip


def json_of(outcome: Outcome) -> dict[str, Any]:
    """The one object that is printed: one line, ASCII, nothing on standard error."""
    assert outcome.err == ""
    assert outcome.out.count("\n") == 1
    assert outcome.out.endswith("\n")
    assert outcome.out.isascii()
    result: dict[str, Any] = json.loads(outcome.out)
    assert list(result) == KEYS
    return result


@pytest.mark.parametrize("extra", [[], ["-v"], ["--color", "always"]], ids=str)
def test_json_of_a_success(capsys: Capsys, good: RawPeer, extra: list[str]) -> None:
    start = datetime.now(timezone.utc)
    outcome = run_main(capsys, "--format", "json", "-id", "7", "-aet", "ME", *extra, f"STORE@{good.endpoint.host_port}")
    result = json_of(outcome)
    assert outcome.code == 0
    when, local, phases, total = (result.pop(name) for name in ("time", "local", "phases_ms", "total_ms"))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", when)
    moment = datetime.fromisoformat(when.replace("Z", "+00:00"))
    assert -0.002 <= (moment - start).total_seconds() < 10
    assert re.fullmatch(r"127\.0\.0\.1:\d+", local)
    assert list(phases) == ["resolve", "connect", "associate", "echo", "release"]
    assert all(isinstance(value, (int, float)) and value >= 0 for value in phases.values())
    assert total == pytest.approx(sum(phases.values()), abs=0.01)
    assert result == {
        "schema_version": 1,
        "type": "echo",
        "target": f"STORE@{good.endpoint.host_port}",
        "label": None,
        "host": "127.0.0.1",
        "port": good.port,
        "remote": good.endpoint.host_port,
        "called_ae_title": "STORE",
        "calling_ae_title": "ME",
        "message_id": 7,
        "ok": True,
        "status": 0,
        "status_text": "Success",
        "peer": {
            "implementation_class_uid": IMPLEMENTATION_CLASS_UID,
            "implementation_version_name": VERSION_NAME,
            "max_pdu": 16384,
            "transfer_syntax": "1.2.840.10008.1.2",
        },
        "tls": None,
        "notes": [],
        "error": None,
    }
    assert result["ok"] is True


def test_json_of_a_status(capsys: Capsys) -> None:
    with RawPeer(script(echo=echo_rsp(1, 0xFF00))) as peer:
        outcome = run_main(capsys, "--format", "json", peer.address)
    result = json_of(outcome)
    assert outcome.code == 1
    assert (result["ok"], result["status"]) == (False, 0xFF00)
    error = result["error"]
    assert (error["kind"], error["phase"], error["message"]) == ("status", "echo", "FF00H, unknown status")
    assert error["status"] == 0xFF00
    assert isinstance(result["status_text"], str)


def test_json_of_a_rejection(capsys: Capsys) -> None:
    with RawPeer(script(accept=associate_rj(1, 1, 7))) as peer:
        outcome = run_main(capsys, "--format", "json", peer.address)
    result = json_of(outcome)
    assert outcome.code == 1
    assert (result["ok"], result["status"], result["status_text"], result["peer"]) == (False, None, None, None)
    error = result["error"]
    assert list(error)[:4] == ["kind", "phase", "message", "hint"]
    assert set(error) - {"detail"} == {"kind", "phase", "message", "hint", "result", "source", "reason"}
    assert (error["kind"], error["phase"]) == ("rejected", "associate")
    assert error["message"] == "called AE title not recognized"
    assert error["hint"].startswith('the peer does not answer to "ANY-SCP"')
    assert (error["result"], error["source"], error["reason"]) == (1, 1, 7)


def test_json_of_a_refused_connection(capsys: Capsys, refusing: Endpoint) -> None:
    outcome = run_main(capsys, "--format", "json", refusing.host_port)
    result = json_of(outcome)
    assert outcome.code == 3
    assert (result["host"], result["port"]) == (refusing.host, refusing.port)
    assert (result["local"], result["remote"]) == (None, refusing.host_port)
    assert list(result["phases_ms"]) == ["resolve", "connect"]
    assert (result["error"]["kind"], result["error"]["phase"]) == ("unreachable", "connect")


def test_json_of_a_timeout(capsys: Capsys) -> None:
    with RawPeer(script(accept=None)) as peer:
        result = json_of(run_main(capsys, "--format", "json", "-t", "0.2", peer.address))
    assert (result["error"]["kind"], result["error"]["timeout"]) == ("timeout", 0.2)
    assert 190 <= result["total_ms"] < 1000


def test_json_of_a_name_outside_of_ascii(capsys: Capsys) -> None:
    result = json_of(run_main(capsys, "--format", "json", "münchen.invalid"))
    assert result["host"] == "münchen.invalid"
    assert (result["port"], result["local"], result["remote"]) == (104, None, None)


def test_json_of_what_a_peer_says(capsys: Capsys) -> None:
    with RawPeer(script(accept=associate_ac(version_name='"\x1b[2J\n'))) as peer:
        result = json_of(run_main(capsys, "--format", "json", peer.address))
    assert result["peer"]["implementation_version_name"] == '"\x1b[2J\n'


def test_json_with_debug_is_still_one_line_on_standard_output(capsys: Capsys, good: RawPeer) -> None:
    code, out, err = run_main(capsys, "--format", "json", "-d", good.address)
    json_of(Outcome(code, out, ""))
    assert "sent A-ASSOCIATE-RQ" in err


def test_json_of_several_hosts_is_a_line_for_each(capsys: Capsys, good: RawPeer, refusing: Endpoint) -> None:
    outcome = run_main(capsys, "--format", "json", good.address, refusing.address, good.address)
    results = [json.loads(line) for line in outcome.out.splitlines()]
    assert sorted(each["ok"] for each in results if each["type"] == "echo") == [False, True, True]
    assert all(list(each) == KEYS for each in results if each["type"] == "echo")
    assert outcome.code == 3


# --- Characters ------------------------------------------------------------------------------------------------------


def three_outcomes(encoding: str, *options: str) -> Outcome:
    """A success, a warning and a failure, printed in this encoding."""
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(RawPeer(OUTCOMES[kind][0])) for kind in ("ok", "status", "lost")]
        command = command_line(*options, *[peer.address for peer in peers])
        return run_process(command, environment(PYTHONIOENCODING=encoding), encoding)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "cp437"])
def test_ascii_stands_in_where_symbols_cannot_be_encoded(encoding: str) -> None:
    code, out, err = three_outcomes(encoding, "-v")
    assert (code, err) == (3, "")
    lines = out.splitlines()
    assert sorted(re.findall(r"\[[A-Z]+\]", out)) == ["[FAILED]", "[OK]", "[WARNING]"]
    assert any(re.search(r" ms +#+$", line) for line in lines)
    assert "\\u" not in out
    assert "?" not in out
    assert out.isascii()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le"])
def test_symbols_where_they_can_be_encoded(encoding: str) -> None:
    code, out, err = three_outcomes(encoding)
    assert (code, err) == (3, "")
    assert [symbol for symbol in ("✅", "⚠️", "❌", "[OK]") if symbol in out] == ["✅", "⚠️", "❌"]


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
@pytest.mark.parametrize("options", [[], ["--format", "json"]], ids=["text", "json"])
def test_a_name_that_cannot_be_encoded_is_escaped(encoding: str, options: list[str]) -> None:
    command = command_line(*options, "bücher-東京.invalid")
    code, out, err = run_process(command, environment(PYTHONIOENCODING=encoding), encoding)
    assert (code, err) == (3, "")
    assert ("東京" if encoding == "utf-8" and not options else "\\u6771\\u4eac") in out


@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_help_and_version_in_ascii(flag: str) -> None:
    outcome = run_process(command_line(flag), environment(PYTHONIOENCODING="ascii"), "ascii")
    assert (outcome.code, outcome.err) == (0, "")


def test_a_usage_error_in_ascii() -> None:
    outcome = run_process(command_line("ü ü"), environment(PYTHONIOENCODING="ascii"), "ascii")
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1)


# --- Colours ---------------------------------------------------------------------------------------------------------

COLOURS = {"ok": "\x1b[32m", "status": "\x1b[33m", "timeout": "\x1b[31m"}


@pytest.mark.parametrize("kind", COLOURS)
def test_colour_where_it_is_wanted(capsys: Capsys, kind: str) -> None:
    steps, code, text = OUTCOMES[kind]
    with RawPeer(steps) as peer:
        outcome = run_main(capsys, "--color", "always", "-t", "0.2", peer.address)
        plain = re.sub(r"\x1b\[\d+m", "", outcome.out)
        assert (outcome.code, plain) == (code, text.format(address=peer.address))
    assert COLOURS[kind] in outcome.out
    assert outcome.out.count("\x1b[0m") == outcome.out.count("\x1b[") / 2


@pytest.mark.parametrize(
    ("option", "variables", "coloured"),
    [
        ("auto", {}, False),
        ("auto", {"FORCE_COLOR": "1"}, True),
        ("auto", {"FORCE_COLOR": ""}, False),
        ("auto", {"NO_COLOR": "1"}, False),
        ("never", {"FORCE_COLOR": "1"}, False),
        ("always", {"NO_COLOR": "1"}, True),
        ("always", {}, True),
        ("never", {}, False),
    ],
)
def test_colour_off_a_terminal(
    capsys: Capsys,
    monkeypatch: pytest.MonkeyPatch,
    refusing: Endpoint,
    option: str,
    variables: dict[str, str],
    coloured: bool,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert ("\x1b[" in run_main(capsys, "--color", option, refusing.host_port).out) == coloured


def on_a_terminal(command: Sequence[str], changes: dict[str, str]) -> tuple[int, str]:
    """Run a command with a terminal for its standard output; exit code and what the terminal gets."""
    import pty

    master, slave = pty.openpty()
    with start_process(command, slave, slave, changes=changes) as process:
        os.close(slave)
        shown = b""
        with contextlib.suppress(OSError):  # Linux: the other end is closed
            while data := os.read(master, 4096):
                shown += data
        os.close(master)
        return process.wait(PATIENCE), shown.decode()


@posix
@pytest.mark.parametrize(
    ("options", "variables", "coloured"),
    [
        ([], {}, True),
        ([], {"NO_COLOR": "1"}, False),
        ([], {"NO_COLOR": ""}, True),
        (["--color", "never"], {}, False),
        (["--format", "json"], {}, False),
    ],
    ids=str,
)
def test_colour_on_a_terminal(
    refusing: Endpoint, options: list[str], variables: dict[str, str], coloured: bool
) -> None:
    code, shown = on_a_terminal(command_line(*options, refusing.host_port), {"TERM": "xterm", **variables})
    assert code == 3
    assert ("\x1b[31m" in shown) == coloured
    assert ("\x1b" in shown) == coloured
    assert "connection refused" in shown


# --- Processes -------------------------------------------------------------------------------------------------------

SUCCESS = Outcome(0, "✅ Success\n", "")


@pytest.mark.parametrize("flags", [["-O"], ["-OO"], ["-bb", "-W", "error"], ["-X", "dev"]], ids=str)
def test_as_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_process(command_line("--self-test", flags=flags)) == SUCCESS


@pytest.mark.parametrize("flags", [[], ["-I"], ["-E"]], ids=str)
def test_as_a_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    # -E and -I ignore PYTHONIOENCODING: what is printed is not looked at.
    assert run_process([sys.executable, *flags, str(MODULE), "-q", "--self-test"]) == Outcome(0, "", "")


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]], ids=str)
def test_without_any_installed_package_where_none_is_needed(arguments: list[str]) -> None:
    outcome = run_process([sys.executable, "-I", "-S", str(MODULE), *arguments])
    assert (outcome.code, outcome.err) == (0, "")


def test_without_pynetdicom_nothing_is_sent(good: RawPeer) -> None:
    assert run_process([sys.executable, "-I", "-S", str(MODULE), good.address]) == Outcome(
        2,
        "",
        "dicom-echo: pynetdicom is not installed: pip install pynetdicom, or use dicom-echo.pyz "
        "(see dicom-echo --help)\n",
    )
    assert good.received == []


@posix
@pytest.mark.parametrize("options", [[], ["-v"], ["--format", "json"], ["-d"]], ids=str)
def test_an_interrupt_is_exit_code_130_and_no_traceback(options: list[str]) -> None:
    with RawPeer(script(accept=None)) as peer, start_process(command_line(*options, peer.address)) as process:
        deadline = time.monotonic() + PATIENCE
        while not (peer.received and peer.received[0].pdus) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "KeyboardInterrupt" not in err


def with_closed_pipe(*arguments: str) -> tuple[int, str]:
    """Run the command with a pipe that nobody reads as its standard output."""
    reader, writer = os.pipe()
    os.close(reader)
    with start_process(command_line(*arguments), writer) as process:
        os.close(writer)
        _, err = process.communicate(timeout=PATIENCE)
        return process.returncode, err


@posix
@pytest.mark.parametrize("options", [[], ["-v"], ["--format", "json"]], ids=str)
def test_nobody_reads_the_result(refusing: Endpoint, options: list[str]) -> None:
    assert with_closed_pipe(*options, refusing.host_port, refusing.host_port) == (3, "")


@posix
@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["--self-test"]], ids=str)
def test_nobody_reads_the_rest(arguments: list[str]) -> None:
    assert with_closed_pipe(*arguments)[1] == ""


@dataclass(frozen=True)
class Hold:
    """Wait until the test lets go."""

    event: threading.Event

    def run(self, link: Link) -> None:
        self.event.wait(PATIENCE)


@posix
def test_who_reads_the_first_line_only() -> None:
    waiting = threading.Event()
    with RawPeer(OUTCOMES["ok"][0], (Expect(A_ASSOCIATE_RQ), Hold(waiting), Send(accept_proposal), Serve())) as peer:
        with start_process(command_line("-j", "1", *[peer.address] * 6)) as process:
            assert process.stdout is not None
            first = process.stdout.readline()
            process.stdout.close()
            waiting.set()
            assert process.stderr is not None
            err = process.stderr.read()
            process.wait(PATIENCE)
        assert len(peer.received) < 6, "nothing more is sent for nobody"
    assert "✅ Success" in first
    assert err == ""


def in_shell(redirection: str, *arguments: str) -> Outcome:
    return run_process(["sh", "-c", f'exec "$@" {redirection}', "sh", *command_line(*arguments)])


@posix
@pytest.mark.parametrize("options", [[], ["-v"], ["--format", "json"], ["-q"]], ids=str)
def test_standard_output_is_closed(refusing: Endpoint, options: list[str]) -> None:
    assert in_shell(">&-", *options, refusing.host_port) == Outcome(3, "", "")


@posix
@pytest.mark.parametrize("options", [[], ["-d"]], ids=str)
def test_standard_error_is_closed(refusing: Endpoint, options: list[str]) -> None:
    outcome = in_shell("2>&-", *options, refusing.host_port)
    assert outcome.code == 3
    assert outcome.out.startswith(REFUSED.format(host_port=refusing.host_port))


@posix
def test_a_usage_error_with_standard_error_closed() -> None:
    assert in_shell("2>&-", "pacs:0") == Outcome(2, "", "")


UNREADABLE = pytest.mark.parametrize("reader", [">/dev/full", "| true", "2>&1 >/dev/full", "2>&1 | true"])


@posix
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
@UNREADABLE
@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ("--version", 2),
        ("pacs:0", 2),
        ("--format nagios pacs:0", 3),
        ("--format nagios --self-test", 3),
        ("--self-test", 2),
    ],
)
def test_what_nobody_can_read_has_its_exit_code_all_the_same(
    reader: str, unbuffered: str, arguments: str, code: int
) -> None:
    """And never a traceback; where a pipe is closed, an echo that went well has gone well."""
    quiet = "true" in reader and "pacs" not in arguments
    script = f'set -o pipefail; (sleep 0.3; exec "$@") {reader}'
    command = ["bash", "-c", script, "bash", *command_line(*arguments.split())]
    outcome = run_process(command, environment(PYTHONUNBUFFERED=unbuffered))
    assert outcome.code == (0 if quiet else code)
    assert "Traceback" not in outcome.err
    assert "Exception ignored" not in outcome.err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
@pytest.mark.parametrize(
    "arguments", [["127.0.0.1:1"], ["--format", "json", "127.0.0.1:1"], ["--version"], ["--help"]], ids=str
)
def test_a_full_disk_is_told_without_a_traceback(arguments: list[str]) -> None:
    outcome = in_shell(">/dev/full", *arguments)
    assert outcome.code in (2, 3)
    assert "Traceback" not in outcome.err
    assert "Exception ignored" not in outcome.err
