"""The benchmark: `nox -s bench`. Prints tables of medians, measured side by side in one run, and asserts nothing.

    python tests/bench.py [rates] [dead] [memory] [flat] [single]      # some of them; all without a name

DICOM_ECHO_RUST_PYTHON may name a Python that has the Rust package dicom-echo 0.3.0, to compare `send` with.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from canned import run_canned
from peers import find_program, run_storescp
from rawpeer import Endpoint

import dicom_echo

MODULE = Path(dicom_echo.__file__).resolve()
RUNS = 3

# Runs the command as `python -m dicom_echo` does, and says on standard error how much memory it took.
MEASURED = """\
import resource, sys
import dicom_echo
dicom_echo.main()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, file=sys.stderr)
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

PYNETDICOM_SENDER = """\
import sys, time
from pynetdicom import AE
host, port = sys.argv[1].rsplit(":", 1)
host = host.partition("@")[2] or host
def send():
    ae = AE()
    ae.add_requested_context("1.2.840.10008.1.1")
    association = ae.associate(host, int(port))
    status = association.send_c_echo().Status
    association.release()
    return status
send()
for _ in sys.stdin:
    begun = time.perf_counter()
    assert send() == 0
    print(time.perf_counter() - begun, flush=True)
"""


class Run(NamedTuple):
    """What a run of the command took: seconds from the start of Python to its end, and MB at the most."""

    seconds: float
    memory: float
    last_line: str


def environment() -> dict[str, str]:
    """One in which Python finds this very module."""
    return {**os.environ, "PYTHONPATH": str(MODULE.parent)}


def run(*arguments: object) -> Run:
    """Run the command in a process of its own."""
    command = [sys.executable, "-c", MEASURED, *map(str, arguments)]
    begun = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=True)
    seconds = time.perf_counter() - begun
    return Run(seconds, float(done.stderr.splitlines()[-1]), done.stdout.splitlines()[-1])


def write_targets(folder: Path, endpoints: Iterable[Endpoint]) -> Path:
    """A file of these targets."""
    file = folder / "targets.txt"
    file.write_text("".join(f"{endpoint.host_port}\n" for endpoint in endpoints))
    return file


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table, its columns aligned."""
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    print(f"\n{title}")
    for line in lines:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    sys.stdout.flush()


def time_echoscu(endpoints: Iterable[Endpoint], program: str) -> float:
    """Seconds for one echoscu a target, eight at a time."""
    arguments = "".join(f"{endpoint.host} {endpoint.port}\n" for endpoint in endpoints)
    begun = time.perf_counter()
    subprocess.run(["xargs", "-P", "8", "-n", "2", program], input=arguments, text=True, check=True)
    return time.perf_counter() - begun


# --- The measurements ------------------------------------------------------------------------------------------------


def bench_rates(folder: Path, targets: int = 1000) -> None:
    """Live targets: how many a second, against DCMTK's echoscu with xargs on the same peers."""
    echoscu = find_program("echoscu")
    ours: list[Run] = []
    theirs: list[float] = []
    with run_canned(live=targets) as canned:
        file = write_targets(folder, canned.live)
        for _ in range(RUNS):
            ours.append(run("--targets", file))
            if echoscu:
                theirs.append(time_echoscu(canned.live, echoscu))
    rate = targets / statistics.median(each.seconds for each in ours)
    rows = [("dicom-echo", f"{rate:.0f}", f"{max(each.memory for each in ours):.0f}", ours[-1].last_line)]
    if theirs:
        other = targets / statistics.median(theirs)
        rows.append(("xargs -P 8 echoscu", f"{other:.0f}", "", f"dicom-echo is {rate / other:.1f} times as fast"))
    table(f"{targets} live targets, median of {RUNS}", ("", "echoes/s", "peak MB", ""), rows)


