"""Reports: fixed results in, lines out, compared with golden.txt. A better wording is one reviewed diff of that file:

DICOM_ECHO_UPDATE_GOLDEN=1 pytest tests/test_reports.py
"""

from __future__ import annotations

import copy
import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from command import command_line, run_main, start_process
from conftest import require
from peers import scrape
from rawpeer import (
    GOOD_SCRIPT,
    Close,
    RawPeer,
    ReceiveSome,
    Script,
    Send,
    abort,
    associate_ac,
    associate_rj,
    command_pdu,
    echo_rsp_command,
    script,
)

import dicom_echo as echo
from dicom_echo import Phase, _Echoed, _Request, _Style, _Tally, _Thresholds

GOLDEN = Path(__file__).with_name("golden.txt")
SCHEMA = json.loads(Path(__file__).with_name("schema.json").read_text(encoding="utf-8"))
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)

# --- Fixed results ---------------------------------------------------------------------------------------------------

NOON = datetime(2026, 11, 22, 12, 0, 0, 123456, timezone.utc)
PEER = echo.Peer("1.2.276.0.7230010.3.0.3.6.7", "OFFIS_DCMTK_367", 16384, "1.2.840.10008.1.2")
TLS = echo.TLSInfo(
    "TLSv1.3", "TLS_AES_256_GCM_SHA384", NOON + timedelta(days=20.25), True, "CN=pacs.example, O=General Hospital",
    "CN=Hospital CA", ("pacs.example", "pacs-2.example", "192.0.2.7"),
)  # fmt: skip
SECONDS = {"resolve": 0.0004, "connect": 0.0011, "tls": 0.0048, "associate": 0.0123, "echo": 0.0021, "release": 0.0009}
RUDE = "\x1b[2J\r\n| x=1; \u2028\x85'quoted'"


def made(
    address: str = "pacs.example",
    error: echo.EchoError | None = None,
    phase: Phase = Phase.release,
    calling: str = "ECHOSCU",
    label: str | None = None,
    identity: echo.Identity | None = None,
    slower: float = 1.0,
    **changes: Any,
) -> _Echoed:
    """What a campaign of one echo tells, with the phases up to the given one; its hint comes from the module."""
    tls: Any = type("Context", (), {"wrap_socket": None})() if changes.get("tls") or phase == Phase.tls else None
    request = _Request(address, "ANY-SCP", calling, label, tls=tls, identity=identity)
    story = echo._Echo(request, 1, 10.0)
    reached = phase not in (Phase.resolve, Phase.connect)
    if reached:
        story.wire.local = "192.0.2.9:51514"
    if phase != Phase.resolve:
        story.wire.remote = f"192.0.2.7:{request.port}"
    if error:
        story._explain(error, phase)
        story.fail(error)
    else:
        story.status, story.released = 0, True
    if phase in (Phase.echo, Phase.release):
        story.peer = PEER
    for name in SECONDS:
        if name != "tls" or tls:
            story.timings[Phase(name)] = SECONDS[name] * slower
        if Phase(name) == phase:
            break
    return _Echoed(request, story.result()._replace(started_at=NOON, **changes), True)


