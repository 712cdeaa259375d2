"""docs/comparison.md: what it says of other tools' exit codes is tried on the versions that it names."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rawpeer import Close, RawPeer, Script, abort, associate_rj, echo_rsp, script

COMPARISON = (Path(__file__).parent.parent / "docs" / "comparison.md").read_text(encoding="utf-8")

ANSWERS: dict[str, Script] = {
    "success": script(),
    "a failed status": script(echo=echo_rsp(1, 0x0122)),
    "an abort": script(echo=abort(0, 0)),
    "a lost connection": script(echo=Close()),
    "no answer": script(echo=None),
    "a rejection": script(accept=associate_rj(1, 1, 7)),
}
DCMTK = {"success": 0, "a failed status": 0, "an abort": 0, "a lost connection": 0, "no answer": 70, "a rejection": 1}
PYNETDICOM = {**DCMTK, "no answer": 0}


def compared(tool: str) -> str:
    """The version of a tool that the table names, in its text and its head."""
    versions = set(re.findall(rf"{tool} ([\d.]+\d)", COMPARISON))
    assert len(versions) == 1
    return str(versions.pop())


def run_echo(command: list[str], peer: RawPeer) -> tuple[int, str]:
    done = subprocess.run(
        [*command, peer.host, str(peer.port)], capture_output=True, text=True, timeout=30, check=False
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("answer", ANSWERS)
def test_exit_codes_of_dcmtk(echoscu: str, answer: str) -> None:
    version = subprocess.run([echoscu, "--version"], capture_output=True, text=True, check=False).stdout
    if f" v{compared('DCMTK')} " not in version:
        pytest.skip(f"this is another version: {version.splitlines()[0]}")
    with RawPeer(ANSWERS[answer]) as peer:
        code, said = run_echo([echoscu, "-td", "1", "-ta", "2"], peer)
    assert code == DCMTK[answer], said


@pytest.mark.parametrize("answer", ANSWERS)
def test_exit_codes_of_pynetdicom(answer: str) -> None:
    installed = importlib.metadata.version("pynetdicom")
    if compared("pynetdicom") != installed:
        pytest.skip(f"this is another version: {installed}")
    with RawPeer(ANSWERS[answer]) as peer:
        code, said = run_echo([sys.executable, "-m", "pynetdicom", "echoscu", "-td", "1"], peer)
    assert code == PYNETDICOM[answer], said
