"""Reports: fixed results in, lines out, compared with golden.txt. A better wording is one reviewed diff of that file:

DICOM_ECHO_UPDATE_GOLDEN=1 pytest tests/test_reports.py
"""

from __future__ import annotations

import copy
import functools
import itertools
import json
import os
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import rawpeer
from command import run_main
from conftest import require
from rawpeer import Link, RawPeer, Script, abort, associate_ac, associate_rj, close, script

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
    error: echo.EchoError | None = None,
    phase: Phase = Phase.release,
    address: str = "pacs.example",
    slower: float = 1.0,
    **changes: Any,
) -> _Echoed:
    """The outcome of a campaign of one echo that got as far as a phase; an error's hint comes from the module."""
    tls: Any = type("Context", (), {"wrap_socket": None})() if changes.get("tls") or phase == Phase.tls else None
    request = _Request(address, "ANY-SCP", "ECHOSCU", tls=tls)
    story = echo._Echo(request, 1, 10.0)
    if phase not in (Phase.resolve, Phase.connect):
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


NO_ANSWER = functools.partial(echo.TimedOut, "no answer within 10 s", timeout=10.0)
RESULTS = {  # at least one of each kind; the errors are worded as the module words them
    "success": made(),
    "success of a peer that says nothing of itself": made(peer=echo.Peer(None, None, None, None)),
    "success without an orderly release": made(
        timings=echo._Timings({Phase(name): {**SECONDS, "release": 1.0}[name] for name in SECONDS if name != "tls"}),
        released=False, notes=("after the answer, while releasing: timed out: no answer within 1 s",)),
    "success over TLS": made(address="PACS@pacs.example", tls=TLS),
    "success over TLS, not verified, with a user": made(
        address="[2001:db8::7]", tls=echo.TLSInfo("TLSv1.2", "ECDHE-RSA-AES128-GCM-SHA256", None, False),
        remote="[2001:db8::7]:2762", local="[2001:db8::9]:51514",
        peer=PEER._replace(max_pdu=0, transfer_syntax="1.2.3.4", user_identity="accepted")),
    "success after an address that did not answer": made(
        notes=("tried first: 192.0.2.6:104, no answer within 5 s, 5000 ms",)),
    "success of a rude peer": made(
        peer=PEER._replace(implementation_version_name=RUDE[:16], implementation_class_uid="1.2\n")),
    "a failing status": made(status=0x0122),
    "a failing status with a rude comment": made(status=0x0110, notes=(f"the peer's error comment: {RUDE}",)),
    "an unnamed status": made(status=0xC123),
    "name not resolved": made(
        echo.Unreachable("name not resolved", detail="name or service not known", errno=-2), Phase.resolve,
        "no-such-host.invalid"),
    "connection refused": made(echo.Unreachable("connection refused", errno=111), Phase.connect, "192.0.2.7:11112"),
    "trouble of this host": made(echo.Unreachable("too many open files", case="this host", errno=24), Phase.connect),
    "no answer to the connection": made(NO_ANSWER(), Phase.connect),
    "TLS failed": made(
        echo.TLSFailed("certificate not trusted", detail="unable to get local issuer certificate"), Phase.tls),
    "no answer to the association": made(NO_ANSWER(), Phase.associate),
    "connection lost": made(echo.ConnectionLost("closed by the peer without an answer"), Phase.associate),
    "rejected": made(
        echo.Rejected("called AE title not recognized", detail="rejected-permanent, service-user, reason 7", result=1,
                      source=1, reason=7), Phase.associate, "WRONG@pacs.example:11112"),
    "not supported": made(
        echo.NotSupported("abstract syntax not supported", detail="presentation context result 3", result=3),
        Phase.associate),
    "aborted": made(
        echo.Aborted("unexpected PDU", detail="service-provider, reason 2", source=2, reason=2), Phase.echo),
    "not DICOM": made(
        echo.ProtocolError("the answer is HTTP, not DICOM", case="not DICOM", received="485454502f312e31"),
        Phase.associate, "pacs.example:80"),
    "a protocol error with rude words": made(echo.ProtocolError(f"the answer is {RUDE}"), Phase.echo, tls=TLS),
}  # fmt: skip
LABELS = ["archive", "CT, room 3", "放射線科の古いサーバー", "Mo\u0308bius", None, 'say "hi" \\ | \'=', "archive"]


