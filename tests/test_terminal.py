"""The command on a terminal: width, colour, progress, a table that is kept up to date, Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import command_line, left_on_screen, posix, run_on_terminal
from rawpeer import Endpoint, RawPeer, associate_rj, closed_port, script, silent_listener

pytestmark = posix

REJECTING = script(accept=associate_rj(1, 1, 7))


@pytest.fixture
def silent() -> Iterator[Endpoint]:
    """A port where every connection succeeds and nobody answers."""
    with silent_listener() as endpoint:
        yield endpoint


def plain(text: str) -> str:
    """A text without its colours, and without the clearing of a line."""
    return re.sub(r"\x1b\[\d*[mK]|\r", "", text)


def columns(text: str) -> int:
    """The columns that a text takes on a terminal."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    unseen = sum(bool(unicodedata.combining(character)) for character in text)
    return len(text) + wide - unseen


# --- Width -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("term", ["xterm", "dumb"])
@pytest.mark.parametrize("width", [60, 80, 132])
@pytest.mark.parametrize("options", [[], ["-v"], ["-c", "2", "-i", "0"]], ids=str)
def test_lines_are_wrapped_between_words(width: int, options: list[str], term: str) -> None:
    with RawPeer(REJECTING) as peer:
        code, shown, _ = run_on_terminal(
            "-aec", "A LONG TITLE", *options, peer.endpoint.host_port, width=width, changes={"TERM": term}
        )
    lines = plain(shown).splitlines()
    assert code == 1
    assert max(map(columns, lines)) <= width
    told = " ".join(plain(shown).split())
    for phrase in ("called AE title not recognized", "rejected-permanent, service-user, reason 7", '"A LONG TITLE"'):
        assert phrase in told


@pytest.mark.parametrize("width", [60, 80])
def test_the_bars_of_the_timeline_fit(width: int) -> None:
    with RawPeer() as peer:
        lines = plain(run_on_terminal("-v", peer.address, width=width).out).splitlines()
    bars = [line for line in lines if line.endswith("█")]
    assert len(bars) == 5
    assert max(map(columns, lines)) <= width


@pytest.mark.parametrize("options", [[], ["-c", "2", "-i", "0"]], ids=["once", "repeated"])
@pytest.mark.parametrize("width", [60, 80, 132])
def test_the_table_is_aligned_and_fits(tmp_path: Path, width: int, options: list[str]) -> None:
    labels = ["archive", "放射線科の古いサーバー", "Mo\u0308bius", "the worklist server of the second floor", ""]
    with RawPeer() as good, RawPeer(REJECTING) as bad, closed_port() as closed:
        hosts = [good.address, bad.address, closed.address, good.address, bad.address]
        lines = [f"{host} # {label}\n" for host, label in zip(hosts, labels)]
        (tmp_path / "fleet").write_text("".join(lines).replace(" # \n", "\n"), encoding="utf-8")
        shown = run_on_terminal("-T", tmp_path / "fleet", "--color", "never", *options, width=width).out
    lines = plain(shown).splitlines()
    rows = lines[: lines.index("")]
    assert len(rows) == 5, shown
    assert len({columns(re.split("[✅❌]", row)[0]) for row in rows}) == 1, shown
    assert max(map(columns, lines)) <= width, shown


def test_columns_in_the_environment_count() -> None:
    with RawPeer(REJECTING) as peer:
        shown = run_on_terminal(peer.address, width=132, changes={"COLUMNS": "50"}).out
    assert max(map(columns, plain(shown).splitlines())) <= 50


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
    with closed_port() as closed:
        code, shown, _ = run_on_terminal(*options, closed.address, changes=variables)
    assert code == (2 if "nagios" in options else 3)
    assert ("\x1b[31mUnreachable: connection refused\x1b[0m" in shown) == coloured
    assert ("\x1b[" in shown.replace("\r\x1b[K", "")) == coloured


# --- Progress --------------------------------------------------------------------------------------------------------


def test_after_a_second_the_terminal_is_told_what_is_waited_for(silent: Endpoint) -> None:
    with RawPeer() as quick:
        shown = run_on_terminal(silent.address, "-t", 1.8).out
        assert f"\r\x1b[Kwaiting for {silent.address} …" in shown
        assert "waiting" not in "".join(left_on_screen(shown))
        assert "waiting" not in run_on_terminal(quick.address).out
        shown = run_on_terminal(quick.address, silent.address, "-t", 1.8).out
        assert f"1 of 2 done, waiting for {silent.address} …" in shown
        assert [line.split()[0] for line in left_on_screen(shown)[:2]] == [quick.address, silent.address]