@functools.lru_cache(None)
def results() -> dict[str, _Echoed]:
    """One of each kind, by what it is about. Errors are the module's own words for what its other chapters see."""
    late = {**SECONDS, "release": 1.0}
    return {
        "success": made(),
        "success of a peer that says nothing of itself": made(peer=echo.Peer(None, None, None, None)),
        "success without an orderly release": made(
            timings=echo._Timings({Phase(name): late[name] for name in late if name != "tls"}), released=False,
            notes=("after the answer, while releasing: timed out: no answer within 1 s",),
        ),
        "success over TLS": made("PACS@pacs.example", tls=TLS),
        "success over TLS, not verified, with a user": made(
            "[2001:db8::7]", tls=echo.TLSInfo("TLSv1.2", "ECDHE-RSA-AES128-GCM-SHA256", None, False),
            remote="[2001:db8::7]:2762", local="[2001:db8::9]:51514",
            peer=PEER._replace(max_pdu=0, transfer_syntax="1.2.3.4", user_identity="accepted"),
            identity=echo.Identity(user="root", password="hush"),
        ),
        "success after an address that did not answer": made(
            notes=("tried first: 192.0.2.6:104, no answer within 5 s, 5000 ms",)
        ),
        "success of a rude peer": made(
            peer=PEER._replace(implementation_version_name=RUDE[:16], implementation_class_uid="1.2\n"),
        ),
        "a failing status": made(status=0x0122),
        "a failing status with a rude comment": made(status=0x0110, notes=(f"the peer's error comment: {RUDE}",)),
        "an unnamed status": made(status=0xC123),
        "name not resolved": made(
            "no-such-host.invalid",
            echo.Unreachable("name not resolved", detail="name or service not known", errno=-2), Phase.resolve,
        ),
        "connection refused": made("192.0.2.7:11112", echo.Unreachable("connection refused", errno=111), Phase.connect),
        "trouble of this host": made(
            error=echo.Unreachable("too many open files", case="this host", errno=24), phase=Phase.connect
        ),
        "no answer to the connection": made(
            error=echo.TimedOut("no answer within 10 s", timeout=10.0), phase=Phase.connect
        ),
        "TLS failed": made(
            error=echo.TLSFailed("certificate not trusted", detail="unable to get local issuer certificate"),
            phase=Phase.tls,
        ),
        "no answer to the association": made(
            error=echo.TimedOut("no answer within 10 s", timeout=10.0), phase=Phase.associate
        ),
        "connection lost": made(
            error=echo.ConnectionLost("closed by the peer without an answer"), phase=Phase.associate
        ),
        "rejected": made(
            "WRONG@pacs.example:11112",
            echo.Rejected("called AE title not recognized", detail="rejected-permanent, service-user, reason 7",
                          result=1, source=1, reason=7), Phase.associate,
        ),
        "not supported": made(
            error=echo.NotSupported("abstract syntax not supported", detail="presentation context result 3", result=3),
            phase=Phase.associate,
        ),
        "aborted": made(
            error=echo.Aborted("unexpected PDU", case="-", detail="service-provider, reason 2", source=2, reason=2),
            phase=Phase.echo,
        ),
        "not DICOM": made(
            "pacs.example:80",
            echo.ProtocolError("the answer is HTTP, not DICOM", case="not DICOM", received="485454502f312e31"),
            Phase.associate,
        ),
        "a protocol error with rude words": made(
            error=echo.ProtocolError(f"the answer is {RUDE}"), phase=Phase.echo, tls=TLS
        ),
    }  # fmt: skip


LABELS = ["archive", "CT, room 3", "放射線科の古いサーバー", "Mo\u0308bius", None, 'say "hi" \\ | \'=', "archive"]


@functools.lru_cache(None)
def fleet() -> list[_Echoed]:
    """A result of each kind from a host of its own, some with labels."""
    several = []
    for number, (target, result, last) in enumerate(results().values()):
        address = target.address._replace(host=f"{'host' if number % 3 else 'a-longer-host'}-{number}.example")
        label = LABELS[number] if number < len(LABELS) else None
        another = copy.copy(target)
        another.address, another.label = address, label
        several.append(_Echoed(another, result._replace(address=address, label=label), last))
    return several


def repeats(*names: str) -> list[_Echoed]:
    """Echoes to one target, a second apart, each a little slower than the one before."""
    target = _Request("pacs.example", "ANY-SCP", "ECHOSCU")
    several = []
    for number, name in enumerate(names):
        result = results()[name].result
        timings = echo._Timings({phase: took * (1 + number / 4) for phase, took in result.timings.items()})
        changes: Any = {"message_id": number + 1, "started_at": NOON + timedelta(seconds=number), "timings": timings}
        several.append(_Echoed(target, result._replace(address=target.address, **changes), number == len(names) - 1))
    return several


