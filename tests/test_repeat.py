"""Repeats: the interval, the lines and the summary, message ids, one association or many, interruptions."""

import itertools
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from command import MODULE, Outcome, command_line, environment, run_main, run_process, start_process
from peers import Peer
from rawpeer import (
    A_ABORT,
    A_ASSOCIATE_RQ,
    A_RELEASE_RQ,
    GOOD_SCRIPT,
    P_DATA_TF,
    Close,
    Expect,
    Link,
    Pause,
    RawPeer,
    Reset,
    Script,
    Send,
    Silence,
    Step,
    abort,
    accept_proposal,
    answer_echo,
    closed_port,
    echo_rsp,
    release_rq,
    script,
    silent_listener,
)

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")

ABORTING = script(echo=abort())


@dataclass(frozen=True)
class Clock:
    """Notes when each connection comes."""

    times: list[float] = field(default_factory=list)

    def run(self, _link: Link) -> None:
        self.times.append(time.monotonic())

    @property
    def gaps(self) -> list[float]:
        return [after - before for before, after in zip(self.times, self.times[1:], strict=False)]


# --- Lines and summary -----------------------------------------------------------------------------------------------


def test_a_head_line_a_line_per_echo_and_the_summary(capsys: pytest.CaptureFixture[str], lenient_peer: Peer) -> None:
    outcome = run_main(capsys, lenient_peer.address, "-c", 3, "-i", 0.01)
    time_, target = r"\d+\.\d\d", re.escape(lenient_peer.address)
    expected = [
        rf"C-ECHO to {target} as ECHOSCU",
        *(rf"seq={number} id={number} status=0000H time={time_} ms" for number in (1, 2, 3)),
        rf"--- {target} echo statistics ---",
        r"3 sent, 3 succeeded, 0% loss, time \d+ ms",
        rf"min/avg/max/mdev = {time_}/{time_}/{time_}/{time_} ms",
    ]
    lines = outcome.out.splitlines()
    assert (outcome.code, outcome.err, len(lines)) == (0, "", len(expected))
    for line, pattern in zip(lines, expected, strict=True):
        assert re.fullmatch(pattern, line), line


def test_the_summary_is_what_the_lines_add_up_to(capsys: pytest.CaptureFixture[str]) -> None:
    with RawPeer((Pause(0.05), *GOOD_SCRIPT), GOOD_SCRIPT) as peer:
        out = run_main(capsys, peer.address, "-c", 4, "-i", 0).out
    times = [float(found) for found in re.findall(r"time=([\d.]+) ms\n", out)]
    found = re.search(r"= ([\d.]+)/([\d.]+)/([\d.]+)/([\d.]+) ms", out)
    assert found
    average = sum(times) / 4
    deviation = (sum((each - average) ** 2 for each in times) / 4) ** 0.5
    expected = [min(times), average, max(times), deviation]
    assert [float(group) for group in found.groups()] == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize(
    ("played", "line", "code"),
    [
        (ABORTING, "❌ Aborted: reason not specified", 1),
        (script(echo=echo_rsp(2, 0x0122)), "⚠️ Warning: received non-zero status code: 290 (0122H, SOP class not "
         "supported)", 1),
        (script(echo=Close()), "❌ Connection lost: closed by the peer without an answer", 3),
    ],
    ids=["aborted", "status", "closed"],
)  # fmt: skip
def test_a_failing_echo_has_its_line_and_its_loss(
    capsys: pytest.CaptureFixture[str], played: Script, line: str, code: int
) -> None:
    with RawPeer(GOOD_SCRIPT, played, GOOD_SCRIPT) as peer:
        outcome = run_main(capsys, peer.address, "-c", 4, "-i", 0)
    assert outcome.out.splitlines()[2] == f"seq=2 id=2 {line}"
    assert "4 sent, 3 succeeded, 25% loss" in outcome.out
    assert outcome.code == code


def test_no_success_has_no_times(capsys: pytest.CaptureFixture[str]) -> None:
    with closed_port() as endpoint:
        outcome = run_main(capsys, endpoint.address, "-c", 6, "-i", 0)
    assert re.fullmatch(r"6 sent, 0 succeeded, 100% loss, time \d+ ms", outcome.out.splitlines()[-1])
    assert (outcome.code, outcome.out.count("connection refused")) == (3, 6)


