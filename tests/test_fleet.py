"""Many targets: which run at the same time, the table, progress, totals, exit codes, interruptions, a mixed fleet."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from canned import Canned, run_canned
from command import PATIENCE, Outcome, command_line, run_main, run_process, start_process
from peers import Peer
from rawpeer import (
    A_ASSOCIATE_RQ,
    A_RELEASE_RQ,
    GOOD_ACCEPT,
    GOOD_RELEASE,
    GOOD_SCRIPT,
    P_DATA_TF,
    Close,
    Drip,
    Expect,
    Link,
    RawPeer,
    ReceiveSome,
    Script,
    Send,
    abort,
    accept_proposal,
    answer_echo,
    associate_ac,
    associate_rj,
    closed_port,
    echo_rsp,
    full_listener,
    script,
    silent_listener,
)

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals and terminals")

REJECTING = script(accept=associate_rj(1, 1, 7))
ODD = script(echo=lambda conversation: echo_rsp(conversation.message_ids[-1], 0x0211))
HTTP = (ReceiveSome(), Send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"), Close())


@pytest.fixture(scope="module")
def canned() -> Iterator[Canned]:
    with run_canned(live=12, silent=12) as peers:
        yield peers


# --- Who is asked when -----------------------------------------------------------------------------------------------


@dataclass
class Occupancy:
    """Counts the associations that are open at the same time."""

    seconds: float = 0.05
    now: int = 0
    most: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, link: Link) -> None:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        for step in Expect(A_ASSOCIATE_RQ), Send(accept_proposal), Expect(P_DATA_TF), Send(answer_echo):
            step.run(link)
        Expect(A_RELEASE_RQ).run(link)
        link.pause(self.seconds)
        with self.lock:
            self.now -= 1
        link.send(GOOD_RELEASE)


@dataclass(frozen=True)
class Meet:
    """Goes on when enough connections are here."""

    barrier: threading.Barrier

    def run(self, _link: Link) -> None:
        with contextlib.suppress(threading.BrokenBarrierError):
            self.barrier.wait(10)


@contextlib.contextmanager
def several(number: int, played: Script) -> Iterator[list[str]]:
    """The addresses of raw peers that all play the same script."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(RawPeer(played)).address for _ in range(number)]


def test_jobs_are_done_at_the_same_time(capsys: pytest.CaptureFixture[str]) -> None:
    with several(6, (Meet(barrier := threading.Barrier(6)), *GOOD_SCRIPT)) as addresses:
        assert run_main(capsys, *addresses, "-j", 6, "-t", 30).code == 0
    assert not barrier.broken


@pytest.mark.parametrize("jobs", [1, 3])
def test_no_more_than_jobs_at_the_same_time(capsys: pytest.CaptureFixture[str], jobs: int) -> None:
    occupancy = Occupancy()
    with several(8, (occupancy,)) as addresses:
        assert run_main(capsys, *addresses, "-j", jobs).code == 0
    assert occupancy.most == jobs