def of_host(number: int, event: _Echoed) -> _Echoed:
    """A result as if it came from a host of its own, some with a label."""
    target = copy.copy(event.target)
    target.address = target.address._replace(host=f"{'host' if number % 3 else 'a-longer-host'}-{number}.example")
    target.label = dict(enumerate(LABELS)).get(number)
    return event._replace(target=target, result=event.result._replace(address=target.address, label=target.label))


FLEET = [of_host(number, event) for number, event in enumerate(RESULTS.values())]


def labelled(label: str) -> _Echoed:
    event = made()
    event.target.label = label
    return event._replace(result=event.result._replace(label=label))


def repeats(*names: str) -> list[_Echoed]:
    """Echoes to one target, a second apart, each a little slower than the one before."""
    target = _Request("pacs.example", "ANY-SCP", "ECHOSCU")
    several = []
    for number, name in enumerate(names):
        result = RESULTS[name].result
        timings = echo._Timings({phase: took * (1 + number / 4) for phase, took in result.timings.items()})
        changes: Any = {"message_id": number + 1, "started_at": NOON + timedelta(seconds=number), "timings": timings}
        several.append(_Echoed(target, result._replace(address=target.address, **changes), number == len(names) - 1))
    return several


def rounds(last: bool = True) -> list[_Echoed]:
    """Two echoes to each of three targets, by turns."""
    first = [FLEET[number]._replace(last=False) for number in (0, 2, 17)]
    second = [event._replace(last=last) for event in first]
    failed = FLEET[15].result._replace(address=second[1].target.address, label=LABELS[2])
    second[1] = second[1]._replace(result=failed)
    return [*first, *second]


def begun(events: Iterable[_Echoed]) -> list[_Request]:
    """The outcomes that tell that these echoes have begun."""
    return [event.target for event in events]


def targets(events: Iterable[Any]) -> list[_Request]:
    return list(dict.fromkeys(each if isinstance(each, _Request) else each.target for each in events))


def tally(events: Iterable[Any], asked: Iterable[_Request] = ()) -> _Tally:
    told = list(events)
    return _Tally(told, list(asked) or targets(told))


# --- What stands in the golden file ----------------------------------------------------------------------------------

Report = Callable[[_Tally], Iterator[str]]
PLAIN, VERBOSE = _Style(), _Style(verbose=True, width=80)
TEXT, REPEATS, JSON = echo._text_on_one, echo._text_on_repeats, echo._json_lines


def on(report: Callable[..., Iterator[str]], *options: Any) -> Report:
    return lambda told: report(told, *options)


def table(style: _Style = PLAIN, repeated: bool = False, endless: bool = False) -> Report:
    return on(echo._table, style, repeated, endless)


def nagios(*limits: float | None) -> Report:
    return on(echo._nagios, _Thresholds(*limits))


def some(*names: str) -> dict[str, _Echoed]:
    return {name: RESULTS[name] for name in names}


