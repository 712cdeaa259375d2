"""Running the command: in this process, in one of its own, on a terminal."""

from __future__ import annotations

import contextlib
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import dicom_echo

MODULE = Path(dicom_echo.__file__).resolve()

SWAYING = {
    "NO_COLOR", "FORCE_COLOR", "COLUMNS", "TERM", "PYTHONIOENCODING", "PYTHONUTF8", "PYTHONWARNINGS",
    "PYTHONOPTIMIZE", "PYTHONUNBUFFERED", "DICOM_ECHO_PASSWORD", "DICOM_ECHO_KEY_PASSWORD",
}  # fmt: skip
PATIENCE = 30.0
REFUSED = "127.0.0.1:1"  # nobody listens there
HELP = " (see dicom-echo --help)\n"

posix = pytest.mark.skipif(os.name != "posix", reason="Windows has no such signals, terminals and devices")


INTERNAL_ERROR = re.compile("^(dicom-echo:|DICOM ECHO UNKNOWN -) internal error: ", re.MULTILINE)


class Outcome(NamedTuple):
    """What a run of the command leaves behind."""

    code: int
    out: str
    err: str


def run_main(capsys: pytest.CaptureFixture[str], *arguments: object, bug: bool = False) -> Outcome:
    """Run the command in this process. Its last resort hides no bug from the tests, unless one is expected."""
    capsys.readouterr()
    try:
        code = int(dicom_echo.main([str(argument) for argument in arguments]))
    except SystemExit as left:
        code = int(left.code or 0)
    captured = capsys.readouterr()
    assert bool(INTERNAL_ERROR.search(captured.out + captured.err)) == bug, captured
    return Outcome(code, captured.out, captured.err)


def environment(**changes: str) -> dict[str, str]:
    """An environment in which a new process finds this very module, without what could sway its output."""
    kept = {name: value for name, value in os.environ.items() if name not in SWAYING}
    path = os.pathsep.join(filter(None, [str(MODULE.parent), kept.get("PYTHONPATH")]))
    return {**kept, "PYTHONPATH": path, "PYTHONIOENCODING": "utf-8", **changes}


def command_line(*arguments: object, flags: Sequence[str] = ()) -> list[str]:
    """`python -m dicom_echo` with these arguments; `flags` are for Python."""
    return [sys.executable, *flags, "-m", "dicom_echo", *map(str, arguments)]


@contextlib.contextmanager
def start_process(
    command: Sequence[str],
    stdout: int = subprocess.PIPE,
    stderr: int = subprocess.PIPE,
    stdin: int = subprocess.DEVNULL,
    env: dict[str, str] | None = None,
    **options: Any,
) -> Iterator[subprocess.Popen[str]]:
    """A process that can be talked to while it runs; where it has not ended by the end of the block, it is killed.

    Its coverage is not measured: what a signal ends writes no report.
    """
    env = {name: value for name, value in (env or environment()).items() if not name.startswith("COVERAGE_")}
    with subprocess.Popen(
        command, env=env, stdin=stdin, stdout=stdout, stderr=stderr, encoding="utf-8", **options
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def run_process(command: Sequence[str], env: dict[str, str] | None = None, stdin: bytes = b"") -> Outcome:
    """Run a command line to its end."""
    done = subprocess.run(
        command, env=env or environment(), input=stdin, capture_output=True, timeout=PATIENCE, check=False
    )
    # What Python itself writes for a line end is not looked at here.
    out, err = (text.decode().replace("\r\n", "\n") for text in (done.stdout, done.stderr))
    assert not INTERNAL_ERROR.search(out + err), (out, err)
    return Outcome(done.returncode, out, err)


def in_shell(script: str, *arguments: object) -> Outcome:
    """Run a script of bash in which "$@" is the command."""
    return run_process(["bash", "-c", script, "bash", *command_line(*arguments)])


CONTROLLED = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""


def open_terminal(width: int) -> tuple[int, int]:
    """The two sides of a terminal: ours, and that of the command."""
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 25, width, 0, 0))
    return ours, theirs


def read_terminal(ours: int, until: str = "(?!)") -> str:
    """What is shown until an expression matches it ("(?!)" matches nothing), or until the other side is closed."""
    shown, end = b"", time.monotonic() + PATIENCE
    with contextlib.suppress(OSError):  # Linux's way to say that the other side is closed
        while not re.search(until.encode(), shown, re.DOTALL):
            assert select.select([ours], [], [], max(0.0, end - time.monotonic()))[0], shown
            if not (data := os.read(ours, 1 << 16)):
                break
            shown += data
    return shown.decode(errors="replace").replace("\r\n", "\n")


def run_on_terminal(
    *arguments: object,
    width: int = 80,
    interrupt_after: str = "",
    command: Sequence[str] = (),
    stdout: int | None = None,
    **variables: str,
) -> Outcome:
    """Run the command on a terminal of its own; Ctrl-C is typed when the terminal shows a text.

    Its three streams are the terminal, unless standard output is said to be something else.
    """
    ours, theirs = open_terminal(width)
    controlled = [sys.executable, "-IS", "-c", CONTROLLED, *(command or command_line(*arguments))]
    out = theirs if stdout is None else stdout
    env = environment(**{"TERM": "xterm", **variables})
    with start_process(controlled, out, theirs, theirs, env, start_new_session=True) as process:
        os.close(theirs)
        shown = ""
        if interrupt_after:
            shown = read_terminal(ours, re.escape(interrupt_after))
            time.sleep(0.1)
            os.write(ours, b"\x03")
        shown += read_terminal(ours)
        os.close(ours)
        process.wait(PATIENCE)
    return Outcome(process.returncode, shown, "")
