"""SIGINT, SIGTERM and SIGHUP: whatever they meet, the results are told, and the process ends by that signal.

A peer that sends the signal when it is asked knows the moment: it runs in this process, and so does the command then.
That the process ends by the signal is shown by processes of their own.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import io
import os
import py_compile
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import rawpeer
from command import MODULE, PATIENCE, REFUSED, command_line, environment, posix, run_main, start_process
from leaks import nothing_left_behind
from rawpeer import A_ASSOCIATE_RQ, P_DATA_TF, Conversation, RawPeer, Script, script, silent_listener

import dicom_echo

Capsys = pytest.CaptureFixture[str]

pytestmark = posix

ENDING = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP] if os.name == "posix" else []
ending = pytest.mark.parametrize("number", ENDING)


def interrupt(echo: int = 1) -> Callable[[Conversation], bytes]:
    """A peer's answer that is none, but a Ctrl-C for this process; to an earlier echo, a good one."""

    def answer(conversation: Conversation) -> bytes:
        if conversation.message_ids and conversation.message_ids[-1] < echo:
            return rawpeer.answer_echo(conversation)
        os.kill(os.getpid(), signal.SIGINT)
        return b""

    return answer


def interrupted(capsys: Capsys, *arguments: object) -> str:
    """What the command prints when a peer interrupts it; it leaves nothing behind, and the handlers as they were."""
    before = [signal.getsignal(each) for each in ENDING]
    with nothing_left_behind(patience=1):
        code, out, err = run_main(capsys, *arguments)
    assert (code, err) == (130, "")
    assert [signal.getsignal(each) for each in ENDING] == before
    return out


def wait_until_asked(peer: RawPeer, process: subprocess.Popen[str]) -> None:
    """Wait until a process has sent a peer something."""
    while not (peer.received and peer.received[0].raw):
        assert process.poll() is None
        time.sleep(0.005)


# --- At every stage --------------------------------------------------------------------------------------------------


LINE = "interrupted while waiting for ADDRESS\n"
STATISTICS = r"""C-ECHO to ADDRESS as ECHOSCU
(seq=.*\n){5}--- ADDRESS echo statistics ---
5 sent, 5 succeeded, 0% loss, time \d+ ms, 1 under way when interrupted
(.*\n)+"""
# What the peer does, the options, and an expression for all that is printed.
STAGES: dict[str, tuple[Script, str, str]] = {
    "association": (script(accept=interrupt()), "", LINE),
    "echo": (script(echo=interrupt()), "", LINE),
    "release": (script(release=interrupt()), "", f"{LINE}|✅ Success\n"),  # the verdict may have been told by then
    "waiting": ((A_ASSOCIATE_RQ, interrupt(), rawpeer.close), "--wait 3600", LINE),
    "sixth of many": (script(echo=interrupt(echo=6)), "-c 0 -i 0", STATISTICS),
    "sixth of many over one association": (
        (A_ASSOCIATE_RQ, rawpeer.accept_proposal, *(P_DATA_TF, interrupt(echo=6)) * 6),
        "-c 0 -i 0 --reuse", STATISTICS),
}  # fmt: skip


@pytest.mark.parametrize(("played", "options", "told"), STAGES.values(), ids=STAGES)
def test_what_there_is_is_told(capsys: Capsys, played: Script, options: str, told: str) -> None:
    with RawPeer(played) as peer:
        out = interrupted(capsys, peer.address, "-t", 60, *options.split())
        assert re.fullmatch(told.replace("ADDRESS", peer.address), out)


def test_a_fleet_prints_what_it_has(capsys: Capsys) -> None:
    """Silent peers and a long time limit do not hold it back."""
    with RawPeer(script(echo=interrupt(echo=3))) as last, silent_listener() as silent, rawpeer.full_listener() as full:
        addresses = [REFUSED, silent.address, full.address, last.address]
        out = interrupted(capsys, *addresses, "-t", 3600, "-c", 0, "-i", 0.01)
    assert REFUSED in out
    # The last three are always under way, the first may be.
    assert re.search(r"\d+ echoes: .*; interrupted with [34] under way\n$", out)


@pytest.mark.parametrize("pause", [0.0, 0.15])
def test_a_second_signal_does_what_it_would_have_done_without_us(pause: float) -> None:
    """At once, they are one: so they come when a terminal, or a supervisor, signals a process and then its group."""

    class Reader(io.StringIO):
        """Sends two signals when it is given the first line."""

        def write(self, text: str) -> int:
            if text.startswith("C-ECHO to"):
                signal.raise_signal(signal.SIGINT)
                time.sleep(pause)
                signal.raise_signal(signal.SIGINT)
            return super().write(text)

    with silent_listener() as silent, pytest.MonkeyPatch.context() as patched, nothing_left_behind(patience=1):
        patched.setattr(sys, "stdout", reader := Reader())
        with pytest.raises(KeyboardInterrupt) if pause else contextlib.nullcontext():
            assert dicom_echo.main([silent.address, "-c", "0", "-t", "60"]) == 130
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    assert ("0 sent, 0 succeeded" in reader.getvalue()) == (not pause)


def test_probe_many_that_is_interrupted_leaves_nothing() -> None:
    with RawPeer((A_ASSOCIATE_RQ, rawpeer.pause(0.1), interrupt())) as peer:
        addresses = [peer.address, f"X@{peer.endpoint.host_port}", REFUSED]
        with nothing_left_behind(patience=1), pytest.raises(KeyboardInterrupt):
            list(dicom_echo.probe_many(addresses, timeout=60))