WELL_REFUSED_WELL = repeats("success", "rejected", "success")
LIMITS = (20, 50, 30, 7)  # milliseconds, and days of a certificate
# One target has answered, one is under way, one has not been asked.
CUT_SHORT = [*begun(FLEET[:2]), FLEET[0]], targets(FLEET[:3])
ODD_TITLES = ("A B", "A=B", "A'B", "A|B", "A;B", 'A"B')
ODD_LABELS = ("#A", "A\"B'{C},D=E", "A\\B\nC", "\u2028")
# A report, and what it is on: each of the results in a dictionary, or all outcomes in a list. A third item is the
# targets, where there are others than those with an outcome.
SECTIONS: dict[str, tuple[Any, ...]] = {
    "text on one": (on(TEXT, PLAIN), RESULTS),
    "text on one, verbose, 80 columns": (on(TEXT, VERBOSE), some(
        "success", "success of a peer that says nothing of itself", "success without an orderly release",
        "success over TLS", "success over TLS, not verified, with a user",
        "success after an address that did not answer", "success of a rude peer", "a failing status",
        "name not resolved", "connection refused", "TLS failed", "rejected", "aborted",
        "a protocol error with rude words")),
    "text on one, 60 columns": (on(TEXT, _Style(width=60)), some(
        "success over TLS", "success of a rude peer", "TLS failed", "no answer to the association", "rejected")),
    "text on one, verbose, 60 columns": (
        on(TEXT, _Style(verbose=True, width=60)), some("success over TLS", "rejected")),
    "text on one, verbose, 30 columns": (on(TEXT, _Style(verbose=True, width=30)), some("success over TLS")),
    "text on one, verbose, ASCII": (
        on(TEXT, _Style(symbols=False, verbose=True)), some("success", "a failing status", "rejected")),
    "text on one, in colour": (on(TEXT, _Style(colour=True)), some("success", "a failing status", "rejected")),
    "text on one, in colour, 60 columns": (on(TEXT, _Style(colour=True, width=60)), some(
        "success", "a failing status", "a protocol error with rude words")),
    "text on one, interrupted": (on(TEXT, PLAIN), begun(repeats("success"))),
    "text on repeats": (on(REPEATS, PLAIN), repeats(
        "success", "rejected", "rejected", "connection lost", "success", "a failing status", *["success"] * 4)),
    "text on repeats, 60 columns, ASCII": (
        on(REPEATS, _Style(symbols=False, width=60)), repeats("success", "rejected", *["success"] * 4)),
    "text on repeats, verbose": (on(REPEATS, VERBOSE), repeats("success", "rejected")),
    "text on repeats, no success": (on(REPEATS, PLAIN), repeats("rejected", "rejected")),
    "text on repeats, interrupted": (
        on(REPEATS, PLAIN), [*repeats("success", "success")[:1], *begun(repeats("success"))]),
    "text on repeats, interrupted before the first answer": (on(REPEATS, PLAIN), begun(repeats("success"))),
    "table": (table(), FLEET),
    "table, 80 columns": (table(_Style(width=80)), FLEET),
    "table, 60 columns, ASCII, verbose": (table(_Style(symbols=False, width=60, verbose=True)), FLEET[14:18]),
    "table, in colour": (table(_Style(colour=True, width=80)), FLEET[16:18]),
    "table of one": (table(), FLEET[:1]),
    "table of one, all well": (table(), FLEET[:3]),
    "table, finished in another order": (table(), FLEET[18:15:-1], targets(FLEET[16:19])),
    "table, interrupted": (table(), *CUT_SHORT),
    "table, interrupted before the first answer": (table(), begun(FLEET[:1]), targets(FLEET[:3])),
    "table, repeated": (table(repeated=True), rounds()),
    "table, repeated, 80 columns": (table(_Style(width=80), repeated=True), rounds()),
    "table, endless": (table(repeated=True, endless=True), rounds(last=False)),
    "table, endless, on a terminal": (table(_Style(width=80, height=24), True, True), rounds(last=False)),
    "JSON": (on(JSON, False), RESULTS),
    "JSON, repeated": (on(JSON, True), WELL_REFUSED_WELL),
    "JSON, no success": (on(JSON, True), repeats("rejected")),
    "JSON, interrupted before the first answer": (on(JSON, True), begun(repeats("success"))),
    "Nagios": (nagios(), RESULTS),
    "Nagios, with thresholds": (nagios(*LIMITS), some("success", "success over TLS", "rejected")),
    "Nagios, slow": (nagios(*LIMITS), [made(slower=2)]),
    "Nagios, very slow": (nagios(*LIMITS), [made(slower=20)]),
    "Nagios, expired": (nagios(*LIMITS), [made(tls=TLS._replace(certificate_expiry=NOON - timedelta(days=2)))]),
    "Nagios, with a label": (nagios(), FLEET[:1]),
    "Nagios, repeated": (nagios(*LIMITS), WELL_REFUSED_WELL),
    "Nagios, several": (nagios(*LIMITS), FLEET),
    "Nagios, several, all well": (nagios(), FLEET[:3]),
    "Nagios, several, one slow": (nagios(*LIMITS), [*FLEET[:2], made(address="other", slower=2)]),
    "Nagios, several, trouble of this host": (nagios(*LIMITS), [FLEET[0], FLEET[12]]),
    "Nagios, odd titles": (nagios(), [made(address=f"{title}@host") for title in ODD_TITLES * 2]),
    "Nagios, labels that look numbered": (nagios(), [labelled(label) for label in ("a", "a 2", "a", "a 2")]),
    "Nagios, limits of many digits": (nagios(5e12, 1.234e9, 1e-9, 0.05), [made(tls=TLS)]),
    "Nagios, interrupted": (nagios(*LIMITS), *CUT_SHORT),
    "Prometheus": (echo._prometheus, FLEET),
    "Prometheus, one": (echo._prometheus, [RESULTS["success over TLS"]]),
    "Prometheus, a target given twice": (echo._prometheus, [made(), made(), made(address="OTHER@pacs.example")]),
    "Prometheus, odd labels": (echo._prometheus, [labelled(label) for label in ODD_LABELS]),
    "Prometheus, repeated": (echo._prometheus, WELL_REFUSED_WELL),
    "Prometheus, interrupted": (echo._prometheus, *CUT_SHORT),
}  # fmt: skip


