"""The start of the command, measured: `python tests/bench_start.py [ROUNDS]`. Prints tables for README.

On every Python found, by turns: the archive's first start (with no cache) and its second, a plain shiv archive of the
same packages, and the console script in a virtual environment. All of them send an echo to a peer in this process, so
that a start is from the command line to the answer and the exit. Medians.

- `DICOM_ECHO_RUST` names the command of dicom-echo 0.3.0 (Rust), which is timed too, as is DCMTK's `echoscu`.
- It installs packages from the network, in versions of packaging/pyz.lock, and shiv itself.
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

from rawpeer import RawPeer
from smoke import ARCHIVE, GOOD, ROOT, Python

ROUNDS = 11
PLAIN_ROUNDS = 4  # first starts of plain shiv: they take seconds
LOCKED = ("--no-deps", "--require-hashes", "-r", str(ROOT / "packaging/pyz.lock"))
PIP = ("-m", "pip", "install", "-q", "--disable-pip-version-check")
WAYS = ("archive, first", "archive, second", "plain shiv, first", "plain shiv, second", "virtual environment")


class Bench:
    """Where all of it is built and run."""

    def __init__(self, folder: Path, peer: str) -> None:
        self.folder = folder
        self.peer = peer
        self.home = folder / "home"
        self.home.mkdir()
        self.archive = Path(shutil.copy(ARCHIVE, folder))
        self.plain = folder / "plain.pyz"

    def environment(self, **settings: str) -> dict[str, str]:
        """Without what this process has set for Python."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "SHIV_", "XDG_"))}
        return {**kept, "HOME": str(self.home), **settings}

    def prepare(self, *command: str | Path) -> None:
        """Run a step that is not measured, with the cache of pip that the user has."""
        subprocess.run(command, check=True, cwd=self.folder, env=self.environment(HOME=str(Path.home())))

    def make_plain(self) -> None:
        """What `shiv --reproducible` makes of the same packages."""
        stage, tools = self.folder / "stage", self.folder / "tools"
        self.prepare(sys.executable, "-m", "venv", tools)
        self.prepare(tools / "bin/python", *PIP, "shiv==1.0.8")
        self.prepare(tools / "bin/python", *PIP, "--no-compile", "--target", stage, *LOCKED)
        self.prepare(tools / "bin/python", *PIP, "--no-compile", "--no-deps", "--target", stage, ROOT)
        self.prepare(
            *(tools / "bin/shiv", "--reproducible", "-c", "dicom-echo", "-o", self.plain, "--site-packages", stage)
        )

    def make_environment(self, python: Python) -> Path:
        """A virtual environment with the command, all of its bytecode there."""
        venv = self.folder / f"venv-{python.name}"
        self.prepare(python.path, "-m", "venv", venv)
        self.prepare(venv / "bin/python", *PIP, *LOCKED)
        self.prepare(venv / "bin/python", *PIP, "--no-deps", ROOT)
        return venv

    def forget(self, *names: str) -> None:
        """Make the next start the first."""
        for name in names:
            shutil.rmtree(self.home / name, ignore_errors=True)

    def time(self, command: Sequence[str | Path], **settings: str) -> float:
        """Milliseconds of an echo."""
        environment = self.environment(**settings)
        begun = time.perf_counter()
        done = subprocess.run(command, env=environment, cwd=self.home, capture_output=True, check=False)
        took = time.perf_counter() - begun
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        return took * 1000

    def starts(self, python: Python, venv: Path, rounds: int, **settings: str) -> dict[str, float]:
        """The median of each way, all ways by turns. The first round fills the system's caches and does not count."""
        taken: dict[str, list[float]] = {way: [] for way in WAYS}
        for number in range(rounds + 1):
            commands: dict[str, list[str | Path]] = {
                "archive, first": [python.path, self.archive],
                "virtual environment": [venv / "bin/dicom-echo"],
                "archive, second": [python.path, self.archive],
                "plain shiv, first": [python.path, self.plain],
                "plain shiv, second": [python.path, self.plain],
            }
            self.forget(".cache")
            if number > PLAIN_ROUNDS:
                del commands["plain shiv, first"]
            else:
                self.forget(".shiv")
            for way, command in commands.items():
                took = self.time([*command, self.peer], **settings)
                if number:
                    taken[way].append(took)
        return {way: statistics.median(times) for way, times in taken.items()}


def others(bench: Bench, rounds: int) -> dict[str, float]:
    """Commands that are not Python's."""
    title, _, host_port = bench.peer.partition("@")
    host, _, port = host_port.partition(":")
    known = {
        "dicom-echo 0.3.0 (Rust)": [os.environ.get("DICOM_ECHO_RUST", ""), bench.peer],
        "DCMTK `echoscu`": [shutil.which("echoscu") or "", "-aec", title, host, port],
    }
    found = {name: command for name, command in known.items() if command[0]}
    return {name: statistics.median(bench.time(command) for _ in range(rounds)) for name, command in found.items()}


def size(path: Path) -> int:
    """Bytes of a file, or of all files in a directory."""
    return path.stat().st_size if path.is_file() else sum(f.stat().st_size for f in path.rglob("*") if f.is_file())


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """In Markdown."""
    print()
    for row in (head, ["---"] * len(head), *rows):
        print("|", " | ".join(row), "|")
    sys.stdout.flush()


def row(name: str, medians: dict[str, float]) -> list[str]:
    """Milliseconds, and what the second column is measured by."""
    first, second, venv = (medians[way] for way in ("archive, first", "archive, second", "virtual environment"))
    return [name, *(f"{medians[way]:.0f}" for way in WAYS), f"{first / second:.2f}", f"{second / venv:.2f}"]


def main() -> None:
    """Build all, then measure."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    with tempfile.TemporaryDirectory() as folder, RawPeer() as peer:
        bench = Bench(Path(folder), peer.address)
        bench.make_plain()
        environments = {python: bench.make_environment(python) for python in GOOD}
        rows = []
        for python, venv in environments.items():
            for settings in ({}, {"PYTHONDONTWRITEBYTECODE": "1"}):
                name = ", ".join([python.name, *settings])
                print(name, "load", *(f"{load:.1f}" for load in os.getloadavg()), file=sys.stderr)
                rows.append(row(name, bench.starts(python, venv, rounds, **settings)))
        print(f"Medians of {rounds} starts in ms, plain shiv's first of {PLAIN_ROUNDS}; {os.cpu_count()} processors.")
        table(["Python", *WAYS, "first/second (<= 2)", "second/venv (<= 1.15)"], rows)
        table(["other commands", "ms"], [[name, f"{took:.0f}"] for name, took in others(bench, rounds).items()])
        newest = environments[GOOD[-1]] / "lib"
        packages = next(newest.glob("python*/site-packages"))
        installed = sum(
            size(path) for path in packages.iterdir() if path.name.startswith(("dicom_echo", "pydicom", "pynetdicom"))
        )
        sizes = {"archive": size(bench.archive), "plain shiv": size(bench.plain), "installed with pip": installed}
        table(["", "bytes"], [[name, f"{of:,}"] for name, of in sizes.items()])


if __name__ == "__main__":
    main()