def tally(events: Iterable[Any], targets: Iterable[_Request] = ()) -> _Tally:
    told = list(events)
    return _Tally(told, list(targets) or list(dict.fromkeys(event.target for event in told)))


def begun(events: Iterable[_Echoed]) -> list[echo._Begun]:
    return [echo._Begun(event.target) for event in events]


# --- What stands in the golden file ----------------------------------------------------------------------------------

PLAIN, VERBOSE = _Style(), _Style(verbose=True, width=80)
FLAKY = ("success", "rejected", "rejected", "connection lost", "success", "a failing status", *["success"] * 4)
CERT = _Thresholds(20, 50, 30, 7)
Report = Callable[[], Iterator[str]]


def each(report: Callable[[_Tally], Iterator[str]], names: Iterable[str] = ()) -> Report:
    """A report on one echo of each kind."""

    def lines() -> Iterator[str]:
        for name, event in results().items():
            if not names or name in names:
                yield f"# {name}"
                yield from report(tally([event]))

    return lines


def text(style: _Style, *names: str) -> Report:
    return each(lambda told: echo._text_on_one(told, style), names)


def cut_short(report: Callable[[_Tally], Iterator[str]]) -> Report:
    """A report on three targets, of which one has answered, one is under way and one has not been asked."""
    targets = [event.target for event in fleet()[:3]]
    return lambda: report(tally([*begun(fleet()[:2]), fleet()[0]], targets))


def several(report: Callable[[_Tally], Iterator[str]]) -> Report:
    return lambda: report(tally(fleet()))


def rounds() -> list[_Echoed]:
    """Two echoes to each of three targets, by turns."""
    first = [fleet()[number]._replace(last=False) for number in (0, 2, 17)]
    second = [event._replace(last=True) for event in first]
    second[1] = second[1]._replace(
        result=fleet()[15].result._replace(address=second[1].target.address, label=LABELS[2])
    )
    return [*first, *second]


def table(style: _Style, repeated: bool = False, endless: bool = False) -> Callable[[_Tally], Iterator[str]]:
    return lambda told: echo._table(told, style, repeated, endless)


def one_line(*names: str) -> list[_Echoed]:
    return [results()[name] for name in names]


