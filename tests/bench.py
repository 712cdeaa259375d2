"""The benchmark: `nox -s bench`. Prints tables of medians, measured by turns in one run, and asserts nothing.

    python tests/bench.py [times] [live] [silent] [single]      # some of them; all without a name

DICOM_ECHO_OTHER may name folders (apart by `:`) that hold another dicom_echo.py each, to compare with.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from canned import run_canned
from peers import find_program, run_storescp
from rawpeer import Endpoint

HERE = Path(__file__).resolve().parent.parent
OTHERS = filter(None, os.environ.get("DICOM_ECHO_OTHER", "").split(":"))
FOLDERS = {"here": HERE, **{other: Path(other) for other in OTHERS}}
RUNS = 5

# Runs the command as `python -m dicom_echo` does, and says on standard error how much memory it took.
MEASURED = """\
import re, sys
import dicom_echo
try:
    getattr(dicom_echo, "_command", dicom_echo.main)()
finally:  # not from getrusage: there, a process starts with the peak of the one that started it
    with open("/proc/self/status") as status:
        print(int(re.search(r"VmHWM:\\s+(\\d+)", status.read())[1]) / 1024, file=sys.stderr)
"""

# Asks all with so many jobs; the times that it reports.
TIMES = """\
import sys
import dicom_echo
jobs, *addresses = sys.argv[1:]
dicom_echo.send(addresses[0])
for result in dicom_echo.probe_many(addresses, jobs=int(jobs)):
    print(result.total * 1000)
"""

# Sends until standard input ends: a line in, a time in seconds out.
SENDER = """\
import sys, time
import dicom_echo
address = sys.argv[1]
dicom_echo.send(address)
for _ in sys.stdin:
    begun = time.perf_counter()
    assert dicom_echo.send(address) == 0
    print(time.perf_counter() - begun, flush=True)
"""

# The least that an echo can cost: the same bytes each time, over a bare socket.
BARE_SENDER = """\
import socket, sys, time
import dicom_echo
host, _, port = sys.argv[1].rpartition("@")[2].rpartition(":")
echo = dicom_echo._Dialogue(dicom_echo._Request(sys.argv[1], "ANY-SCP", "ECHOSCU"))
canned = [echo.associate(), echo.echo(1), echo.release()]
def send():
    with socket.create_connection((host, int(port))) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for pdu in canned:
            sock.sendall(pdu)
            data = b""
            while len(data) < 6 or len(data) < 6 + int.from_bytes(data[2:6], "big"):
                if hasattr(socket, "TCP_QUICKACK"):
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
                data += sock.recv(65536)
send()
for _ in sys.stdin:
    begun = time.perf_counter()
    send()
    print(time.perf_counter() - begun, flush=True)
