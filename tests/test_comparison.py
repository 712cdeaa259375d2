"""docs/comparison.md: what it says of other tools' exit codes is tried on the versions that it names."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rawpeer import RawPeer, Script, abort, associate_rj, close, echo_rsp, script

COMPARISON = (Path(__file__).parent.parent / "docs" / "comparison.md").read_text(encoding="utf-8")

# The answers to an echo, and the exit codes of DCMTK's echoscu and pynetdicom's.
ANSWERS: dict[str, tuple[Script, int, int]] = {
    "success": (script(), 0, 0),
    "a failed status": (script(echo=echo_rsp(1, 0x0122)), 0, 0),
    "an abort": (script(echo=abort(0, 0)), 0, 0),
    "a lost connection": (script(echo=close), 0, 0),
    "no answer": (script(echo=None), 70, 0),
    "a rejection": (script(accept=associate_rj(1, 1, 7)), 1, 1),
}


def exit_codes(tool: str, version: str, *command: str) -> dict[str, int]:
    """The exit codes of a tool, if it is of the version that the table names, in its text and its head."""
    (named,) = set(re.findall(rf"{tool} ([\d.]+\d)", COMPARISON))
    if named not in version.split():
        pytest.skip(f"this is another version: {version}")

    with RawPeer(*(played for played, _, _ in ANSWERS.values())) as peer:
        words = [*command, peer.host, str(peer.port)]
        runs = [subprocess.run(words, capture_output=True, timeout=30, check=False) for _ in ANSWERS]
    return {answer: done.returncode for answer, done in zip(ANSWERS, runs)}


def test_exit_codes_of_dcmtk(echoscu: str) -> None:
    told = subprocess.run([echoscu, "--version"], capture_output=True, text=True, check=False).stdout
    version = told.splitlines()[0].replace(" v", " ")
    codes = exit_codes("DCMTK", version, echoscu, "-td", "1", "-ta", "1")
    assert codes == {answer: code for answer, (_, code, _) in ANSWERS.items()}


def test_exit_codes_of_pynetdicom() -> None:
    command = [sys.executable, "-m", "pynetdicom", "echoscu", "-td", "1"]
    codes = exit_codes("pynetdicom", importlib.metadata.version("pynetdicom"), *command)
    assert codes == {answer: code for answer, (_, _, code) in ANSWERS.items()}