SECTIONS: dict[str, Report] = {
    "text on one": text(PLAIN),
    "text on one, verbose, 80 columns": text(VERBOSE),
    "text on one, 60 columns": text(_Style(width=60), "rejected", "no answer to the association", "TLS failed",
                                    "success of a rude peer", "success over TLS"),
    "text on one, verbose, 60 columns": text(_Style(verbose=True, width=60), "success over TLS", "rejected"),
    "text on one, verbose, 30 columns": text(_Style(verbose=True, width=30), "success over TLS"),
    "text on one, verbose, ASCII": text(_Style(symbols=False, verbose=True), "success", "rejected", "a failing status"),
    "text on one, in colour": text(_Style(colour=True), "success", "rejected", "a failing status"),
    "text on one, in colour, 60 columns": text(_Style(colour=True, width=60), "success", "a failing status",
                                               "a protocol error with rude words"),
    "text on one, interrupted": lambda: echo._text_on_one(
        tally(begun(one_line("success")), [results()["success"].target]), PLAIN),
    "text on repeats": lambda: echo._text_on_repeats(tally(repeats(*FLAKY)), PLAIN),
    "text on repeats, 60 columns, ASCII": lambda: echo._text_on_repeats(
        tally(repeats("success", "rejected", "success")), _Style(symbols=False, width=60)),
    "text on repeats, verbose": lambda: echo._text_on_repeats(tally(repeats("success", "rejected")), VERBOSE),
    "text on repeats, no success": lambda: echo._text_on_repeats(tally(repeats("rejected", "rejected")), PLAIN),
    "text on repeats, interrupted": lambda: echo._text_on_repeats(
        tally([*repeats("success", "success")[:1], *begun(repeats("success"))]), PLAIN),
    "text on repeats, interrupted before the first answer": lambda: echo._text_on_repeats(
        tally(begun(repeats("success"))), PLAIN),
    "table": several(table(PLAIN)),
    "table, 80 columns": several(table(_Style(width=80))),
    "table, 60 columns, ASCII, verbose": lambda: table(_Style(symbols=False, width=60, verbose=True))(
        tally(fleet()[14:18])),
    "table, in colour": lambda: table(_Style(colour=True, width=80))(tally(fleet()[16:18])),
    "table of one": lambda: table(PLAIN)(tally(fleet()[:1])),
    "table of one, all well": lambda: table(PLAIN)(tally(fleet()[:3])),
    "table, interrupted": cut_short(table(PLAIN)),
    "table, interrupted before the first answer": lambda: table(PLAIN)(
        tally(begun(fleet()[:1]), [event.target for event in fleet()[:3]])),
    "table, repeated": lambda: table(PLAIN, repeated=True)(tally(rounds())),
    "table, repeated, 80 columns": lambda: table(_Style(width=80), repeated=True)(tally(rounds())),
    "table, endless": lambda: table(PLAIN, True, True)(
        tally([event._replace(last=False) for event in rounds()])),
    "table, endless, on a terminal": lambda: table(_Style(width=80, height=24), True, True)(
        tally([event._replace(last=False) for event in rounds()])),
    "JSON": each(lambda told: echo._json_lines(told, summary=False)),
    "JSON, repeated": lambda: echo._json_lines(tally(repeats("success", "rejected", "success")), summary=True),
    "JSON, no success": lambda: echo._json_lines(tally(repeats("rejected")), summary=True),
    "JSON, interrupted before the first answer": lambda: echo._json_lines(
        tally(begun(repeats("success"))), summary=True),
    "Nagios": each(lambda told: echo._nagios(told, _Thresholds())),
    "Nagios, with thresholds": each(lambda told: echo._nagios(told, CERT), ("success", "success over TLS", "rejected")),
    "Nagios, slow": lambda: echo._nagios(tally([made(slower=2)]), CERT),
    "Nagios, very slow": lambda: echo._nagios(tally([made(slower=20)]), CERT),
    "Nagios, expired": lambda: echo._nagios(
        tally([made(tls=TLS._replace(certificate_expiry=NOON - timedelta(days=2)))]), CERT),
    "Nagios, with a label": lambda: echo._nagios(tally(fleet()[:1]), _Thresholds()),
    "Nagios, repeated": lambda: echo._nagios(tally(repeats("success", "rejected", "success")), CERT),
    "Nagios, several": several(lambda told: echo._nagios(told, CERT)),
    "Nagios, several, all well": lambda: echo._nagios(tally(fleet()[:3]), _Thresholds()),
    "Nagios, several, one slow": lambda: echo._nagios(tally([*fleet()[:2], made("other", slower=2)]), CERT),
    "Nagios, several, trouble of this host": lambda: echo._nagios(tally([*fleet()[:1], fleet()[12]]), CERT),
    "Nagios, interrupted": cut_short(lambda told: echo._nagios(told, CERT)),
    "Prometheus": several(echo._prometheus),
    "Prometheus, one": lambda: echo._prometheus(tally(one_line("success over TLS"))),
    "Prometheus, repeated": lambda: echo._prometheus(tally(repeats("success", "rejected", "success"))),
    "Prometheus, interrupted": cut_short(echo._prometheus),
}  # fmt: skip


def lines_of(title: str) -> list[str]:
    return list(SECTIONS[title]())


def visible(line: str) -> str:
    return line.replace("\x1b", "␛").replace("\r", "␍")


def read_golden() -> dict[str, str]:
    titles_and_texts = re.split(r"^=== (.*) ===\n", GOLDEN.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(titles_and_texts[1::2], titles_and_texts[2::2]))


