"""SIGINT, SIGTERM and SIGHUP: whatever they meet, the results are told, and the process ends by that signal."""

from __future__ import annotations

import contextlib
import os
import py_compile
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import (
    MODULE,
    PATIENCE,
    Outcome,
    command_line,
    environment,
    in_shell,
    interrupt_after,
    posix,
    run_main,
    start_process,
)  # fmt: skip
from leaks import nothing_left_behind
from rawpeer import (
    A_ASSOCIATE_RQ,
    P_DATA_TF,
    Close,
    Endpoint,
    Expect,
    RawPeer,
    Script,
    Send,
    Silence,
    accept_proposal,
    answer_echo,
    closed_port,
    full_listener,
    silent_listener,
)

import dicom_echo

pytestmark = posix

ENDING = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP] if os.name == "posix" else []
ending = pytest.mark.parametrize("number", ENDING)


@pytest.fixture
def silent() -> Iterator[Endpoint]:
    """A port where every connection succeeds and nobody answers."""
    with silent_listener() as endpoint:
        yield endpoint


def interrupt_when_asked(peer: RawPeer, number: signal.Signals, *arguments: object, echoes: int = 1) -> Outcome:
    """Run the command until a peer has been sent something, then send the command a signal."""
    with start_process(command_line(peer.address, *arguments)) as process:
        while len(peer.received) < echoes or not peer.received[echoes - 1].raw:
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(number)
        out, err = process.communicate(timeout=PATIENCE)
    return Outcome(process.returncode, out, err)


def wait_until_it_reads(process: subprocess.Popen[str]) -> None:
    """Write a line to a process, and wait until it has been taken."""
    import fcntl
    import termios

    assert process.stdin
    process.stdin.write("# a comment\n")
    process.stdin.flush()
    while any(fcntl.ioctl(process.stdin, termios.FIONREAD, bytes(4))):
        assert process.poll() is None
        time.sleep(0.01)


# --- At every stage --------------------------------------------------------------------------------------------------

STAGES: dict[str, Script] = {
    "associating": (Silence(),),
    "echoing": (Expect(A_ASSOCIATE_RQ), Send(accept_proposal), Silence()),
    "releasing": (Expect(A_ASSOCIATE_RQ), Send(accept_proposal), Expect(P_DATA_TF), Send(answer_echo), Silence()),
}


@ending
@pytest.mark.parametrize("stage", STAGES)
def test_one_echo_is_said_to_be_interrupted(number: signal.Signals, stage: str) -> None:
    with RawPeer(STAGES[stage]) as peer:
        outcome = interrupt_when_asked(peer, number, "-t", 60)
        line = f"interrupted while waiting for {peer.address}\n"
    if stage == "releasing" and outcome.out != line:  # the verdict had been told by then
        line = "✅ Success\n"
    assert outcome == Outcome(-number, line, "")


@ending
@pytest.mark.parametrize("options", [["-t", 60], ["-t", 60, "--reuse"]], ids=str)
def test_the_statistics_of_endless_echoes_are_printed(number: signal.Signals, options: list[object]) -> None:
    with RawPeer() as peer:
        outcome = interrupt_after("seq=6 ", number, peer.address, "-c", 0, "-i", 0.02, *options)
        address = peer.address
    assert (outcome.code, outcome.err) == (-number, "")
    assert outcome.out.splitlines()[-4] == f"--- {address} echo statistics ---"
    sent = re.match(r"(\d+) sent, (\d+) succeeded, 0% loss, ", outcome.out.splitlines()[-3])
    assert sent
    assert sent[1] == sent[2]
    assert int(sent[1]) == outcome.out.count("seq=") >= 6


def test_an_echo_under_way_is_said_to_be(silent: Endpoint) -> None:
    outcome = interrupt_after("C-ECHO", signal.SIGINT, silent.address, "-c", 0, "-t", 60)
    assert (outcome.code, outcome.err) == (-signal.SIGINT, "")
    assert "0 sent, 0 succeeded" in outcome.out
    assert outcome.out.endswith(", 1 under way when interrupted\n")


@ending
def test_between_two_echoes(number: signal.Signals) -> None:
    with RawPeer() as peer:
        outcome = interrupt_after("seq=1 ", number, peer.address, "-c", 5, "-i", 3600)
    assert (outcome.code, outcome.err) == (-number, "")
    assert "1 sent, 1 succeeded, 0% loss" in outcome.out


@ending
def test_while_waiting_for_a_peer_to_come_up(number: signal.Signals) -> None:
    with RawPeer((Expect(A_ASSOCIATE_RQ), Close())) as peer:
        outcome = interrupt_when_asked(peer, number, "--wait", 3600)
        assert outcome == Outcome(-number, f"interrupted while waiting for {peer.address}\n", "")


