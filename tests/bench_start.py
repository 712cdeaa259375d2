"""The start of the command, measured: `python tests/bench_start.py [ROUNDS]`. Prints tables for docs/archive.md.

Whole commands, by turns, each sending an echo to one peer in this process; medians, and what they are to be compared
with. It installs packages from the network: ours as packaging/*.lock pin them, and dicom-echo 0.3.0 (Rust).
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench import table
from rawpeer import RawPeer, closed_port
from smoke import ARCHIVE, GOOD, PYTHONS, ROOT

ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 15
PIP = ("-m", "pip", "install", "-q", "--disable-pip-version-check")
Command = Sequence["str | Path"]
# What, against what, and the ratio that is allowed.
LIMITS = [
    ("venv", "Rust", 0.70), ("venv", "pynetdicom", 0.50), ("first", "later", 1.05), ("first", "venv", 1.15),
    ("--help", "bare", 4.5), ("--version", "bare", 4.5), ("refused", "bare", 4.5),
]  # fmt: skip


def install(venv: Path, python: str, *packages: str | Path) -> Path:
    """The programs of a new virtual environment."""
    subprocess.run([PYTHONS[python], "-m", "venv", venv], check=True)
    subprocess.run([venv / "bin/python", *PIP, *packages], check=True)
    return venv / "bin"


def install_ours(venv: Path, python: str) -> Path:
    """As pip installs us, with all bytecode there; pynetdicom's own command comes along."""
    lock = "pyz39.lock" if python == "3.9" else "pyz.lock"
    programs = install(venv, python, "--no-deps", "--require-hashes", "-r", ROOT / "packaging" / lock)
    subprocess.run([programs / "python", *PIP, "--no-deps", ROOT], check=True)
    return programs


def run(command: Command, folder: Path) -> tuple[float, float]:
    """The milliseconds of a command, on the clock and on the processor, for a user who has set nothing."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "SHIV_"))}
    begun = time.perf_counter()
    process = subprocess.Popen(
        command, env={**kept, "HOME": str(folder)}, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    took = time.perf_counter() - begun
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode in (0, 3), command
    return took * 1000, (usage.ru_utime + usage.ru_stime) * 1000


def measure(folder: Path, python: str, rust: Path, peer: str, closed: str) -> None:
    """Both tables for one Python."""
    ours, archive = install_ours(folder / f"venv-{python}", python), folder / ARCHIVE.name
    title, _, host_port = peer.partition("@")
    host, _, port = host_port.partition(":")
    commands: dict[str, Command] = {
        "bare": [PYTHONS[python], "-c", "pass"],
        "import": [ours / "python", "-c", "import dicom_echo"],
        "Rust": [rust, peer],
        "pynetdicom": [ours / "python", "-m", "pynetdicom", "echoscu", host, port, "-aec", title],
        "venv": [ours / "dicom-echo", peer],
        "first": [PYTHONS[python], archive, peer],
        "later": [PYTHONS[python], archive, peer],
        "--help": [ours / "dicom-echo", "--help"],
        "--version": [ours / "dicom-echo", "--version"],
        "refused": [ours / "dicom-echo", closed],
    }
    if dcmtk := shutil.which("echoscu"):
        commands["DCMTK"] = [dcmtk, "-aec", title, host, port]
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for _ in range(ROUNDS + 1):
        for name, command in commands.items():
            if name == "first":  # a copy that no Python has seen
                archive.unlink(missing_ok=True)
                shutil.copy(ARCHIVE, archive)
            times[name].append(run(command, folder))
    # The first round does not count.
    ms = {name: tuple(statistics.median(kind) for kind in zip(*taken[1:])) for name, taken in times.items()}
    table(
        f"Python {python}, medians of {ROUNDS}, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors",
        ("command", "ms", "of processor"),
        [(name, *(f"{each:.0f}" for each in ms[name])) for name in commands],
    )
    ratios = [
        (one, other, *(f"{ours / theirs:.2f}" for ours, theirs in zip(ms[one], ms[other])), f"{limit:.2f}")
        for one, other, limit in LIMITS
    ]
    table("ratios", ("what", "against", "ratio", "of processor", "at most"), ratios)
    above = (of_import - bare for of_import, bare in zip(ms["import"], ms["bare"]))
    print("\nimport dicom_echo: {:.0f} ms above a bare interpreter, {:.0f} of processor (at most 45)".format(*above))


def main() -> None:
    """Install all, then measure, on the oldest Python and the newest."""
    with tempfile.TemporaryDirectory() as name, RawPeer() as peer, closed_port() as closed:
        folder = Path(name)
        rust = install(folder / "venv-rust", GOOD[-1], "dicom-echo==0.3.0") / "dicom-echo"
        for python in (GOOD[0], GOOD[-1]):
            measure(folder, python, rust, peer.address, closed.host_port)
        print(f"\narchive: {ARCHIVE.stat().st_size:,} bytes (at most 5,000,000)")


if __name__ == "__main__":
    main()