@pytest.fixture(scope="module")
def golden() -> dict[str, str]:
    if os.environ.get("DICOM_ECHO_UPDATE_GOLDEN"):
        said = {title: "".join(visible(line) + "\n" for line in lines_of(title)) for title in SECTIONS}
        with GOLDEN.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(f"=== {title} ===\n{text}\n" for title, text in said.items())
    return read_golden()


@pytest.mark.parametrize("title", SECTIONS)
def test_the_report_is_the_golden_one(golden: dict[str, str], title: str) -> None:
    assert [*map(visible, lines_of(title)), "", ""] == golden[title].split("\n")


def test_the_golden_file_holds_nothing_else(golden: dict[str, str]) -> None:
    assert list(golden) == list(SECTIONS)


# --- What holds for all reports --------------------------------------------------------------------------------------

COLOUR = re.compile(r"\x1b\[\d*m")
MOVES = re.compile(r"\x1b\[\d*[ABK]|\r")


def columns(line: str) -> int:
    """The columns that a line takes on a terminal, colours left out."""
    bare = COLOUR.sub("", MOVES.sub("", line))
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in bare)
    return len(bare) + wide - sum(unicodedata.combining(character) > 0 for character in bare)


def titles(start: str) -> list[str]:
    return [title for title in SECTIONS if title.startswith(start)]


@pytest.mark.parametrize("title", SECTIONS)
def test_what_a_peer_says_cannot_control_a_terminal(title: str) -> None:
    for line in lines_of(title):
        bare = COLOUR.sub("", line) if "colour" in title else MOVES.sub("", line) if "on a terminal" in title else line
        assert bare.isprintable()


@pytest.mark.parametrize("title", [title for title in SECTIONS if "80 columns" in title or "60 columns" in title])
def test_lines_fit_the_terminal(title: str) -> None:
    width = int(title.partition(" columns")[0][-2:])
    assert max(map(columns, lines_of(title))) in range(width - 5, width + 1)


@pytest.mark.parametrize("width", [24, 40, 80, 132, None])
@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.parametrize("style", [PLAIN, _Style(colour=True), _Style(symbols=False)])
def test_the_rows_of_a_table_are_aligned_and_fit_the_terminal(width: int, repeated: bool, style: _Style) -> None:
    events = [event for event in fleet() if not event.result.notes]
    lines = list(table(style._replace(width=width), repeated)(tally(events)))
    rows = lines[: len(events)]
    assert lines[len(events)] == ""
    assert max(map(columns, rows)) <= (width or 1000)
    if width != 24:  # where even the times are cut
        assert len({columns(re.split(r"✅|❌|\[OK\]|\[FAILED\]", row)[0]) for row in rows}) == 1, rows


def test_failures_are_told_once_more_in_the_order_given() -> None:
    backwards = tally(reversed(fleet()), [event.target for event in fleet()])
    lines = list(table(PLAIN)(backwards))
    failed = [event.result for event in fleet() if not event.result]
    told = [line.split(": ")[0] for line in lines[lines.index("") :] if "❌" in line]
    assert told == [result.target for result in failed]
    assert [line for line in lines if line.startswith("   hint: ")] == [f"   hint: {result.hint}" for result in failed]
    assert lines[-1] == (
        "22 targets: 7 ok, 3 unreachable, 3 status, 2 protocol, 2 timeout, 1 aborted, 1 not-supported, 1 rejected, "
        "1 lost, 1 tls"
    )


def test_one_failure_in_many_echoes_is_the_verdict() -> None:
    told = tally(repeats("success", "rejected", "success"))
    assert [event.result.kind for event in told] == ["ok", "rejected", "ok"]
    assert told.total.verdict.kind == "rejected"
    assert echo._nagios_state(told, _Thresholds()) == echo._State.CRITICAL