@ending
@pytest.mark.parametrize("options", [[], ["-c", "0", "-i", "0.05"]], ids=["once", "endless"])
def test_a_fleet_prints_what_it_has(number: signal.Signals, options: list[str]) -> None:
    """Silent peers and a long time limit do not hold it back."""
    with RawPeer() as good, silent_listener() as silent, full_listener() as full, closed_port() as closed:
        addresses = [closed.address, silent.address, full.address, good.address]
        outcome = interrupt_after(good.address, number, *addresses, "-t", 3600, *options)
    assert (outcome.code, outcome.err) == (-number, "")
    assert closed.address in outcome.out
    # The two silent ones are always under way, the others may be.
    assert re.search(r"\d+ (echoes|targets): .*; interrupted with [2-4] under way\n$", outcome.out)


@ending
def test_json_ends_with_its_summary(number: signal.Signals) -> None:
    with RawPeer() as peer:
        outcome = interrupt_after('"echo"', number, peer.address, "-c", 0, "--format", "json")
    assert (outcome.code, outcome.err) == (-number, "")
    assert '"type": "summary"' in outcome.out.splitlines()[-1]


@ending
@pytest.mark.parametrize("arguments", ["-T -", "--jwt-file - 127.0.0.1:1"])
def test_while_standard_input_is_read(number: signal.Signals, arguments: str) -> None:
    with start_process(command_line(*arguments.split()), stdin=subprocess.PIPE) as process:
        wait_until_it_reads(process)
        process.send_signal(number)
        assert process.wait(PATIENCE) == -number
        assert process.stdin
        process.stdin.close()
        assert process.stdout
        assert process.stderr
        assert process.stdout.read() + process.stderr.read() == ""


# --- For monitoring --------------------------------------------------------------------------------------------------


@ending
def test_an_interrupted_check_is_unknown(number: signal.Signals) -> None:
    line = "DICOM ECHO UNKNOWN - interrupted after 0 of 1 targets\n"
    with RawPeer((Silence(),)) as peer:
        assert interrupt_when_asked(peer, number, "-t", 60, "--format", "nagios") == Outcome(3, line, "")


@ending
def test_a_check_that_reads_its_targets_is_unknown(number: signal.Signals) -> None:
    with start_process(command_line("-T", "-", "--format", "nagios"), stdin=subprocess.PIPE) as process:
        wait_until_it_reads(process)
        process.send_signal(number)
        assert process.wait(PATIENCE) == 3
        assert process.stdout
        assert process.stdout.read() == "DICOM ECHO UNKNOWN - interrupted\n"


# --- Once more, at once, at any moment -------------------------------------------------------------------------------


@contextlib.contextmanager
def blocked() -> Iterator[subprocess.Popen[str]]:
    """The command while nobody reads what it has to say, so that it cannot say more."""
    reader, writer = os.pipe()
    with closed_port() as endpoint, start_process(command_line(endpoint.address, "-c", 0, "-i", 0), writer) as process:
        while select.select([], [writer], [], 0)[1]:
            time.sleep(0.05)
        time.sleep(0.5)
        yield process
        assert process.stderr
        assert process.stderr.read() == ""
    os.close(reader)
    os.close(writer)


@ending
def test_a_reader_that_blocks_the_output_does_not_hold_an_interruption_back(number: signal.Signals) -> None:
    with blocked() as process:
        process.send_signal(number)
        assert process.wait(10) == -number


def test_the_second_ctrl_c_ends_it_at_once() -> None:
    with blocked() as process:
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == -signal.SIGINT
        assert time.monotonic() - began < 0.8  # the first alone would take longer


@ending
def test_two_within_ten_milliseconds_are_one(number: signal.Signals) -> None:
    """As they come when a terminal, or a supervisor, signals a process and then its group."""
    with RawPeer() as peer, start_process(command_line(peer.address, "-c", 0, "-i", 0.05)) as process:
        assert process.stdout
        while "seq=2 " not in process.stdout.readline():
            pass
        process.send_signal(number)
        time.sleep(random.random() * 0.01)
        process.send_signal(number)
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (-number, "")
    assert "echo statistics ---" in out


