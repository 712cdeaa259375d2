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
from collections.abc import Iterable, Sequence
from pathlib import Path

from rawpeer import RawPeer, closed_port
from smoke import ARCHIVE, GOOD, PYTHONS, ROOT

ROUNDS = 15
PIP = ("-m", "pip", "install", "-q", "--disable-pip-version-check")
Command = Sequence["str | Path"]
Medians = dict[str, float]


class Bench:
    """Where all of it is installed and run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "SHIV_"))}
        self.environment = kept | {"HOME": str(folder)}
        self.archive = Path(shutil.copy(ARCHIVE, folder))

    def prepare(self, *command: str | Path) -> None:
        """Run a step that is not measured."""
        subprocess.run(command, check=True, cwd=self.folder, env=self.environment | {"HOME": str(Path.home())})

    def install(self, python: str, *packages: str | Path) -> Path:
        """The programs of a virtual environment."""
        venv = self.folder / f"venv-{len(list(self.folder.iterdir()))}"
        self.prepare(PYTHONS[python], "-m", "venv", venv)
        self.prepare(venv / "bin/python", *PIP, *packages)
        return venv / "bin"

    def install_ours(self, python: str) -> Path:
        """As pip installs us, with all bytecode there; pynetdicom's own command comes along."""
        lock = "pyz39.lock" if python == "3.9" else "pyz.lock"
        programs = self.install(python, "--no-deps", "--require-hashes", "-r", ROOT / "packaging" / lock)
        self.prepare(programs / "python", *PIP, "--no-deps", ROOT)
        return programs

    def medians(self, commands: dict[str, Command], rounds: int) -> tuple[Medians, Medians]:
        """Milliseconds of each command, on the clock and on the processor, by turns. The first round does not count."""
        clock: dict[str, list[float]] = {name: [] for name in commands}
        processor: dict[str, list[float]] = {name: [] for name in commands}
        for number in range(rounds + 1):
            for name, command in commands.items():
                if name == "first":
                    self.new_host()
                begun = time.perf_counter()
                process = subprocess.Popen(
                    command, env=self.environment, cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
                )
                _, status, usage = os.wait4(process.pid, 0)
                took = time.perf_counter() - begun
                process.returncode = os.waitstatus_to_exitcode(status)
                assert process.returncode in (0, 3), name
                if number:
                    clock[name].append(took * 1000)
                    processor[name].append((usage.ru_utime + usage.ru_stime) * 1000)
        on_clock, of_processor = (
            {name: statistics.median(each) for name, each in kind.items()} for kind in (clock, processor)
        )
        return on_clock, of_processor

    def new_host(self) -> None:
        """A copy of the archive that no Python has seen."""
        data = self.archive.read_bytes()
        self.archive.unlink()
        self.archive.write_bytes(data)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """In Markdown."""
    print()
    for row in (head, ["---"] * len(head), *rows):
        print("|", " | ".join(row), "|")
    sys.stdout.flush()


def measure(bench: Bench, python: str, rust: Path, peer: str, closed: str, rounds: int) -> None:
    """Both tables for one Python."""
    ours = bench.install_ours(python)
    title, _, host_port = peer.partition("@")
    host, _, port = host_port.partition(":")
    commands: dict[str, Command] = {
        "bare": [PYTHONS[python], "-c", "pass"],
        "import": [ours / "python", "-c", "import dicom_echo"],
        "Rust": [rust, peer],
        "pynetdicom": [ours / "python", "-m", "pynetdicom", "echoscu", host, port, "-aec", title],
        "venv": [ours / "dicom-echo", peer],
        "first": [PYTHONS[python], bench.archive, peer],
        "later": [PYTHONS[python], bench.archive, peer],
        "--help": [ours / "dicom-echo", "--help"],
        "--version": [ours / "dicom-echo", "--version"],
        "refused": [ours / "dicom-echo", closed],
    }
    if dcmtk := shutil.which("echoscu"):
        commands["DCMTK"] = [dcmtk, "-aec", title, host, port]
    clock, processor = bench.medians(commands, rounds)
    print(f"\nPython {python}, medians of {rounds}, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
    table(
        ["command", "ms", "of processor"], [[name, f"{clock[name]:.0f}", f"{processor[name]:.0f}"] for name in commands]
    )
    limits = [
        *(("venv", "Rust", 0.70), ("venv", "pynetdicom", 0.50), ("first", "later", 1.05), ("first", "venv", 1.15)),
        *(("--help", "bare", 4.5), ("--version", "bare", 4.5), ("refused", "bare", 4.5)),
    ]
    ratios = [
        [one, other, *(f"{ms[one] / ms[other]:.2f}" for ms in (clock, processor)), f"{limit:.2f}"]
        for one, other, limit in limits
    ]
    table(["what", "against", "ratio", "of processor", "at most"], ratios)
    above = [ms["import"] - ms["bare"] for ms in (clock, processor)]
    print("\nimport dicom_echo: {:.0f} ms above a bare interpreter, {:.0f} of processor (at most 45)".format(*above))


def main() -> None:
    """Install all, then measure, on the oldest Python and the newest."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    with tempfile.TemporaryDirectory() as folder, RawPeer() as peer, closed_port() as closed:
        bench = Bench(Path(folder))
        rust = bench.install(GOOD[-1], "dicom-echo==0.3.0") / "dicom-echo"
        for python in (GOOD[0], GOOD[-1]):
            measure(bench, python, rust, peer.address, closed.host_port, rounds)
        print(f"\narchive: {bench.archive.stat().st_size:,} bytes (at most 5,000,000)")


if __name__ == "__main__":
    main()