def test_progress_stays_within_the_terminal(silent: Endpoint) -> None:
    shown = run_on_terminal(silent.address, f"X@{silent.host_port}", "-t", 1.5, width=40).out
    progress = re.findall(r"\r\x1b\[K(\d of 2 done[^\r\n]*)", shown)
    assert progress
    assert max(map(columns, progress)) < 40


def test_progress_in_ascii(silent: Endpoint) -> None:
    shown = run_on_terminal(silent.address, "-t", 1.8, changes={"PYTHONIOENCODING": "ascii"}).out
    assert f"waiting for {silent.address} ..." in shown
    assert "\\u" not in shown


@pytest.mark.parametrize("options", [["-q"], ["-d"]], ids=str)
def test_no_progress_where_it_is_not_wanted(silent: Endpoint, options: list[str]) -> None:
    assert "waiting" not in run_on_terminal(silent.address, "-t", 1.3, *options).out


def test_a_dumb_terminal_has_no_progress_and_no_escapes(silent: Endpoint) -> None:
    shown = run_on_terminal(silent.address, "127.0.0.1:1", "-t", 1.3, changes={"TERM": "dumb"}).out
    assert "\x1b" not in shown
    assert "waiting" not in shown


@pytest.mark.parametrize("pipe", ["head -n 9", "cat"])
def test_progress_does_not_spoil_what_the_reader_of_a_pipe_prints(silent: Endpoint, pipe: str) -> None:
    """The reader's terminal is ours, too: `| head`, `| jq`."""
    command = ["bash", "-c", f'"$@" | {pipe}', "bash"]
    command += command_line(silent.address, "127.0.0.1:1", "-t", 1.5, "--format", "json")
    shown = run_on_terminal(command=command).out
    assert len([json.loads(line) for line in shown.splitlines()]) == 3


def test_progress_is_shown_where_the_results_go_into_a_file(tmp_path: Path, silent: Endpoint) -> None:
    with (tmp_path / "results").open("w") as file:
        shown = run_on_terminal(silent.address, "-t", 1.5, stdout=file.fileno()).out
    assert f"waiting for {silent.address} …" in shown
    assert "waiting" not in (tmp_path / "results").read_text(encoding="utf-8")
    shown = run_on_terminal(silent.address, "-t", 1.5, "--output", tmp_path / "results").out
    assert f"waiting for {silent.address} …" in shown


# --- A table that is kept up to date ---------------------------------------------------------------------------------


def screen(shown: str) -> list[str]:
    """What a terminal of 25 lines shows in the end: cursor up and down, and clearing to the end of the line."""
    lines, row, column = [""], 0, 0
    for token in re.findall(r"\x1b\[(?:\d+)?[ABKm]|\x1b\[\d+;?\d*m|.|\n", shown, re.DOTALL):
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
        options = ["-c", "0", "-i", "0.5", "-t", "60", "--color", "never"]
        code, shown, _ = run_on_terminal(*addresses, *options, interrupt_after="3/3")
    lines = screen(shown)
    assert code == -signal.SIGINT
    assert [line.split()[0] for line in lines[:3]] == addresses
    assert re.search(r" (\d+)/\1 0% loss .* ✅ Success$", lines[0])
    assert shown.count("\n") < 12, "a row is written over, not repeated"
    assert re.match(r"\d+ echoes: \d+ ok; interrupted with 1 under way$", lines[-2])


# --- Ctrl-C ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [[], ["-c", "0"]], ids=str)
@pytest.mark.parametrize("hosts", [1, 2])
def test_ctrl_c_is_not_on_one_line_with_the_statistics(silent: Endpoint, options: list[str], hosts: int) -> None:
    addresses = [silent.address, "127.0.0.1:1"][:hosts]
    code, shown, _ = run_on_terminal(
        *addresses, *options, "-t", 60, interrupt_after="…" if not options else addresses[-1]
    )
    assert code == -signal.SIGINT
    assert "^C" in shown
    assert not [line for line in screen(shown) if re.search(r"\^C.*\w", line)]
    assert re.search("interrupted|statistics", shown)
    assert "Traceback" not in shown


def test_a_terminal_that_is_gone_is_no_error(silent: Endpoint) -> None:
    """As when its window is closed while the results go into a file, and SIGHUP is ignored (nohup)."""
    import pty

    from command import PATIENCE, start_process

    ours, theirs = pty.openpty()
    with start_process(command_line(silent.address, "-t", 2), subprocess.DEVNULL, theirs, {"TERM": "xterm"}) as process:
        os.close(theirs)
        os.close(ours)
        assert process.wait(PATIENCE) == 3