@pytest.mark.parametrize("options", [[], ["-c", "0", "-i", "0"], ["--format", "nagios"]], ids=str)
def test_interruptions_at_random_moments(tmp_path: Path, options: list[str]) -> None:
    """From the start of the process on. What Python's own start-up makes of a signal is not ours."""
    shutil.copy(MODULE, tmp_path)
    py_compile.compile(str(tmp_path / MODULE.name))
    env = environment(PYTHONPATH=str(tmp_path))
    nagios = "nagios" in options
    runs = int(os.environ.get("DICOM_ECHO_INTERRUPTIONS", "200")) // 3
    with RawPeer(), silent_listener() as silent, RawPeer() as good:
        address = good.address if "0" in options else silent.address
        command = [sys.executable, "-m", "dicom_echo", address, "-t", "60", *options]

        def interrupt(number: signal.Signals, moment: float) -> None:
            process = subprocess.Popen(
                command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            time.sleep(moment)
            process.send_signal(number)
            if number == signal.SIGHUP:
                time.sleep(moment / 30)
                process.send_signal(number)
            out, err = process.communicate(timeout=PATIENCE)
            told = (number.name, moment, process.returncode, out, err)
            if "Traceback" in err or "Fatal Python error" in err:  # the latter before any Python code
                before_ours = ("from __future__ import", "import signal", "in getsignal")
                assert any(each in err for each in before_ours) or MODULE.name not in err, told
                assert number == signal.SIGINT, told
                return
            assert err == "", told
            if nagios and process.returncode == 3:
                assert re.fullmatch("DICOM ECHO UNKNOWN - interrupted.*\n", out), told
            else:
                assert process.returncode == -number, told
                assert out.count("\n") == 0 or not nagios, told
                assert "echo statistics" in out or "seq=" not in out, told

        failures: list[BaseException] = []

        def interrupt_many(numbers: random.Random) -> None:
            try:
                for _ in range(runs // 2):
                    interrupt(numbers.choice(ENDING), numbers.random() * 0.4)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=interrupt_many, args=(random.Random(seed),)) for seed in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []


# --- The shell -------------------------------------------------------------------------------------------------------


def test_a_shell_s_loop_around_the_command_ends_too(silent: Endpoint) -> None:
    """A shell goes on where a command that it waits for has an exit code of its own for Ctrl-C."""
    loop = 'for n in 1 2 3; do echo "round $n"; "$@"; done; echo after'
    command = ["bash", "-c", loop, "bash", *command_line(silent.address, "-t", "60")]
    with start_process(command, start_new_session=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "round 1\n"
        time.sleep(1.5)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does it
        out, _ = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (-signal.SIGINT, f"interrupted while waiting for {silent.address}\n")


def test_what_is_ignored_stays_ignored() -> None:
    """A shell starts what it puts into the background with SIGINT ignored; nohup does so with SIGHUP."""
    with RawPeer() as peer:
        script = 'trap "" INT HUP; "$@" & sleep 1; kill -INT $!; kill -HUP $!; wait $!; echo $?'
        outcome = in_shell(script, peer.address, "-c", 3, "-i", 1)
    assert outcome.out.endswith("\n0\n")
    assert "3 sent, 3 succeeded" in outcome.out


# --- In an application -----------------------------------------------------------------------------------------------


@ending
def test_main_returns_the_exit_code_and_leaves_the_handlers(
    capsys: pytest.CaptureFixture[str], silent: Endpoint, number: signal.Signals
) -> None:
    before = [signal.getsignal(each) for each in ENDING]
    timer = threading.Timer(0.3, os.kill, (os.getpid(), number))
    timer.start()
    with nothing_left_behind(patience=1):
        outcome = run_main(capsys, silent.address, "-t", 60)
    timer.join()
    assert outcome == Outcome(128 + number, f"interrupted while waiting for {silent.address}\n", "")
    assert [signal.getsignal(each) for each in ENDING] == before


def test_a_second_ctrl_c_is_a_keyboard_interrupt_and_leaves_nothing(silent: Endpoint) -> None:
    class Reader:
        """Does not take the last line until it is interrupted once more."""

        def write(self, text: str) -> int:
            if "interrupted" in text:
                time.sleep(0.2)
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(PATIENCE)
            return len(text)

    before, stdout = signal.getsignal(signal.SIGINT), sys.stdout
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    sys.stdout = Reader()
    try:
        with nothing_left_behind(patience=1), pytest.raises(KeyboardInterrupt):
            dicom_echo.main([silent.address, "-t", "60"])
    finally:
        sys.stdout = stdout
        timer.join()
    assert signal.getsignal(signal.SIGINT) == before


def test_probe_many_that_is_interrupted_leaves_nothing(silent: Endpoint) -> None:
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with nothing_left_behind(patience=1), pytest.raises(KeyboardInterrupt):
        list(dicom_echo.probe_many([silent.address, f"X@{silent.host_port}", "127.0.0.1:1"], timeout=60))
    timer.join()


UNFINISHED = """
import sys, time, dicom_echo
results = dicom_echo.probe_many(sys.argv[1:], timeout=60)
print(next(results).ok, flush=True)
time.sleep(60)
"""


def test_a_program_ends_that_is_interrupted_with_probe_many_unfinished(silent: Endpoint) -> None:
    """From Python 3.13 on, a daemon thread cannot be waited for any more when the interpreter ends."""
    with start_process([sys.executable, "-c", UNFINISHED, "127.0.0.1:1", silent.address]) as process:
        assert process.stdout
        assert process.stdout.readline() == "False\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=10)[1].endswith("KeyboardInterrupt\n")
    assert process.returncode == -signal.SIGINT