@pytest.mark.parametrize(("count", "shown"), [(4, False), (5, True), (7, True)])
def test_a_picture_of_the_times_from_five_on(capsys: pytest.CaptureFixture[str], count: int, shown: bool) -> None:
    with RawPeer() as peer:
        last = run_main(capsys, peer.address, "-c", count, "-i", 0).out.splitlines()[-1]
    assert bool(re.fullmatch(f"[▁▂▃▄▅▆▇█]{{{count}}}", last)) == shown
    assert ("█" in last) == shown  # the longest


def test_a_stream_without_symbols_gets_ascii(capsys: pytest.CaptureFixture[str]) -> None:
    with RawPeer(*[GOOD_SCRIPT] * 5, ABORTING) as peer:
        outcome = run_process(command_line(peer.address, "-c", 6, "-i", 0), environment(PYTHONIOENCODING="ascii"))
    assert outcome.out.isascii()
    assert "seq=6 id=6 [FAILED] Aborted" in outcome.out
    assert re.fullmatch(r"[-_.~=+*#]{5}", outcome.out.splitlines()[-1])


def test_verbose_adds_a_timeline_to_each_line(capsys: pytest.CaptureFixture[str]) -> None:
    with RawPeer(GOOD_SCRIPT, ABORTING) as peer:
        out = run_main(capsys, peer.address, "-v", "-c", 2, "-i", 0).out
    assert out.count("   associate ") == out.count("   total ") == out.count("   message   id ") == 2
    assert out.index("seq=1") < out.index("   total ") < out.index("seq=2")


def test_quiet_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with RawPeer(GOOD_SCRIPT, ABORTING, GOOD_SCRIPT) as peer:
        assert run_main(capsys, peer.address, "-q", "-c", 3, "-i", 0) == Outcome(1, "", "")
        assert len(peer.received) == 3


# --- Associations and message ids ------------------------------------------------------------------------------------


def test_each_echo_has_an_association_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    with RawPeer() as peer:
        assert run_main(capsys, peer.address, "-c", 4, "-i", 0).code == 0
        assert len(peer.received) == 4
        types = [peer.conversation(number).types for number in range(4)]
    assert types == [[A_ASSOCIATE_RQ, P_DATA_TF, A_RELEASE_RQ]] * 4


def test_reuse_sends_all_over_one_association(capsys: pytest.CaptureFixture[str]) -> None:
    with RawPeer() as peer:
        outcome = run_main(capsys, peer.address, "-c", 4, "-i", 0, "--reuse")
        assert (outcome.code, len(peer.received)) == (0, 1)
        assert peer.conversation().types == [A_ASSOCIATE_RQ, *[P_DATA_TF] * 4, A_RELEASE_RQ]
        assert peer.conversation().message_ids == [1, 2, 3, 4]
    assert outcome.out.count("status=0000H") == 4


def test_reuse_against_real_peers(capsys: pytest.CaptureFixture[str], lenient_peer: Peer) -> None:
    outcome = run_main(capsys, lenient_peer.address, "-c", 5, "-i", 0, "--reuse")
    assert (outcome.code, outcome.out.count("status=0000H")) == (0, 5)


@pytest.mark.parametrize("reuse", [[], ["--reuse"]])
@pytest.mark.parametrize(
    ("first", "expected"),
    [(1, [1, 2, 3]), (0, [0, 1, 2]), (7, [7, 8, 9]), (65534, [65534, 65535, 1]), (65535, [65535, 1, 2])],
)
def test_message_ids_count_up_and_wrap(
    capsys: pytest.CaptureFixture[str], first: int, expected: list[int], reuse: list[str]
) -> None:
    with RawPeer() as peer:
        out = run_main(capsys, peer.address, "-c", 3, "-i", 0, "-id", first, *reuse).out
        sent = [peer.conversation(number).message_ids for number in range(len(peer.received))]
    assert list(itertools.chain(*sent)) == expected
    assert [int(found) for found in re.findall(r" id=(\d+)", out)] == expected


