"""The command on a terminal: size, colour, progress, a table that is kept up to date, Ctrl-C."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import re
import signal
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command import REFUSED, SWAYING, Outcome, command_line, open_terminal, posix, run_on_terminal
from rawpeer import A_ASSOCIATE_RQ, Conversation, Endpoint, RawPeer, silent_listener

import dicom_echo

pytestmark = posix


@pytest.fixture(scope="module")
def silent() -> Iterator[Endpoint]:
    """A port where every connection succeeds and nobody answers."""
    with silent_listener() as endpoint:
        yield endpoint


# --- Style -----------------------------------------------------------------------------------------------------------


# Variables of the environment, --color, the terminal's width; whether colours are used, the width and the height.
STYLES = {
    ("", "auto", 132): (True, 132, 25),
    ("", "auto", 0): (True, 80, 25),
    ("COLUMNS=many", "auto", 60): (True, 60, 25),
    ("COLUMNS=55", "auto", 60): (True, 55, 25),
    ("TERM=dumb", "auto", 60): (False, 60, 0),  # where no line can be written over
    ("TERM=dumb FORCE_COLOR=1", "auto", 80): (True, 80, 0),
    ("TERM=dumb NO_COLOR=1", "always", 80): (True, 80, 0),
    ("NO_COLOR=1", "auto", 80): (False, 80, 25),
    ("NO_COLOR=", "auto", 80): (True, 80, 25),
    ("NO_COLOR=1 FORCE_COLOR=1", "auto", 80): (False, 80, 25),
    ("FORCE_COLOR=1", "never", 80): (False, 80, 25),
}


def test_colour_and_size() -> None:
    def style(variables: str, choice: str, width: int) -> tuple[bool, int | None, int]:
        ours, theirs = open_terminal(width)
        with pytest.MonkeyPatch.context() as patched, open(theirs, "w") as stream:  # noqa: PTH123
            for name in SWAYING:
                patched.delenv(name, raising=False)
            for variable in ["TERM=xterm", *variables.split()]:
                name, _, value = variable.partition("=")
                patched.setenv(name, value)
            style = dicom_echo._style(choice, False, stream)
        os.close(ours)
        return style.colour, style.width, style.height

    assert {case: style(*case) for case in STYLES} == STYLES


def test_what_is_no_terminal_is_as_wide_as_it_likes() -> None:
    """As in a notebook, whose streams have the descriptor of the terminal that the notebook was started from."""
    ours, theirs = open_terminal(40)
    with open(theirs, "w") as stream:  # noqa: PTH123
        notebook = types.SimpleNamespace(isatty=lambda: False, fileno=stream.fileno, encoding="utf-8")
        style = dicom_echo._style("auto", False, notebook)
    os.close(ours)
    assert (style.width, style.height) == (sys.maxsize, 0)


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
        fleet, narrow = start(*two), start(*two, width=45)
        in_ascii = start(*one, PYTHONIOENCODING="ascii")
        dumb = start(*two, TERM="dumb")
        untold = start(*one, "-q"), start(*one, "-d"), dumb
        # Their terminal is ours, too.
        readers = [start(command=[*piped, reader, *json_lines]) for reader in ("head -n 9", "cat")]

    for run in told:
        assert f"\r\x1b[Kwaiting for {silent.address} ..." in run.result().out
        assert "waiting" not in "".join(screen(run.result().out))
    assert "waiting" not in (tmp_path / "results").read_text(encoding="utf-8")
    assert f"1 of 2 done, waiting for {silent.address} ..." in fleet.result().out
    assert [line.split()[0] for line in screen(fleet.result().out)[:2]] == [f"ANY-SCP@{REFUSED}", silent.address]
    assert max(map(len, re.findall(r"\r\x1b\[K(\d of 2 done[^\r\n]*)", narrow.result().out))) < 45
    assert max(map(len, screen(narrow.result().out))) <= 45
    assert f"waiting for {silent.address} ..." in in_ascii.result().out
    assert "\\u" not in in_ascii.result().out
    for run in untold:
        assert "waiting" not in run.result().out
    assert "\x1b" not in dumb.result().out
    for run in readers:
        assert len([json.loads(line) for line in run.result().out.splitlines()]) == 3
    with RawPeer() as quick:
        assert run_on_terminal(quick.address) == Outcome(0, "\r\x1b[K✅ \x1b[32mSuccess\x1b[0m\n\r\x1b[K", "")


def test_a_terminal_that_is_gone_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As when its window is closed while the results go into a file, and SIGHUP is ignored (nohup)."""
    ours, theirs = open_terminal(80)

    def close(_conversation: Conversation) -> bytes:
        os.close(ours)
        return b""

    stream = open(theirs, "w")  # noqa: PTH123, SIM115
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    with RawPeer((A_ASSOCIATE_RQ, close)) as peer:
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