@functools.lru_cache(None)
def lines_of(title: str) -> list[str]:
    report, events, *asked = SECTIONS[title]
    if isinstance(events, dict):
        return [line for name, event in events.items() for line in (f"# {name}", *report(tally([event])))]
    return list(report(tally(events, *asked)))


def visible(line: str) -> str:
    return line.replace("\x1b", "␛").replace("\r", "␍")


def test_the_reports_are_the_golden_ones() -> None:
    said = ""
    for title in SECTIONS:
        said += "\n".join((f"=== {title} ===", *map(visible, lines_of(title)), "", ""))
    if os.environ.get("DICOM_ECHO_UPDATE_GOLDEN"):
        GOLDEN.write_bytes(said.encode())
    assert said == GOLDEN.read_bytes().decode()


# --- What holds for all reports --------------------------------------------------------------------------------------

COLOUR = re.compile(r"\x1b\[\d*m")
MOVES = re.compile(r"\x1b\[\d*[ABK]|\r")


def columns(line: str) -> int:
    """The columns that a line takes on a terminal, colours left out."""
    return echo._columns(COLOUR.sub("", MOVES.sub("", line)))


def test_what_a_peer_says_cannot_control_a_terminal() -> None:
    for title in SECTIONS.keys() - {"Prometheus, odd labels"}:  # which is for no terminal, and escapes by its own rules
        ours = COLOUR if "colour" in title else MOVES if "on a terminal" in title else None
        for line in lines_of(title):
            assert (ours.sub("", line) if ours else line).isprintable()


def test_lines_fit_the_terminal() -> None:
    for title in SECTIONS:
        if found := re.search(r"(60|80) columns", title):
            assert max(map(columns, lines_of(title))) in range(int(found[1]) - 5, int(found[1]) + 1), title


def test_the_rows_of_a_table_are_aligned_and_fit_the_terminal() -> None:
    events = [event for event in FLEET if not event.result.notes]
    styles = PLAIN, _Style(colour=True), _Style(symbols=False)
    for style, width, repeated in itertools.product(styles, [24, 40, 80, 132, PLAIN.width], [False, True]):
        lines = list(table(style._replace(width=width), repeated)(tally(events)))
        rows = lines[: len(events)]
        assert lines[len(events)] == ""
        assert max(map(columns, rows)) <= width
        if width != 24:  # where even the times are cut
            assert len({columns(re.split(r"✅|❌|\[OK\]|\[FAILED\]", row)[0]) for row in rows}) == 1, rows