# --- JSON ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("title", titles("JSON"))
def test_json_lines_are_what_the_schema_says(title: str) -> None:
    lines = [json.loads(line) for line in lines_of(title) if not line.startswith("#")]
    for line in lines:
        VALIDATOR.validate(line)
    if title == "JSON":
        kinds = {line["error"]["kind"] if line["error"] else "ok" for line in lines}
        assert kinds == {"ok", "status", *(error.kind for error in echo.EchoError.__subclasses__())} - {"address"}


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("surplus", 1), ("schema_version", 2), ("ok", True), ("status", 0), ("status", "0"), ("time", "2026-11-22"),
        ("port", 0), ("message_id", 65536), ("error", None), ("error.kind", "address"), ("error.kind", "aborted"),
        ("error.phase", None), ("error.surplus", 1), ("error.reason", 256), ("phases_ms.other", 1.0),
        ("phases_ms.resolve", -1), ("notes", None), ("local", "somewhere"), ("label", ""),
    ],
)  # fmt: skip
def test_the_schema_refuses_what_is_wrong(path: str, value: object) -> None:
    line = results()["rejected"].result.to_dict()
    VALIDATOR.validate(line)
    wrong = copy.deepcopy(line)
    *parents, last = path.split(".")
    functools.reduce(dict.__getitem__, parents, wrong)[last] = value
    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate(wrong)


# --- Nagios (https://www.monitoring-plugins.org/doc/guidelines.html) -------------------------------------------------

# 'label'=value[UOM];[warn];[crit];[min];[max]: a label without spaces needs no quotes, two quotes stand for one; value,
# min and max in class [-0-9.]; warn and crit are ranges; trailing semicolons may be left out.
NUMBER = r"-?\d+(?:\.\d+)?"
RANGE = rf"@?(?:~:|(?:{NUMBER})?:)?(?:{NUMBER})?"
LABEL = r"(?:'(?:[^'=|]|'')+'|[^\s'=|]+)"
DATUM = rf"{LABEL}={NUMBER}(?:us|ms|s|%|[KMGT]?B|c)?(?:;{RANGE}(?:;{RANGE}(?:;(?:{NUMBER})?(?:;(?:{NUMBER})?)?)?)?)?"


def read_plugin(lines: list[str]) -> tuple[str, list[str]]:
    """Hold a plugin's output to the guidelines; return its state and the labels of its performance data."""
    assert all(line.count("|") <= (number in (0, len(lines) - 1)) for number, line in enumerate(lines))
    found = re.match(r"DICOM ECHO (OK|WARNING|CRITICAL|UNKNOWN) - \S", lines[0])
    assert found
    data = " ".join(line.partition(" | ")[2] for line in dict.fromkeys((lines[0], lines[-1])) if " | " in line)
    assert re.fullmatch(rf"(?:{DATUM}(?: {DATUM})*)?", data)
    return found[1], [datum.rpartition("=")[0] for datum in re.findall(DATUM, data)]


@pytest.mark.parametrize("title", titles("Nagios"))
def test_plugin_lines_keep_to_the_guidelines(title: str) -> None:
    lines = [line for line in lines_of(title) if not line.startswith("#")]
    for output in [[line] for line in lines] if title in ("Nagios", "Nagios, with thresholds") else [lines]:
        _, labels = read_plugin(output)
        assert len(labels) == len(set(labels)), "a graph has one line for a label"


@pytest.mark.parametrize("title", ["A B", "A=B", "A'B", "A|B", "A;B", 'A"B'])
def test_odd_titles_are_quoted_in_labels(title: str) -> None:
    lines = list(echo._nagios(tally([made(f"{title}@host"), made(f"{title}@host"), made()]), _Thresholds()))
    assert len(set(read_plugin(lines)[1])) == 4


@pytest.mark.parametrize("limit", [5e12, 1.234e9, 0.05, 1e-9])
def test_numbers_are_never_in_exponent_form(limit: float) -> None:
    told = tally([made(tls=TLS)])
    assert read_plugin(list(echo._nagios(told, _Thresholds(limit, limit, limit, limit))))[1]


