"""The command on a terminal: width, colour, progress, a table that is kept up to date, Ctrl-C."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import re
import signal
import sys
import threading
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from command import (
    NO_CHANGES,
    REFUSED,
    SWAYING,
    Outcome,
    command_line,
    open_terminal,
    posix,
    read_terminal,
    run_on_terminal,
)
from rawpeer import A_ASSOCIATE_RQ, Conversation, Endpoint, Expect, RawPeer, Send, associate_rj, script, silent_listener

import dicom_echo

pytestmark = posix

REJECTING = script(accept=associate_rj(1, 1, 7))


@pytest.fixture(scope="module")
def silent() -> Iterator[Endpoint]:
    """A port where every connection succeeds and nobody answers."""
    with silent_listener() as endpoint:
        yield endpoint


def shown(code: int, *arguments: object, width: int = 80, changes: Mapping[str, str] = NO_CHANGES) -> str:
    """What a terminal shows of the command, run in this process; its code is the one expected."""
    ours, theirs = open_terminal(width)
    got: list[str] = []
    reader = threading.Thread(target=lambda: got.append(read_terminal(ours)))
    reader.start()
    with pytest.MonkeyPatch.context() as patched, open(theirs, "w", encoding="utf-8") as stream:  # noqa: PTH123
        for name in SWAYING:
            patched.delenv(name, raising=False)
        for name, value in {"TERM": "xterm", **changes}.items():
            patched.setenv(name, value)
        patched.setattr(sys, "stdout", stream)
        patched.setattr(sys, "stderr", stream)
        told = dicom_echo.main([str(argument) for argument in arguments])
    reader.join()
    assert told == code, got
    return got[0]


def plain(text: str) -> str:
    """A text without its colours, and without the clearing of a line."""
    return re.sub(r"\x1b\[\d*[mK]|\r", "", text)


def columns(text: str) -> int:
    """The columns that a text takes on a terminal."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    unseen = sum(bool(unicodedata.combining(character)) for character in text)
    return len(text) + wide - unseen


# --- Width -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{"COLUMNS": "many"}, {"TERM": "dumb"}, {"COLUMNS": "55"}], ids=str)
@pytest.mark.parametrize("width", [60, 80, 132])
@pytest.mark.parametrize("options", [[], ["-v"], ["-c", "2", "-i", "0"]], ids=str)
def test_lines_are_wrapped_between_words(width: int, options: list[str], changes: dict[str, str]) -> None:
    with RawPeer(REJECTING) as peer:
        text = plain(shown(1, "-aec", "A LONG TITLE", *options, peer.endpoint.host_port, width=width, changes=changes))
    assert max(map(columns, text.splitlines())) <= (55 if "55" in changes.values() else width)
    told = " ".join(text.split())
    for phrase in ("called AE title not recognized", "rejected-permanent, service-user, reason 7", '"A LONG TITLE"'):
        assert phrase in told


@pytest.mark.parametrize("options", [[], ["-c", "2", "-i", "0"]], ids=["once", "repeated"])
def test_the_table_is_aligned_and_fits(tmp_path: Path, options: list[str]) -> None:
    labels = ["archive", "放射線科の古いサーバー", "Mo\u0308bius", "the worklist server of the second floor"]
    with RawPeer() as good, RawPeer(REJECTING) as bad:
        hosts = [good.address, bad.address, REFUSED, good.address]
        (tmp_path / "fleet").write_text("\n".join(map(" # ".join, zip(hosts, labels))), encoding="utf-8")
        lines = plain(shown(3, "-T", tmp_path / "fleet", "--color", "never", *options, width=60)).splitlines()
    rows = lines[: lines.index("")]
    assert len(rows) == 4, lines
    assert len({columns(re.split("[✅❌]", row)[0]) for row in rows}) == 1, lines
    assert max(map(columns, lines)) <= 60, lines


# --- Colour ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "variables", "coloured"),
    [
        ([], {}, True),
        ([], {"NO_COLOR": "1"}, False),
        ([], {"NO_COLOR": ""}, True),
        ([], {"NO_COLOR": "1", "FORCE_COLOR": "1"}, False),
        ([], {"TERM": "dumb"}, False),
        ([], {"TERM": "dumb", "FORCE_COLOR": "1"}, True),
        (["--color", "never"], {"FORCE_COLOR": "1"}, False),
        (["--color", "always"], {"TERM": "dumb", "NO_COLOR": "1"}, True),
        (["--format", "json"], {}, False),
        (["--format", "nagios"], {}, False),
    ],
    ids=str,
)
def test_colour_on_a_terminal(options: list[str], variables: dict[str, str], coloured: bool) -> None:
    text = shown(2 if "nagios" in options else 3, *options, REFUSED, changes=variables)
    assert ("\x1b[31mUnreachable: connection refused\x1b[0m" in text) == coloured
    assert ("\x1b[" in text.replace("\r\x1b[K", "")) == coloured


# --- Progress --------------------------------------------------------------------------------------------------------


