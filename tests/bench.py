"""The benchmark: `nox -s bench`. Prints tables of medians, and asserts nothing.

python tests/bench.py [times] [live] [silent] [single]      # some of them; all without a name
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

from canned import run_canned
from command import environment
from peers import find_program, run_storescp
from rawpeer import Endpoint

RUNS = 5
ENVIRONMENT = environment(PYTHONDONTWRITEBYTECODE="")  # Python starts as it does for users

# Runs the command as `python -m dicom_echo` does, and says on standard error how much memory it took.
MEASURED = """\
import re, sys
import dicom_echo
try:
    dicom_echo._command()
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
def send():
    assert dicom_echo.send(sys.argv[1]) == 0
{instead}
send()
for _ in sys.stdin:
    begun = time.perf_counter()
    send()
    print(time.perf_counter() - begun, flush=True)
"""

# The least that an echo can cost: the same bytes each time, over a bare socket.
BARE = """\
import socket
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
"""


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """In Markdown."""
    print(f"\n{title}\n")
    for row in (head, ["---"] * len(head), *rows):
        print("|", " | ".join(row), "|")
    sys.stdout.flush()


def bench_times(_folder: Path, peers: int = 300, delay: float = 0.02) -> None:
    """Do peers that all take the same time get the same time reported, however many are asked at once?"""
    rows, alone = [], (0.0, 0.0)
    with run_canned(live=peers, delay=delay) as canned:
        for jobs in (1, 32, 128):
            command = [sys.executable, "-c", TIMES, str(jobs), *(each.address for each in canned.live)]
            said = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=True)
            times = sorted(map(float, said.stdout.split()))
            figures = statistics.median(times), times[len(times) * 95 // 100]
            alone = figures if jobs == 1 else alone
            cells = (cell for ms, one in zip(figures, alone) for cell in (f"{ms:.2f}", f"{ms / one:.2f}"))
            rows.append((str(jobs), *cells))
    head = ("jobs", "median ms", "times -j 1", "95th percentile ms", "times -j 1")
    table(f"{peers} peers that take {delay * 1000:.0f} ms", head, rows)


def bench_live(folder: Path, targets: int = 1000) -> None:
    with run_canned(live=targets) as canned:
        run(f"{targets} live targets", folder, canned.live)


def bench_silent(folder: Path, targets: int = 1000) -> None:
    with run_canned(silent=targets) as canned:
        run(f"{targets} silent targets", folder, canned.silent, "-t", "3", "-j", "1000")


def run(title: str, folder: Path, endpoints: Iterable[Endpoint], *options: str) -> None:
    """Run the whole command: seconds from the start of Python to its end, and MB at the most."""
    file = folder / "targets.txt"
    file.write_text("".join(f"{endpoint.host_port}\n" for endpoint in endpoints))
    seconds, memory = [], []
    for _ in range(RUNS):
        command = [sys.executable, "-c", MEASURED, "--targets", str(file), *options]
        begun = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
        seconds.append(time.perf_counter() - begun)
        memory.append(float(done.stderr.splitlines()[-1]))
    row = (f"{statistics.median(seconds):.2f}", f"{max(memory):.0f}")
    table(" ".join((f"{title}, the whole command", *options)), (f"seconds, median of {RUNS}", "peak MB"), [row])


def bench_single(folder: Path, rounds: int = 200) -> None:
    """One echo at a time to DCMTK's storescp, from each sender by turns."""
    storescp = find_program("storescp")
    if not storescp:
        print("\nstorescp is not installed: nothing to send to")
        return
    times: dict[str, list[float]] = {"a bare socket with canned bytes": [], "send()": []}
    with run_storescp(storescp, folder) as peer, contextlib.ExitStack() as stack:
        senders = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", SENDER.format(instead=instead), peer.address],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=ENVIRONMENT,
                )
            )
            for instead in (BARE, "")
        ]  # fmt: skip
        for _ in range(rounds):
            for sender, taken in zip(senders, times.values()):
                assert sender.stdin
                assert sender.stdout
                sender.stdin.write("\n")
                taken.append(float(sender.stdout.readline()) * 1000)
    bare, *_ = medians = [statistics.median(taken) for taken in times.values()]
    rows = [(name, f"{ms:.2f}", f"{min(times[name]):.2f}", f"{ms / bare:.1f}") for name, ms in zip(times, medians)]
    table(f"one echo to storescp, {rounds} by turns", ("", "median ms", "best ms", "ratio"), rows)


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