"""


class Run(NamedTuple):
    """What a run of the command took: seconds from the start of Python to its end, and MB at the most."""

    seconds: float
    memory: float


def environment(folder: Path) -> dict[str, str]:
    """One in which Python finds the module of this folder, and starts as it does for users."""
    swaying = {"PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"}
    return {name: os.environ[name] for name in os.environ.keys() - swaying} | {"PYTHONPATH": str(folder)}


def run(folder: Path, *arguments: object) -> Run:
    """Run the command in a process of its own."""
    command = [sys.executable, "-c", MEASURED, *map(str, arguments)]
    begun = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment(folder), check=False)
    return Run(time.perf_counter() - begun, float(done.stderr.splitlines()[-1]))


def write_targets(folder: Path, endpoints: Iterable[Endpoint]) -> Path:
    file = folder / "targets.txt"
    file.write_text("".join(f"{endpoint.host_port}\n" for endpoint in endpoints))
    return file


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """In Markdown."""
    print(f"\n{title}\n")
    for row in (head, ["---"] * len(head), *rows):
        print("|", " | ".join(row), "|")
    sys.stdout.flush()


# --- The measurements ------------------------------------------------------------------------------------------------


def bench_times(_folder: Path, peers: int = 300, delay: float = 0.02) -> None:
    """Do peers that all take the same time get the same time reported, however many are asked at once?"""
    rows = []
    with run_canned(live=peers, delay=delay) as canned:
        addresses = [each.address for each in canned.live]
        for name, folder in FOLDERS.items():
            alone = alone_high = 0.0
            for jobs in (1, 32, 128):
                command = [sys.executable, "-c", TIMES, str(jobs), *addresses]
                said = subprocess.run(
                    command, capture_output=True, text=True, cwd=folder, env=environment(folder), check=True
                )
                times = sorted(map(float, said.stdout.split()))
                middle, high = statistics.median(times), times[len(times) * 95 // 100]
                alone, alone_high = alone or middle, alone_high or high
                cells = f"{middle:.2f}", f"{middle / alone:.2f}", f"{high:.2f}", f"{high / alone_high:.2f}"
                rows.append((name, str(jobs), *cells))
    table(
        f"{peers} peers that take {delay * 1000:.0f} ms",
        ("", "jobs", "median ms", "times -j 1", "95th percentile ms", "times -j 1"), rows,
    )  # fmt: skip


def bench_live(folder: Path, targets: int = 1000) -> None:
    with run_canned(live=targets) as canned:
        compare(f"{targets} live targets, the whole command", ["--targets", write_targets(folder, canned.live)])


def bench_silent(folder: Path, targets: int = 1000) -> None:
    with run_canned(silent=targets) as canned:
        arguments = ["-T", write_targets(folder, canned.silent), "-t", 3, "-j", 1000]
        compare(f"{targets} silent targets, -t 3 -j 1000", arguments)


def compare(title: str, arguments: Sequence[object]) -> None:
    """Run the command by turns from each folder."""
    runs: dict[str, list[Run]] = {name: [] for name in FOLDERS}
    for _ in range(RUNS):
        for name, folder in FOLDERS.items():
            runs[name].append(run(folder, *arguments))
    seconds = {name: statistics.median(each.seconds for each in those) for name, those in runs.items()}
    memory = {name: max(each.memory for each in those) for name, those in runs.items()}
    rows = [
        (name, f"{seconds[name]:.2f}", f"{seconds[name] / seconds['here']:.2f}", f"{memory[name]:.0f}") for name in runs
    ]
    table(f"{title}, median of {RUNS} by turns", ("", "seconds", "ratio", "peak MB"), rows)


def bench_single(folder: Path, rounds: int = 200) -> None:
    """One echo at a time to DCMTK's storescp, the contenders by turns."""
    storescp = find_program("storescp")
    if not storescp:
        print("\nstorescp is not installed: nothing to send to")
        return
    contenders = {"a bare socket with canned bytes": (BARE_SENDER, HERE)}
    contenders.update({f"send(), {name}": (SENDER, where) for name, where in FOLDERS.items()})
    times: dict[str, list[float]] = {name: [] for name in contenders}
    with run_storescp(storescp, folder) as peer, contextlib.ExitStack() as stack:
        senders = {
            name: stack.enter_context(start_sender([sys.executable, "-c", code, peer.address], where))
            for name, (code, where) in contenders.items()
        }
        for _ in range(rounds):
            for name, sender in senders.items():
                assert sender.stdin
                assert sender.stdout
                sender.stdin.write("\n")
                times[name].append(float(sender.stdout.readline()) * 1000)
    medians = {name: statistics.median(each) for name, each in times.items()}
    bare = next(iter(medians.values()))
    rows = [(name, f"{medians[name]:.2f}", f"{min(times[name]):.2f}", f"{medians[name] / bare:.1f}") for name in times]
    table(f"one echo to storescp, {rounds} by turns", ("", "median ms", "best ms", "ratio"), rows)


def start_sender(command: Sequence[str], where: Path) -> subprocess.Popen[str]:
    """A sender in a process of its own, which ends with its standard input."""
    folder = tempfile.gettempdir()  # Python looks for modules in its folder, and another may be here
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=environment(where), cwd=folder
    )


BENCHES: dict[str, Callable[[Path], None]] = {
    "times": bench_times, "live": bench_live, "silent": bench_silent, "single": bench_single
}  # fmt: skip


def main() -> None:
    """Run the benchmarks that are named, or all."""
    print(f"Python {sys.version.split()[0]}, {os.cpu_count()} processors")
    for name in sys.argv[1:] or BENCHES:
        with tempfile.TemporaryDirectory() as folder:
            BENCHES[name](Path(folder))


if __name__ == "__main__":
    main()