@pytest.mark.parametrize(
    ("limits", "state"),
    [
        (_Thresholds(), "OK"), (_Thresholds(21.7, 21.7), "OK"), (_Thresholds(21, 22), "WARNING"),
        (_Thresholds(None, 21), "CRITICAL"), (_Thresholds(0, None), "WARNING"),
        (_Thresholds(None, None, 20, 7), "OK"), (_Thresholds(None, None, 21, 7), "WARNING"),
        (_Thresholds(None, None, 30, 21), "CRITICAL"), (_Thresholds(21, None, 30, 21), "CRITICAL"),
    ],
)  # fmt: skip
def test_thresholds(limits: _Thresholds, state: str) -> None:
    told = tally([made(tls=TLS)])  # takes 21.6 ms, with a certificate for 20.25 days more
    assert read_plugin(list(echo._nagios(told, limits)))[0] == state
    assert echo._nagios_state(told, limits).name == state


@pytest.mark.parametrize(
    "arguments",
    [
        ["--format", "nagios"], ["--format=nagios"], ["--format", "nagios", "host:99999"],
        ["--format", "nagios", "host", "--no-such-option"], ["host", "-t", "soon", "--format", "nagios"],
        ["--format", "nagios", "host", "--warning", "x|y\nz"], ["--format", "nagios", "-q", "host"],
        ["--format", "nagios", "-T", "/no/such/file"],
        ["--format", "nagios", "host", "--output", "/no/such/folder/file"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_usage_error_is_unknown_on_standard_output(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    code, out, err = run_main(capsys, *arguments)
    assert (code, err) == (3, "")
    assert read_plugin(out.splitlines()) == ("UNKNOWN", [])


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_check_is_unknown(number: signal.Signals) -> None:
    """As when the monitoring system ends a plugin that takes too long."""
    silent = RawPeer((ReceiveSome(),))
    with silent, start_process(command_line("--format", "nagios", silent.address, "-t", 60)) as process:
        while not (silent.received and silent.received[0].raw):
            time.sleep(0.01)
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (3, "DICOM ECHO UNKNOWN - interrupted after 0 of 1 targets\n", "")


# --- Prometheus ------------------------------------------------------------------------------------------------------


def samples(metrics: str) -> dict[str, float]:
    """Each series with its value."""
    rows = [line.rpartition(" ") for line in metrics.splitlines() if not line.startswith("#")]
    found = {series: float(value) for series, _, value in rows}
    assert len(found) == len(rows), "a series twice"
    return found


def check(metrics: str) -> None:
    """promtool finds nothing."""
    command = [require("promtool", "prometheus"), "check", "metrics"]
    done = subprocess.run(
        command, input=metrics.encode(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=20, check=False
    )
    assert (done.returncode, done.stdout.decode()) == (0, ""), metrics


def test_promtool_finds_nothing() -> None:
    for title in titles("Prometheus"):
        check("".join(f"{line}\n" for line in lines_of(title)))
    assert lines_of("Prometheus, interrupted") == []


def test_a_target_given_twice_has_one_series() -> None:
    told = tally([made(), made(), made("OTHER@pacs.example")])
    assert len(samples("\n".join(echo._prometheus(told)))) == 18


@pytest.mark.parametrize("odd", ['A"B', "A{B}", "A,B=C", "#A", "A'B", "A\\B\nC", "\u2028"])
def test_label_values_are_escaped(odd: str) -> None:
    event = made()
    told = tally([event._replace(result=event.result._replace(called_ae_title=odd, label=odd))])
    metrics = "".join(f"{line}\n" for line in echo._prometheus(told))
    quoted = odd.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    assert f'called_ae="{quoted}",calling_ae="ECHOSCU",label="{quoted}"}} 1\n' in metrics
    check(metrics)


# --- From a real peer to each report ---------------------------------------------------------------------------------

PLAYED: dict[str, tuple[str, Script]] = {
    "success": ("ok", GOOD_SCRIPT),
    "notes": ("ok", script(release=abort())),
    "error comment": ("status", script(echo=command_pdu(echo_rsp_command(1, 0x0110, error_comment=RUDE)))),
    "nameless": ("ok", script(accept=associate_ac(version_name=None, max_length=None))),
    "rude name": ("ok", script(accept=associate_ac(version_name='|\x1b[2J\n"'))),
    "rude transfer syntax": ("ok", script(accept=associate_ac([(1, 0, "1.2|\n3")]))),
    "rejected": ("rejected", script(accept=associate_rj(1, 1, 7))),
    "rejected for reserved reasons": ("rejected", script(accept=associate_rj(255, 255, 255))),
    "not supported": ("not-supported", script(accept=associate_ac([(1, 3, None)]))),
    "aborted for reserved reasons": ("aborted", script(echo=abort(255, 255))),
    "closed": ("lost", script(accept=Close())),
    "mail server": ("protocol", (ReceiveSome(), Send(b"220 | x=1\nDICOM ECHO OK | y=2\n"), Close())),
}


@pytest.mark.parametrize(("kind", "played"), PLAYED.values(), ids=list(PLAYED))
def test_what_real_echoes_show_fits_every_report(kind: str, played: Script) -> None:
    with RawPeer(played) as peer:
        result = echo.probe(peer.address, message_id=1)
        target = _Request(peer.address, "ANY-SCP", "ECHOSCU")
    assert result.kind == kind
    line = json.loads(*echo._json_lines(tally([_Echoed(target, result, True)]), summary=False))
    assert line == result.to_dict()
    VALIDATOR.validate(line)
    state, _ = read_plugin(list(echo._nagios(tally([_Echoed(target, result, True)]), _Thresholds())))
    assert state == ("OK" if result else "CRITICAL")
    assert samples("\n".join(echo._prometheus(tally([_Echoed(target, result, True)]))))


@pytest.mark.parametrize("form", ["text", "json", "nagios", "prometheus"])
def test_the_command_prints_the_report_asked_for(capsys: pytest.CaptureFixture[str], form: str) -> None:
    with RawPeer() as good, RawPeer(PLAYED["rejected"][1]) as bad:
        rejecting = bad.address
        code, out, err = run_main(capsys, "--format", form, "-c", 2, "-i", 0, good.address, rejecting)
    assert (code, err) == (2 if form == "nagios" else 1, "")
    if form == "text":
        assert out.splitlines()[-1] == "4 echoes: 2 ok, 2 rejected"
    elif form == "json":
        *echoes, summary = map(json.loads, out.splitlines())
        for line in (*echoes, summary):
            VALIDATOR.validate(line)
        assert (len(echoes), summary["targets"], summary["kinds"]) == (4, 2, {"ok": 2, "rejected": 2})
    elif form == "nagios":
        assert read_plugin(out.splitlines())[0] == "CRITICAL"
        assert f"1 of 2 targets OK; {rejecting}: Rejected: called AE title not recognized (0 of 2" in out
    else:
        check(out)
        assert sorted(samples(out)[name] for name in samples(out) if name.startswith("dicom_echo_success")) == [0, 1]


def test_a_node_exporter_serves_the_metrics(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    program = require("prometheus-node-exporter", "prometheus-node-exporter")
    with RawPeer() as good, RawPeer(PLAYED["rejected"][1]) as bad:
        targets = tmp_path / "targets"
        targets.write_text(f'{good.address} # say "hi" \\ there\n{bad.address}\n', encoding="utf-8")
        file = tmp_path / "dicom.prom"
        assert run_main(capsys, "-T", targets, "--format", "prometheus", "--output", file) == (1, "", "")
    served = scrape(program, tmp_path)
    assert "\nnode_textfile_scrape_error 0\n" in served
    ours = [line for line in served.splitlines() if line.startswith("dicom_echo_")]
    written = samples(file.read_text(encoding="utf-8"))
    assert sorted(float(line.rpartition(" ")[2]) for line in ours) == pytest.approx(sorted(written.values()))
    assert any('label="say \\"hi\\" \\\\ there"' in line for line in ours)