# --- JSON ------------------------------------------------------------------------------------------------------------


def test_json_lines_are_what_the_schema_says() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    lines = {
        title: [json.loads(line) for line in lines_of(title) if not line.startswith("#")]
        for title in SECTIONS
        if title.startswith("JSON")
    }
    for line in itertools.chain(*lines.values()):
        VALIDATOR.validate(line)
    kinds = {line["error"]["kind"] if line["error"] else "ok" for line in lines["JSON"]}
    assert kinds == {"ok", "status", *(error.kind for error in echo.EchoError.__subclasses__())} - {"address"}


def test_the_schema_refuses_what_is_wrong() -> None:
    for path, value in [
        ("surplus", 1), ("schema_version", 2), ("ok", True), ("status", 0), ("status", "0"), ("time", "2026-11-22"),
        ("port", 0), ("message_id", 65536), ("error", None), ("error.kind", "address"), ("error.kind", "aborted"),
        ("error.phase", None), ("error.surplus", 1), ("error.reason", 256), ("phases_ms.other", 1.0),
        ("phases_ms.resolve", -1), ("notes", None), ("local", "somewhere"), ("label", ""),
    ]:  # fmt: skip
        wrong = RESULTS["rejected"].result.to_dict()
        *parents, last = path.split(".")
        functools.reduce(dict.__getitem__, parents, wrong)[last] = value
        assert not VALIDATOR.is_valid(wrong), path


# --- Nagios (https://www.monitoring-plugins.org/doc/guidelines.html) -------------------------------------------------

# 'label'=value[UOM];[warn];[crit];[min];[max]: a label without spaces needs no quotes, two quotes stand for one; value,
# min and max in class [-0-9.]; warn and crit are ranges; trailing semicolons may be left out.
NUMBER = r"-?\d+(?:\.\d+)?"
RANGE = rf"@?(?:~:|(?:{NUMBER})?:)?(?:{NUMBER})?"
LABEL = r"(?:'(?:[^'=|]|'')+'|[^\s'=|]+)"
DATUM = rf"{LABEL}={NUMBER}(?:us|ms|s|%|[KMGT]?B|c)?(?:;{RANGE}(?:;{RANGE}(?:;(?:{NUMBER})?(?:;(?:{NUMBER})?)?)?)?)?"


def read_plugin(lines: Iterable[str]) -> tuple[str, list[str]]:
    """Hold a plugin's output to the guidelines; return its state and the labels of its performance data."""
    lines = list(lines)
    assert all(line.count("|") <= (number in (0, len(lines) - 1)) for number, line in enumerate(lines))
    found = re.match(r"DICOM ECHO (OK|WARNING|CRITICAL|UNKNOWN) - \S", lines[0])
    assert found
    data = " ".join(line.partition(" | ")[2] for line in dict.fromkeys((lines[0], lines[-1])) if " | " in line)
    assert re.fullmatch(rf"(?:{DATUM}(?: {DATUM})*)?", data)
    labels = [datum.rpartition("=")[0] for datum in re.findall(DATUM, data)]
    assert len(labels) == len(set(labels)), "a graph has one line for a label"
    return found[1], labels


def test_plugin_lines_keep_to_the_guidelines() -> None:
    for title, (_, events, *_) in SECTIONS.items():
        if title.startswith("Nagios"):
            lines = [line for line in lines_of(title) if not line.startswith("#")]
            for output in [[line] for line in lines] if isinstance(events, dict) else [lines]:
                read_plugin(output)


def test_thresholds() -> None:
    expected: dict[tuple[float | None, ...], str] = {
        (): "OK", (21.7, 21.7): "OK", (21, 22): "WARNING", (None, 21): "CRITICAL", (0, None): "WARNING",
        (None, None, 20, 7): "OK", (None, None, 21, 7): "WARNING", (None, None, 30, 21): "CRITICAL",
        (21, None, 30, 21): "CRITICAL",
    }  # fmt: skip
    told = tally([made(tls=TLS)])  # takes 21.6 ms, with a certificate for 20.25 days more
    assert {limits: read_plugin(nagios(*limits)(told))[0] for limits in expected} == expected
    assert {limits: echo._nagios_state(told, _Thresholds(*limits)).name for limits in expected} == expected