def bench_dead(folder: Path, targets: int = 1000) -> None:
    """Targets that never answer."""
    with run_canned(silent=targets) as canned:
        runs = [run("-T", write_targets(folder, canned.silent), "-t", 3, "-j", 1000) for _ in range(RUNS)]
    took = statistics.median(each.seconds for each in runs)
    rows = [(f"{took:.2f}", f"{max(each.memory for each in runs):.0f}", runs[-1].last_line)]
    table(f"{targets} silent targets, -t 3 -j 1000, median of {RUNS}", ("seconds", "peak MB", ""), rows)


def bench_memory(folder: Path, ports: int = 1000) -> None:
    """Many targets: memory must not grow with those that are done."""
    rows = []
    with run_canned(live=ports) as canned:
        for times in (1, 10):
            done = run("-T", write_targets(folder, canned.live * times))
            rows.append((str(ports * times), f"{done.memory:.1f}", f"{done.seconds:.2f}", done.last_line))
    table("memory against number of targets", ("targets", "peak MB", "seconds", ""), rows)


def bench_flat(_folder: Path, echoes: int = 10_000) -> None:
    """One process, many echoes: the first thousand against the last."""
    times = []
    with run_canned(live=1) as canned:
        dicom_echo.send(canned.live[0].address)
        for _ in range(echoes):
            begun = time.perf_counter()
            dicom_echo.send(canned.live[0].address)
            times.append((time.perf_counter() - begun) * 1000)
    first, last = statistics.median(times[:1000]), statistics.median(times[-1000:])
    rows = [(f"{first:.3f}", f"{last:.3f}", f"{last / first:.2f}")]
    table(f"{echoes} echoes in one process, medians in ms", ("first 1,000", "last 1,000", "ratio"), rows)


def bench_single(folder: Path, rounds: int = 100) -> None:
    """One echo at a time to DCMTK's storescp, the contenders by turns."""
    storescp = find_program("storescp")
    if not storescp:
        print("\nstorescp is not installed: nothing to send to")
        return
    rust = os.environ.get("DICOM_ECHO_RUST_PYTHON")
    contenders = {
        "send() of this module": [sys.executable, "-c", SENDER],
        "pynetdicom: associate, send_c_echo, release": [sys.executable, "-c", PYNETDICOM_SENDER],
        **({"send() of dicom-echo 0.3.0 (Rust)": [rust, "-c", SENDER]} if rust else {}),
    }
    with run_storescp(storescp, folder) as peer, contextlib.ExitStack() as stack:
        senders = {
            name: stack.enter_context(running([*command, peer.address], with_module="Rust" not in name))
            for name, command in contenders.items()
        }
        times: dict[str, list[float]] = {name: [] for name in senders}
        for _ in range(rounds):
            for name, sender in senders.items():
                times[name].append(sender() * 1000)
    rows = [(name, f"{statistics.median(each):.2f}", f"{min(each):.2f}") for name, each in times.items()]
    table(f"one echo to storescp, {rounds} by turns", ("", "median ms", "best ms"), rows)


@contextlib.contextmanager
def running(command: Sequence[str], *, with_module: bool) -> Iterator[Callable[[], float]]:
    """A sender in a process of its own; calling it sends once and returns the seconds that it took."""
    env = environment() if with_module else {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    folder = tempfile.gettempdir()  # Python looks for modules in its folder, and this module may be here
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=env, cwd=folder
    ) as process:
        stdin, stdout = process.stdin, process.stdout
        assert stdin
        assert stdout

        def send() -> float:
            stdin.write("\n")
            return float(stdout.readline())

        yield send
        stdin.close()


BENCHES: dict[str, Callable[[Path], None]] = {
    "rates": bench_rates,
    "dead": bench_dead,
    "memory": bench_memory,
    "flat": bench_flat,
    "single": bench_single,
}


def main() -> None:
    """Run the benchmarks that are named, or all."""
    print(f"dicom-echo {dicom_echo.__version__}, Python {sys.version.split()[0]}, {os.cpu_count()} processors")
    for name in sys.argv[1:] or BENCHES:
        with tempfile.TemporaryDirectory() as folder:
            BENCHES[name](Path(folder))


if __name__ == "__main__":
    main()