# --- The process -----------------------------------------------------------------------------------------------------


@ending
def test_the_process_ends_by_the_signal(number: signal.Signals) -> None:
    with RawPeer() as peer, start_process(command_line(peer.address, "-c", 0, "-i", 3600)) as process:
        assert process.stdout
        while "seq=1 " not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(number)
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (-number, "")
    assert "1 sent, 1 succeeded, 0% loss" in out


def test_an_interrupted_check_is_unknown() -> None:
    peer = RawPeer((None,))
    with peer, start_process(command_line(peer.address, "-t", 60, "--format", "nagios")) as process:
        wait_until_asked(peer, process)
        process.send_signal(signal.SIGTERM)
        told = process.communicate(timeout=PATIENCE)
    assert (process.returncode, told) == (3, ("DICOM ECHO UNKNOWN - interrupted after 0 of 1 targets\n", ""))


@ending
@pytest.mark.parametrize("arguments", ["--jwt-file - 127.0.0.1:1", "-T - --format nagios"])
def test_while_standard_input_is_read(number: signal.Signals, arguments: str) -> None:
    import fcntl
    import termios

    with start_process(command_line(*arguments.split()), stdin=subprocess.PIPE) as process:
        assert process.stdin
        process.stdin.write("# a comment\n")
        process.stdin.flush()
        while any(fcntl.ioctl(process.stdin, termios.FIONREAD, bytes(4))):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
        assert process.wait(PATIENCE) == (3 if "nagios" in arguments else -number)
        out, err = process.communicate()
    assert (out, err) == ("DICOM ECHO UNKNOWN - interrupted\n" if "nagios" in arguments else "", "")


@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
def test_a_reader_that_blocks_the_output_holds_an_interruption_back_for_a_second_at_most(twice: bool) -> None:
    """A second Ctrl-C ends it at once."""
    import fcntl

    reader, writer = os.pipe()
    fcntl.fcntl(writer, getattr(fcntl, "F_SETPIPE_SZ", 1031), 4096)
    with start_process(command_line(REFUSED, "-c", 0, "-i", 0), writer) as process:
        while select.select([], [writer], [], 0)[1]:
            time.sleep(0.05)
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        if twice:
            time.sleep(0.2)
            process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=5)
    assert (process.returncode, err) == (-signal.SIGINT, "")
    assert (time.monotonic() - began < 1.0) == twice  # the first alone takes longer
    os.close(reader)
    os.close(writer)


def test_interruptions_at_random_moments(tmp_path: Path) -> None:
    """From the start of the process on. What Python's own start-up makes of a signal is not ours."""
    shutil.copy(MODULE, tmp_path)
    py_compile.compile(str(tmp_path / MODULE.name))
    runs = int(os.environ.get("DICOM_ECHO_INTERRUPTIONS", "45"))

    def run(moment: float, options: list[str]) -> None:
        address = good.address if "0" in options else silent.address
        number = random.choice(ENDING)
        command, env = command_line(address, "-t", 60, *options), environment(PYTHONPATH=str(tmp_path))
        with start_process(command, env=env) as process:
            time.sleep(moment)
            process.send_signal(number)
            if number == signal.SIGHUP:
                time.sleep(moment / 30)
                process.send_signal(number)
            out, err = process.communicate(timeout=PATIENCE)
        told = (number.name, moment, process.returncode, out, err)
        if "KeyboardInterrupt" in err or "Fatal Python error" in err:  # the latter before any Python code
            before_ours = ('"""Send a DICOM', "from __future__ import", "import signal", "in getsignal")
            assert any(each in err for each in before_ours) or MODULE.name not in err, told
            assert number == signal.SIGINT, told
        elif "nagios" in options and process.returncode == 3:
            assert re.fullmatch("DICOM ECHO UNKNOWN - interrupted.*\n", out), told
        else:
            assert (process.returncode, err) == (-number, ""), told
            assert out == "" or "nagios" not in options, told
            assert "echo statistics" in out or "seq=" not in out, told

    with silent_listener() as silent, RawPeer() as good, concurrent.futures.ThreadPoolExecutor(2) as pool:
        options = [[], ["-c", "0", "-i", "0"], ["--format", "nagios"]] * runs
        moments = [(n + random.random()) / runs * 0.3 for n in range(runs)]
        list(pool.map(run, moments, options))


UNFINISHED = """
import sys, time, dicom_echo
results = dicom_echo.probe_many(sys.argv[1:], timeout=60)
print(next(results).ok, flush=True)
time.sleep(60)
"""


def test_a_program_ends_that_is_interrupted_with_probe_many_unfinished() -> None:
    """From Python 3.13 on, a daemon thread cannot be waited for any more when the interpreter ends."""
    program = [sys.executable, "-c", UNFINISHED, REFUSED]
    with silent_listener() as silent, start_process([*program, silent.address]) as process:
        assert process.stdout
        assert process.stdout.readline() == "False\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=10)[1].endswith("KeyboardInterrupt\n")
    assert process.returncode == -signal.SIGINT


def test_what_is_ignored_stays_ignored() -> None:
    """A shell starts what it puts into the background with SIGINT ignored; nohup does so with SIGHUP."""
    with RawPeer() as peer:
        command = ["bash", "-c", 'trap "" INT HUP; exec "$@"', "bash", *command_line(peer.address, "-c", 2, "-i", 0.3)]
        with start_process(command) as process:
            wait_until_asked(peer, process)
            process.send_signal(signal.SIGINT)
            process.send_signal(signal.SIGHUP)
            out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert "2 sent, 2 succeeded" in out