def test_a_usage_error_is_a_plugin_line_whatever_was_typed(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run_main(capsys, "--format", "nagios", "host", "--warning", "x|y\nz")
    assert (code, err, read_plugin(out.splitlines())) == (3, "", ("UNKNOWN", []))


# --- Prometheus ------------------------------------------------------------------------------------------------------


def samples(metrics: Iterable[str]) -> dict[str, float]:
    """Each series with its value."""
    rows = [line.rpartition(" ") for line in metrics if not line.startswith("#")]
    found = {series: float(value) for series, _, value in rows}
    assert len(found) == len(rows), "a series twice"
    return found


def test_no_series_is_there_twice_and_promtool_finds_nothing() -> None:
    sections = [lines_of(title) for title in SECTIONS if title.startswith("Prometheus") and "interrupted" not in title]
    assert all(map(samples, sections))
    command = [require("promtool", "prometheus"), "check", "metrics"]
    for lines in sections:
        text = "".join(f"{line}\n" for line in lines)
        done = subprocess.run(command, input=text, capture_output=True, encoding="utf-8", timeout=20, check=False)
        assert (done.returncode, done.stdout + done.stderr) == (0, ""), text


# --- From a real peer to each report ---------------------------------------------------------------------------------

# What fixed results do not show.
RUDE_ACCEPT = associate_ac([(1, 0, "1.2|\n3")], version_name='|\x1b[2J\n"', max_length=None)
RUDE_ANSWER = rawpeer.command_pdu(rawpeer.echo_rsp_command(1, 0x0110, error_comment=RUDE))
PLAYED: dict[str, Script] = {
    "ok": script(accept=RUDE_ACCEPT, release=abort()),
    "status": script(accept=RUDE_ACCEPT, echo=RUDE_ANSWER),
    "rejected": script(accept=associate_rj(255, 255, 255)),  # reserved, as are those of the abort
    "aborted": script(echo=abort(255, 255)),
    "protocol": (Link.receive, b"220 | x=1\nDICOM ECHO OK | y=2\n", close),
}


@pytest.mark.parametrize("kind", PLAYED)
def test_what_real_echoes_show_fits_every_report(kind: str) -> None:
    with RawPeer(PLAYED[kind]) as peer:
        result = echo.probe(peer.address, message_id=1)
        told = [_Echoed(_Request(peer.address, "ANY-SCP", "ECHOSCU"), result, True)]
    assert result.kind == kind
    line = json.loads(*on(JSON, False)(tally(told)))
    assert line == result.to_dict()
    VALIDATOR.validate(line)
    assert read_plugin(nagios()(tally(told)))[0] == ("OK" if result else "CRITICAL")
    assert samples(echo._prometheus(tally(told)))


def test_the_command_prints_the_report_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    with RawPeer() as good, RawPeer(script(accept=associate_rj(1, 1, 7))) as bad:
        text, lines, plugin, metrics = (
            run_main(capsys, "--format", form, "-c", 2, "-i", 0, good.address, bad.address)
            for form in ("text", "json", "nagios", "prometheus")
        )
    assert [(each.code, each.err) for each in (text, lines, plugin, metrics)] == [(1, ""), (1, ""), (2, ""), (1, "")]
    assert text.out.splitlines()[-1] == "4 echoes: 2 ok, 2 rejected"
    *echoes, summary = map(json.loads, lines.out.splitlines())
    for line in (*echoes, summary):
        VALIDATOR.validate(line)
    assert (len(echoes), summary["targets"], summary["kinds"]) == (4, 2, {"ok": 2, "rejected": 2})
    assert read_plugin(plugin.out.splitlines())[0] == "CRITICAL"
    values = samples(metrics.out.splitlines())
    assert sorted(values[name] for name in values if name.startswith("dicom_echo_success")) == [0, 1]