@pytest.mark.parametrize("options", [[], ["-c", "2", "-i", "0"]])
def test_one_host_and_port_is_never_asked_twice_at_the_same_time(
    capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    occupancy = Occupancy(0.02)
    with RawPeer((occupancy,)) as peer:
        titles = [f"TITLE{number}@{peer.endpoint.host_port}" for number in range(8)]
        outcome = run_main(capsys, *titles, *options)
        echoes = len(peer.received)
    assert (outcome.code, occupancy.most, echoes) == (0, 1, 16 if options else 8)
    assert sorted(line.split("@")[0] for line in outcome.out.splitlines()[:-1]) == [f"TITLE{n}" for n in range(8)]


def test_a_busy_peer_does_not_hold_back_the_others(capsys: pytest.CaptureFixture[str], canned: Canned) -> None:
    """Nine targets wait behind one peer; with two jobs at once, the other job goes on to the other peers."""
    with RawPeer((Occupancy(0.1),)) as busy:
        addresses = [f"T{number}@{busy.endpoint.host_port}" for number in range(9)]
        others = [endpoint.address for endpoint in canned.live]
        rows = run_main(capsys, *addresses, *others, "-j", 2).out.splitlines()
    assert rows[-2].startswith("T8@")
    assert [row.split()[0] for row in rows if row.startswith("ANY-SCP@")] == others


def test_results_come_as_they_finish(capsys: pytest.CaptureFixture[str], canned: Canned) -> None:
    with silent_listener() as slow:
        others = [endpoint.address for endpoint in canned.live]
        rows = run_main(capsys, slow.address, *others, "-t", 2, "-j", 3).out.splitlines()
    assert [row.split()[0] for row in rows[:-1]] == [*others, slow.address] or rows[-2].startswith(slow.address)
    assert sorted(row.split()[0] for row in rows[:-1]) == sorted([*others, slow.address])


# --- The table -------------------------------------------------------------------------------------------------------


def test_rows_totals_and_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    with RawPeer() as good, RawPeer(REJECTING) as bad, RawPeer(ODD) as odd:
        addresses = [good.address, bad.address, odd.address]
        outcome = run_main(capsys, *addresses, "-j", 1)
    rows = outcome.out.splitlines()
    width = max(map(len, addresses))
    assert re.fullmatch(rf"{addresses[0]:<{width}}  +\d+\.\d\d ms  ✅ Success", rows[0])
    assert re.fullmatch(rf"{addresses[1]:<{width}}  +-     ❌ Rejected: called AE title not recognized", rows[1])
    assert re.fullmatch(
        rf"{addresses[2]:<{width}}  +-     ⚠️ Warning: received non-zero status code: 529 \(0211H, .*\)", rows[2]
    )
    assert rows[3:] == ["3 targets: 1 ok, 1 rejected, 1 status"]
    assert (outcome.code, outcome.err) == (1, "")


@pytest.mark.parametrize(
    ("names", "code"),
    [("good good", 0), ("good bad", 1), ("bad closed good", 3), ("closed closed", 3), ("good closed", 3)],
)
@pytest.mark.parametrize("options", [[], ["-c", "2", "-i", "0"], ["--format", "json"], ["-q"]])
def test_the_exit_code_is_the_highest(
    capsys: pytest.CaptureFixture[str], names: str, code: int, options: list[str]
) -> None:
    with RawPeer() as good, RawPeer(REJECTING) as bad, closed_port() as closed:
        addresses = {"good": good.address, "bad": bad.address, "closed": closed.address}
        outcome = run_main(capsys, *(addresses[name] for name in names.split()), *options)
    assert outcome.code == code
    assert (outcome.out == "") == (options == ["-q"])


def test_repeats_show_loss_and_times_for_each_target(capsys: pytest.CaptureFixture[str]) -> None:
    with RawPeer() as good, RawPeer(GOOD_SCRIPT, REJECTING, GOOD_SCRIPT) as flaky, closed_port() as closed:
        addresses = [good.address, flaky.address, closed.address]
        outcome = run_main(capsys, *addresses, "-c", 4, "-i", 0, "-j", 1)
    rows = outcome.out.splitlines()
    times = r"\d+\.\d\d/\d+\.\d\d/\d+\.\d\d ms"
    assert re.search(rf"4/4 +0% loss +{times}  ✅", rows[0])
    assert re.search(rf"3/4 +25% loss +{times}  ❌ Rejected: called AE title not recognized", rows[1])
    assert re.search(r"0/4 +100% loss +-/-/- ms  ❌ Unreachable: connection refused", rows[2])
    assert rows[3:] == ["12 echoes: 7 ok, 4 unreachable, 1 rejected"]
    assert outcome.code == 3


def test_a_file_of_one_line_is_a_fleet_too(capsys: pytest.CaptureFixture[str], tmp_path: Path, canned: Canned) -> None:
    (tmp_path / "fleet").write_text(f"{canned.live[0].address} # archive\n")
    rows = run_main(capsys, "-T", tmp_path / "fleet").out.splitlines()
    assert re.fullmatch(r"ANY-SCP@127.0.0.1:\d+  archive  +[\d.]+ ms  ✅ Success", rows[0])
    assert rows[1:] == ["1 targets: 1 ok"]
    lines = run_main(capsys, "-T", tmp_path / "fleet", "--format", "json").out.splitlines()
    assert [json.loads(line)["type"] for line in lines] == ["echo", "summary"]


@posix_only
@pytest.mark.parametrize(
    ("width", "options", "row"),
    [
        (110, [], "  the worklist server of the second…          -     ❌ Unreachable: connection refused"),
        (80, [], "  the worklist serve…          -     ❌ Unreachable: con…"),
        (80, ["-c", "2", "-i", "0"], "  0/2 100% loss                   -/-/- ms  ❌ Unreachab…"),
        (50, [], "          -     ❌ Unreach…"),
    ],
)
def test_a_long_label_leaves_room_for_the_verdict(tmp_path: Path, width: int, options: list[str], row: str) -> None:
    with closed_port() as closed:
        (tmp_path / "fleet").write_text(f"{closed.address} # {'the worklist server of the second floor ' * 2}\n")
        shown = run_on_terminal(width, ["-T", tmp_path / "fleet", "--color", "never", *options]).out
    assert shown.splitlines()[0] == closed.address + row


@posix_only
def test_labels_of_usual_length_are_whole_on_a_usual_terminal(tmp_path: Path, canned: Canned) -> None:
    (tmp_path / "fleet").write_text(f"{canned.live[0].address} # modality worklist\n")
    assert "  modality worklist  " in run_on_terminal(80, ["-T", tmp_path / "fleet"]).out


@posix_only
@pytest.mark.parametrize(
    ("limit", "number", "jobs", "code"),
    [(12, 1, "", 0), (70, 9, "", 0), (70, 9, "-j 9", 2), (70, 9, "-j 6", 0)],
    ids=["one target", "jobs by default", "jobs asked for", "jobs that fit"],
)
def test_few_open_files_are_allowed(canned: Canned, limit: int, number: int, jobs: str, code: int) -> None:
    hosts = [each.address for each in canned.live[:number]]
    script = f'ulimit -Sn 12; ulimit -Hn {limit}; exec "$@"'
    outcome = run_process(["sh", "-c", script, "sh", *command_line(*hosts, *jobs.split())])
    assert outcome.code == code
    if code:
        assert outcome.err.startswith("dicom-echo: --jobs 9 needs 73 open files, but the system allows 70 ")


def test_labels_have_a_column(capsys: pytest.CaptureFixture[str], tmp_path: Path, canned: Canned) -> None:
    labels = ["archive", "", "the CT in room 3"]
    lines = [f"{each.address} # {label}" for each, label in zip(canned.live, labels, strict=False)]
    (tmp_path / "fleet").write_text("\n".join(lines).replace(" # \n", "\n"))
    rows = run_main(capsys, "-T", tmp_path / "fleet", "-j", 1).out.splitlines()
    for row, label in zip(rows, labels, strict=False):
        assert re.fullmatch(rf"ANY-SCP@127.0.0.1:\d+ +{label:<16}  +[\d.]+ ms  ✅ Success", row)


def columns(text: str) -> int:
    """The columns that a text takes on a terminal; a symbol with an emoji selector takes two."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    unseen = sum(bool(unicodedata.combining(character)) for character in text)
    return len(text) + wide - unseen


def run_on_terminal(width: int, arguments: Sequence[object], *, errors_too: bool = False) -> Outcome:
    """Run the command with a terminal of this width as its standard output, or as its standard error too."""
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 25, width, 0, 0))
    command = command_line(*arguments)
    errors = theirs if errors_too else subprocess.PIPE
    with start_process(command, theirs, errors, changes={"TERM": "xterm"}) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # Linux's way to say that the other side is closed
            while data := os.read(ours, 1 << 16):
                shown += data
        os.close(ours)
        err = process.stderr.read() if process.stderr else ""
        process.wait(PATIENCE)
    return Outcome(process.returncode, shown.decode().replace("\r\n", "\n"), err)


PLAIN = ["archive", "the worklist server of the second floor", "modality", "X", ""]
WIDE = ["archive", "放射線科の古いサーバー", "Mo\u0308bius", "no\u00a0break", ""]


@posix_only
@pytest.mark.parametrize("labels", [PLAIN, WIDE], ids=["plain", "wide"])
@pytest.mark.parametrize("options", [[], ["-c", "2", "-i", "0"]], ids=["once", "repeated"])
@pytest.mark.parametrize("width", [40, 80, 132])
def test_the_table_is_aligned_and_fits_the_terminal(
    tmp_path: Path, canned: Canned, width: int, options: list[str], labels: list[str]
) -> None:
    with RawPeer(REJECTING) as bad, RawPeer(ODD) as odd, closed_port() as closed:
        endpoints = [*canned.live[:2], bad.endpoint, odd.endpoint, closed]
        lines = [f"{each.address} # {label}\n" for each, label in zip(endpoints, labels, strict=True)]
        lines[0] = lines[0].replace("127.0.0.1", "localhost")
        (tmp_path / "fleet").write_text("".join(lines).replace(" # \n", "\n"), encoding="utf-8")
        shown = run_on_terminal(width, ["-T", tmp_path / "fleet", "--color", "never", *options]).out
    rows = shown.splitlines()[:-1]
    assert len(rows) == 5
    assert len({columns(re.split("[✅❌⚠]", row)[0]) for row in rows}) == 1, shown
    assert max(map(columns, rows)) <= width, shown


@posix_only
def test_colours_do_not_count_as_columns(tmp_path: Path, canned: Canned) -> None:
    with RawPeer(REJECTING) as bad:
        shown = run_on_terminal(60, [canned.live[0].address, bad.address]).out
    assert "\x1b[31m" in shown
    plain = re.sub(r"\x1b\[\d*m", "", shown)
    assert max(map(columns, plain.splitlines())) <= 60
    assert len({row.index(" ms") for row in plain.splitlines() if " ms" in row}) == 1


@posix_only
def test_progress_is_shown_on_a_terminal_only(canned: Canned) -> None:
    addresses = [endpoint.address for endpoint in canned.live[:3]]
    terminal = run_on_terminal(100, addresses, errors_too=True).out
    piped = run_on_terminal(100, addresses)
    quiet = run_on_terminal(100, ["-q", *addresses], errors_too=True)
    assert "3 of 3 done" in terminal
    assert terminal.endswith("3 targets: 3 ok\n")
    assert "done" not in piped.out + piped.err
    assert quiet == Outcome(0, "", "")


@posix_only
def test_progress_leaves_the_rows_alone(canned: Canned) -> None:
    """What remains on the screen, once each cleared line is cleared, are the rows and the totals."""
    shown = run_on_terminal(100, [each.address for each in canned.live[:3]], errors_too=True).out
    left = [line.rpartition("\r\x1b[K")[2] for line in shown.split("\n")]
    assert sorted(line.split("  ")[0] for line in left[:3]) == sorted(each.address for each in canned.live[:3])
    assert left[3:] == ["3 targets: 3 ok", ""]


# --- Interruptions ---------------------------------------------------------------------------------------------------


@posix_only
@pytest.mark.parametrize("options", [[], ["-c", "0", "-i", "0.05"]], ids=["once", "endless"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_fleet_prints_what_it_has(
    canned: Canned, number: signal.Signals, code: int, options: list[str]
) -> None:
    """Silent peers and a long time limit do not hold it back."""
    with full_listener() as full, RawPeer() as last:
        addresses = [canned.live[0].address, *(each.address for each in canned.silent), full.address, last.address]
        command = command_line(*addresses, "-t", 15, *options)
        with start_process(command) as process:
            last.conversation(0, timeout=20)  # the last one has been asked, so all have
            time.sleep(0.2)
            process.send_signal(number)
            begun = time.monotonic()
            out, err = process.communicate(timeout=60)
            assert time.monotonic() - begun < 5
    rows = out.splitlines()
    assert (process.returncode, err) == (code, "")
    assert sorted(row.split()[0] for row in rows[:-1]) == sorted([addresses[0], addresses[-1]])
    assert re.fullmatch(r"\d+ (echoes|targets): \d+ ok", rows[-1])


# --- A mixed fleet ---------------------------------------------------------------------------------------------------


def test_every_verdict_is_right_in_a_mixed_fleet(
    capsys: pytest.CaptureFixture[str],
    pynetdicom_scp: Peer,
    storescp: Peer,
    dcmqrscp: Peer,
    orthanc: Peer,
    pynetdicom_scp_strict: Peer,
    orthanc_strict: Peer,
) -> None:
    """Real peers, dead ones and misbehaving ones, all in one run."""
    strict = [dcmqrscp, pynetdicom_scp_strict, orthanc_strict]
    misbehaving = {
        "rejected": REJECTING,
        "aborted": script(accept=abort()),
        "protocol": HTTP,
        "timeout": (Expect(A_ASSOCIATE_RQ), Drip(GOOD_ACCEPT, delay=0.3)),
        "lost": script(accept=Close()),
        "not-supported": script(accept=associate_ac([(1, 3, None)])),
        "status": script(echo=echo_rsp(1, 0x0122)),
    }
    expected = {peer.address: "ok" for peer in [pynetdicom_scp, storescp, orthanc, *strict]}
    expected |= {f"WRONG@{peer.host_port}": "rejected" for peer in strict}
    with contextlib.ExitStack() as stack:
        for kind, played in misbehaving.items():
            expected[stack.enter_context(RawPeer(played)).address] = kind
        expected[stack.enter_context(full_listener()).address] = "timeout"
        expected[stack.enter_context(silent_listener()).address] = "timeout"
        expected[stack.enter_context(closed_port()).address] = "unreachable"
        outcome = run_main(capsys, *expected, "-t", 3, "--format", "json")
    *lines, summary = map(json.loads, outcome.out.splitlines())
    assert {line["target"]: kind_of(line) for line in lines} == expected
    assert summary["kinds"] == {kind: list(expected.values()).count(kind) for kind in set(expected.values())}
    assert outcome.code == 3


def kind_of(line: dict[str, Any]) -> str:
    """The verdict in a JSON line."""
    if line["error"]:
        return str(line["error"]["kind"])
    return "ok" if line["ok"] else "status"
