"""Running the command: in this process, or in one of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import pytest

import dicom_echo

MODULE = Path(dicom_echo.__file__).resolve()

SWAYING = {
    "NO_COLOR", "FORCE_COLOR", "COLUMNS", "PYTHONIOENCODING", "PYTHONUTF8", "PYTHONWARNINGS", "PYTHONOPTIMIZE",
    "PYTHONUNBUFFERED",
}  # fmt: skip
PATIENCE = 30.0


class Outcome(NamedTuple):
    """What a run of the command leaves behind."""

    code: int
    out: str
    err: str


def run_main(capsys: pytest.CaptureFixture[str], *arguments: object) -> Outcome:
    """Run the command in this process."""
    capsys.readouterr()
    try:
        code = int(dicom_echo.main([str(argument) for argument in arguments]))
    except SystemExit as left:
        code = int(left.code or 0)
    captured = capsys.readouterr()
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
    changes: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[subprocess.Popen[str]]:
    """A process that can be talked to while it runs; where it has not ended by the end of the block, it is killed.

    Its coverage is not measured: an exception that a signal raises within coverage leaves a lock there locked for ever.
    """
    env = {name: value for name, value in environment(**changes).items() if not name.startswith("COVERAGE_")}
    with subprocess.Popen(
        command, env=env, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, encoding="utf-8"
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def run_process(command: Sequence[str], env: dict[str, str] | None = None, encoding: str = "utf-8") -> Outcome:
    """Run a command line to its end, with nothing to read from standard input."""
    done = subprocess.run(
        command, env=env or environment(), stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE, check=False
    )
    # What Python itself writes for a line end is not looked at here.
    out, err = (text.decode(encoding).replace("\r\n", "\n") for text in (done.stdout, done.stderr))
    return Outcome(done.returncode, out, err)