@pytest.mark.parametrize(
    ("endings", "line", "code"),
    [
        ([Close()], "❌ Connection lost: closed by the peer without an answer", 3),
        ([Pause(0.05), Reset()], r"❌ Connection lost: (reset|closed) by the peer.*", 3),
        ([Send(abort(2, 2))], r"❌ Aborted: .*", 1),
        ([Send(abort(0, 0)), Close()], r"❌ Aborted: .*", 1),
        ([Send(release_rq())], r"❌ .*\bA-RELEASE-RQ\b.*", 1),
    ],
    ids=["closes", "resets", "aborts", "aborts and closes", "releases"],
)
def test_when_the_peer_ends_a_reused_association_that_is_reported_and_another_opened(
    capsys: pytest.CaptureFixture[str], endings: list[Step], line: str, code: int
) -> None:
    once: Script = (Expect(A_ASSOCIATE_RQ), Send(accept_proposal), Expect(P_DATA_TF), Send(answer_echo), *endings)
    with RawPeer(once, GOOD_SCRIPT) as peer:
        outcome = run_main(capsys, peer.address, "-c", 4, "-i", 0.2, "--reuse")
        assert len(peer.received) == 2
        assert peer.conversation(1).types == [A_ASSOCIATE_RQ, P_DATA_TF, P_DATA_TF, A_RELEASE_RQ]
    lines = outcome.out.splitlines()
    assert [each.split()[0] for each in lines[1:5]] == ["seq=1", "seq=2", "seq=3", "seq=4"]
    assert re.fullmatch(f"seq=2 id=2 {line}", lines[2])
    assert all("status=0000H" in each for each in (lines[1], lines[3], lines[4]))
    assert outcome.code == code


def test_a_reused_association_is_aborted_after_a_late_answer(capsys: pytest.CaptureFixture[str]) -> None:
    """What was not answered in time could be answered later: it must not be taken for the next answer."""
    late = (Expect(A_ASSOCIATE_RQ), Send(accept_proposal), Expect(P_DATA_TF), Pause(1.6), Send(answer_echo))
    with RawPeer(late, GOOD_SCRIPT) as peer:
        outcome = run_main(capsys, peer.address, "-c", 2, "-i", 0, "-t", 1.2, "--reuse")
        assert peer.conversation(0).types == [A_ASSOCIATE_RQ, P_DATA_TF, A_ABORT]
    assert "seq=1 id=1 ❌ Timed out" in outcome.out
    assert "seq=2 id=2 status=0000H" in outcome.out


# --- The interval ----------------------------------------------------------------------------------------------------