def test_after_a_second_a_terminal_and_nobody_else_is_told_what_is_waited_for(tmp_path: Path, silent: Endpoint) -> None:
    """Told at the same time are terminals of all kinds, and those whose results go elsewhere."""
    one, two = [silent.address, "-t", 1.8], [silent.address, REFUSED, "-t", 1.8]
    piped = ["bash", "-c", 'reader=$1; shift; "$@" | $reader', "bash"]
    json_lines = command_line(*two, "--format", "json")
    with concurrent.futures.ThreadPoolExecutor(16) as pool, (tmp_path / "results").open("w") as results:

        def start(*arguments: object, **options: Any) -> concurrent.futures.Future[Outcome]:
            return pool.submit(run_on_terminal, *arguments, **options)

        told = start(*one), start(*one, stdout=results.fileno()), start(*one, "--output", tmp_path / "output")
        fleet, narrow = start(*two), start(*two, width=30)
        in_ascii = start(*one, changes={"PYTHONIOENCODING": "ascii"})
        dumb = start(*two, changes={"TERM": "dumb"})
        untold = start(*one, "-q"), start(*one, "-d"), dumb
        # Their terminal is ours, too.
        readers = [start(command=[*piped, reader, *json_lines]) for reader in ("head -n 9", "cat")]

    for run in told:
        assert f"\r\x1b[Kwaiting for {silent.address} ..." in run.result().out
        assert "waiting" not in "".join(screen(run.result().out))
    assert "waiting" not in (tmp_path / "results").read_text(encoding="utf-8")
    assert f"1 of 2 done, waiting for {silent.address} ..." in fleet.result().out
    assert [line.split()[0] for line in screen(fleet.result().out)[:2]] == [f"ANY-SCP@{REFUSED}", silent.address]
    assert max(map(columns, re.findall(r"\r\x1b\[K(\d of 2 done[^\r\n]*)", narrow.result().out))) < 30
    assert f"waiting for {silent.address} ..." in in_ascii.result().out
    assert "\\u" not in in_ascii.result().out
    for run in untold:
        assert "waiting" not in run.result().out
    assert "\x1b" not in dumb.result().out
    for run in readers:
        assert len([json.loads(line) for line in run.result().out.splitlines()]) == 3
    with RawPeer() as quick:
        assert "waiting" not in shown(0, quick.address)


def test_a_terminal_that_is_gone_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As when its window is closed while the results go into a file, and SIGHUP is ignored (nohup)."""
    ours, theirs = open_terminal(80)

    def close(_conversation: Conversation) -> bytes:
        os.close(ours)
        return b""

    stream = open(theirs, "w")  # noqa: PTH123, SIM115
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    with RawPeer((Expect(A_ASSOCIATE_RQ), Send(close))) as peer:
        code = dicom_echo.main([peer.address, "-t", "1.3", "--output", str(tmp_path / "results")])
    with contextlib.suppress(OSError):  # once more
        stream.close()
    assert code == 3
    assert (tmp_path / "results").read_text(encoding="utf-8").startswith("❌ Timed out")


# --- A table that is kept up to date ---------------------------------------------------------------------------------


def screen(text: str) -> list[str]:
    """What a terminal of 25 lines shows in the end: cursor up and down, and clearing to the end of the line."""
    lines, row, column = [""], 0, 0
    for token in re.findall(r"\x1b\[(?:\d+)?[ABKm]|\x1b\[\d+;?\d*m|.|\n", text, re.DOTALL):
        if token == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif token == "\r":
            column = 0
        elif token[0] == "\x1b":
            number = int(re.sub(r"\D", "", token) or 1)
            row += {"A": -number, "B": number}.get(token[-1], 0)
            assert 0 <= row < len(lines), "the cursor left the table"
            lines[row] = lines[row][:column] if token[-1] == "K" else lines[row]
        else:
            lines[row] = lines[row][:column] + token + lines[row][column + 1 :]
            column += 1
    return lines


def test_endless_echoes_to_many_keep_a_row_for_each_up_to_date(silent: Endpoint) -> None:
    with RawPeer() as one, RawPeer() as other:
        addresses = [one.address, silent.address, other.address]
        options = ["-c", "0", "-i", "0.4", "-t", "60", "--color", "never"]
        code, text, _ = run_on_terminal(*addresses, *options, interrupt_after="3/3")
    lines = screen(text)
    assert code == -signal.SIGINT
    assert [line.split()[0] for line in lines[:3]] == addresses
    assert re.search(r" (\d+)/\1 0% loss .* ✅ Success$", lines[0])
    assert len(lines) == 5, "a row is written over, not repeated"
    assert re.match(r"\d+ echoes: \d+ ok; interrupted with [1-3] under way$", lines[-2])


# --- Ctrl-C ----------------------------------------------------------------------------------------------------------


def test_ctrl_c_is_not_on_one_line_with_the_statistics(silent: Endpoint) -> None:
    def run(addresses: list[str], options: list[str]) -> Outcome:
        told = addresses[-1] if options else "..."
        return run_on_terminal(*addresses, *options, "-t", 60, interrupt_after=told)

    one, two = [silent.address], [silent.address, REFUSED]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for code, text, _ in pool.map(run, [one, two, one, two], [[], [], ["-c", "0"], ["-c", "0"]]):
            assert code == -signal.SIGINT
            assert "^C" in text
            assert not [line for line in screen(text) if re.search(r"\^C.*\w", line)]
            assert re.search("interrupted|statistics", text)
            assert "Traceback" not in text