def test_the_interval_is_from_start_to_start(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with RawPeer((clock, Pause(0.2), *GOOD_SCRIPT)) as peer:
        assert run_main(capsys, peer.address, "-c", 8, "-i", 0.25).code == 0
    assert 1.6 < clock.times[-1] - clock.times[0] < 2.5  # with pauses between the echoes: 3.15


def test_slots_that_a_slow_echo_misses_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with RawPeer((clock, Pause(1.2), *GOOD_SCRIPT), (clock, *GOOD_SCRIPT)) as peer:
        out = run_main(capsys, peer.address, "-c", 3, "-i", 0.9).out
    assert clock.gaps[0] > 1.5  # not at once after the slow one
    assert clock.gaps[1] > 0.5  # nor made up for
    assert "3 sent, 3 succeeded" in out


def test_without_an_interval_echoes_follow_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with RawPeer((clock, *GOOD_SCRIPT)) as peer:
        assert run_main(capsys, peer.address, "-c", 10, "-i", 0).code == 0
    assert clock.times[-1] - clock.times[0] < 2


# --- Interruptions ---------------------------------------------------------------------------------------------------


def interrupt(address: str, number: signal.Signals, after: Callable[[str], bool], *options: str) -> Outcome:
    """Run the command until a line of its output says enough, then send it a signal."""
    command = command_line(address, *options)
    with start_process(command) as process:
        assert process.stdout
        seen = ""
        while not after(line := process.stdout.readline()):
            assert line, process.communicate()[1]
            seen += line
        time.sleep(0.1)  # a silent peer is being waited for by then
        begun = time.monotonic()
        process.send_signal(number)
        rest, err = process.communicate(timeout=20)
        assert time.monotonic() - begun < 5
    return Outcome(process.returncode, seen + line + rest, err)


@posix_only
@pytest.mark.parametrize("reuse", [[], ["--reuse"]])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_endless_echoes_end_with_the_summary(number: signal.Signals, code: int, reuse: list[str]) -> None:
    with RawPeer() as peer:
        outcome = interrupt(peer.address, number, lambda line: "seq=6 " in line, "-c", "0", "-i", "0.02", *reuse)
        address = peer.address
    assert (outcome.code, outcome.err) == (code, "")
    lines = outcome.out.splitlines()
    assert lines[-4] == f"--- {address} echo statistics ---"
    sent = re.match(r"(\d+) sent, (\d+) succeeded, 0% loss, ", lines[-3])
    assert sent
    assert sent[1] == sent[2]
    assert int(sent[1]) == outcome.out.count("seq=") >= 6
    assert lines[-2].startswith("min/avg/max/mdev = ")


@posix_only
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_silent_peer_does_not_hold_back_an_interruption(number: signal.Signals, code: int) -> None:
    with silent_listener() as endpoint:
        outcome = interrupt(endpoint.address, number, lambda line: "C-ECHO" in line, "-c", "0", "-t", "60")
    assert (outcome.code, outcome.err) == (code, "")
    assert "0 sent, 0 succeeded" in outcome.out


@posix_only
@pytest.mark.parametrize("delay", [0, 0.05, 0.1, 0.2])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_while_the_codec_is_loaded_is_no_traceback(
    number: signal.Signals, code: int, delay: float
) -> None:
    """pynetdicom is imported when the connection stands: what is half imported cannot be used for a last word."""
    with RawPeer((Silence(),)) as peer:
        command = command_line(peer.address, "-c", 2, "-t", 60)
        with start_process(command) as process:
            while not peer.received:
                time.sleep(0.001)
            time.sleep(delay)
            process.send_signal(number)
            out, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (code, "")
    assert "0 sent, 0 succeeded" in out


SIGNALLED_IN_A_DESTRUCTOR = """
import io, signal, sys
import dicom_echo

class Dying:
    def __del__(self):
        {dying}

class Targets(io.StringIO):
    def read(self, size=-1):
        self.dying = Dying()
        del self.dying
        return super().read(size)

sys.stdin = Targets(sys.argv.pop())
raise SystemExit(dicom_echo.main(["--targets", "-", "-t", "60"]))
"""


def read_targets_while(dying: str, target: str) -> Outcome:
    """Run the command in a process in which reading the targets lets an object die, with this for last deed."""
    return run_process([sys.executable, "-c", SIGNALLED_IN_A_DESTRUCTOR.format(dying=dying), target])


@posix_only
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_is_not_lost_in_a_destructor(number: signal.Signals, code: int) -> None:
    """Python drops what is raised there; imports have such places too."""
    with silent_listener() as endpoint:
        begun = time.monotonic()
        outcome = read_targets_while(f"signal.raise_signal({number.value})", endpoint.address)
    assert (outcome.code, outcome.err) == (code, "")
    assert time.monotonic() - begun < 10


@posix_only
def test_the_caller_s_signals_and_timer_stay_his(capsys: pytest.CaptureFixture[str]) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
    before, hook = [signal.getsignal(number) for number in numbers], sys.unraisablehook
    signal.setitimer(signal.ITIMER_REAL, 3600)
    try:
        with RawPeer() as peer:
            assert run_main(capsys, peer.address, "-c", 2, "-i", 0).code == 0
        assert 3500 < signal.getitimer(signal.ITIMER_REAL)[0] < 3600
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    assert ([signal.getsignal(number) for number in numbers], sys.unraisablehook) == (before, hook)


TEXT = "exec('signal.raise_signal({})')"  # as each dataclass that is imported runs one
CLASS = """
        class Named:
            def __set_name__(self, *_):
                signal.raise_signal({})
        class Holder:
            named = Named()
"""


@posix_only
@pytest.mark.parametrize("place", [TEXT, CLASS], ids=["text", "class"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_has_its_exit_code_wherever_it_comes(
    tmp_path: Path, place: str, number: signal.Signals, code: int
) -> None:
    """From the one, Python remembers a plain KeyboardInterrupt; from the other, older ones raise a RuntimeError."""
    script = SIGNALLED_IN_A_DESTRUCTOR.replace("del self.dying", place.format(number.value))
    (tmp_path / "driver.py").write_text(script.format(dying="pass"))
    env = environment(PYTHONPATH=os.pathsep.join([str(MODULE.parent), str(tmp_path)]))
    outcome = run_process([sys.executable, "-m", "driver", "127.0.0.1:1"], env)
    assert (outcome.code, outcome.err) == (code, "")


def test_any_other_failure_in_a_destructor_is_still_told() -> None:
    with RawPeer() as peer:
        outcome = read_targets_while("raise RuntimeError('of no account')", peer.address)
    assert outcome.code == 0
    assert "RuntimeError: of no account" in outcome.err


# --- Waiting ---------------------------------------------------------------------------------------------------------

REJECTING = script(accept=bytes.fromhex("03000000000400020302"))  # transient, presentation: local limit exceeded


def test_wait_succeeds_when_the_peer_comes_up(capsys: pytest.CaptureFixture[str]) -> None:
    stopping = threading.Event()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))  # refuses until it listens

        def come_up() -> None:
            stopping.wait(0.5)
            listener.listen()
            connection, _ = listener.accept()
            with connection:
                link = Link(connection, stopping)
                for step in script()[:6]:
                    step.run(link)

        thread = threading.Thread(target=come_up)
        thread.start()
        outcome = run_main(capsys, f"127.0.0.1:{listener.getsockname()[1]}", "--wait", 20)
        thread.join()
    assert outcome == Outcome(0, "✅ Success\n", "")


def test_wait_ends_with_the_first_success(capsys: pytest.CaptureFixture[str]) -> None:
    with RawPeer(REJECTING, REJECTING, GOOD_SCRIPT) as peer:
        outcome = run_main(capsys, peer.address, "--wait", 20)
        assert len(peer.received) == 3
        assert peer.conversation(2).message_ids == [3]
    assert outcome == Outcome(0, "✅ Success\n", "")


def test_wait_gives_up_with_the_last_error(capsys: pytest.CaptureFixture[str]) -> None:
    begun = time.monotonic()
    with closed_port() as endpoint:
        outcome = run_main(capsys, endpoint.address, "--wait", 1)
    assert outcome.code == 3
    assert outcome.out.startswith("❌ Unreachable: connection refused\n")
    assert outcome.out.count("❌") == 1
    assert 0.95 < time.monotonic() - begun < 4


def test_wait_bounds_a_silent_peer_too(capsys: pytest.CaptureFixture[str]) -> None:
    begun = time.monotonic()
    with silent_listener() as endpoint:
        outcome = run_main(capsys, endpoint.address, "--wait", 0.7, "-t", 60)
    assert (outcome.code, outcome.out.splitlines()[0][:11]) == (3, "❌ Timed out")
    assert time.monotonic() - begun < 5


def test_wait_bounds_a_peer_that_becomes_silent(capsys: pytest.CaptureFixture[str]) -> None:
    """The last try has what is left of the time, whatever the pause before it took."""
    with RawPeer(*[REJECTING] * 5, (Silence(),)) as peer:
        begun = time.monotonic()
        outcome = run_main(capsys, peer.address, "--wait", 3.3, "-t", 60)
        took = time.monotonic() - begun
    assert (outcome.code, outcome.out[:11]) == (3, "❌ Timed out")
    assert 3.2 < took < 4


def test_the_delay_between_the_tries_grows(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with RawPeer((clock, *REJECTING)) as peer:
        outcome = run_main(capsys, peer.address, "--wait", 2.2)
    assert outcome.code == 1
    assert "❌ Rejected: local limit exceeded" in outcome.out
    assert 3 <= len(clock.times) <= 6  # of eleven, if it stayed as it begins
    assert clock.gaps[0] > 0.15
    assert clock.gaps[-1] > 0.4


def test_wait_with_several_targets_waits_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    with RawPeer() as up, RawPeer(REJECTING, REJECTING, GOOD_SCRIPT) as late, RawPeer(REJECTING) as never:
        outcome = run_main(capsys, never.address, late.address, up.address, "--wait", 4)
        assert (len(up.received), len(late.received)) == (1, 3)
        assert len(never.received) > 1
        addresses = [up.address, late.address, never.address]
    rows = outcome.out.splitlines()
    assert [row.split()[0] for row in rows[:3]] == addresses
    assert rows[3:] == ["3 targets: 2 ok, 1 rejected"]
    assert outcome.code == 1
