"""`--format nagios` against the Monitoring Plugins guidelines (https://www.monitoring-plugins.org/doc/guidelines.html)."""

import contextlib
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from command import PATIENCE, Outcome, command_line, environment, run_main, run_process, start_process
from peers import Peer
from rawpeer import (
    GOOD_SCRIPT,
    Close,
    Pause,
    RawPeer,
    ReceiveSome,
    Script,
    Send,
    abort,
    associate_ac,
    associate_rj,
    closed_port,
    command_pdu,
    echo_rsp,
    echo_rsp_command,
    full_listener,
    script,
    silent_listener,
)

STATES = {"OK": 0, "WARNING": 1, "CRITICAL": 2, "UNKNOWN": 3}
REJECTING = script(accept=associate_rj(1, 1, 7))

# 'label'=value[UOM];[warn];[crit];[min];[max]: a label without spaces needs no quotes, two quotes stand for one; value,
# min and max in class [-0-9.]; warn and crit are ranges; trailing semicolons may be left out.
NUMBER = r"-?\d+(?:\.\d+)?"
RANGE = rf"@?(?:~:|(?:{NUMBER})?:)?(?:{NUMBER})?"
LABEL = r"(?:'(?:[^'=|]|'')+'|[^\s'=|]+)"
DATUM = rf"{LABEL}={NUMBER}(?:us|ms|s|%|[KMGT]?B|c)?(?:;{RANGE}(?:;{RANGE}(?:;(?:{NUMBER})?(?:;(?:{NUMBER})?)?)?)?)?"
DATA = re.compile(rf"{DATUM}(?: {DATUM})*")


class Plugin(NamedTuple):
    """What a monitoring system makes of a plugin's output."""

    state: str
    text: str
    details: list[str]
    data: list[str]


def parse(outcome: Outcome) -> Plugin:
    """Hold the output to the guidelines and take it apart."""
    assert outcome.out.endswith("\n")
    assert len(outcome.out.encode()) < 4096  # what old NRPE takes, and Nagios for one line
    first, *further = outcome.out.split("\n")[:-1]
    assert outcome.out.count("|") <= (2 if further else 1)
    text, _, data = first.partition(" | ")
    details = [line.partition(" | ")[0] for line in further]
    last_data = further[-1].partition(" | ")[2] if further else ""
    for each in filter(None, [data, last_data]):
        assert DATA.fullmatch(each), each
    assert all("|" not in line for line in further[:-1])
    found = re.fullmatch(r"DICOM ECHO (OK|WARNING|CRITICAL|UNKNOWN) - (.+)", text)
    assert found, text
    assert outcome.code == STATES[found[1]]
    quoted = re.findall(DATUM, f"{data} {last_data}")
    return Plugin(found[1], found[2], details, quoted)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> Plugin:
    """The plugin's output; nothing may be on standard error, which nobody reads."""
    outcome = run_main(capsys, "--format", "nagios", *arguments)
    assert outcome.err == ""
    return parse(outcome)


# --- One target ------------------------------------------------------------------------------------------------------


def test_ok_is_one_line_with_performance_data(capsys: pytest.CaptureFixture[str], lenient_peer: Peer) -> None:
    plugin = run(capsys, lenient_peer.address, "--warning", 5000, "--critical", 8000, "-t", 9)
    assert plugin.state == "OK"
    assert re.fullmatch(rf"{re.escape(lenient_peer.address)} answered in \d+\.\d ms", plugin.text)
    assert plugin.details == []
    assert re.fullmatch(r"time=0\.\d{4}s;5;8;0;9", plugin.data[0])
    phases = ["resolve", "connect", "associate", "echo", "release"]
    assert [datum.partition("=")[0] for datum in plugin.data[1:]] == phases
    assert all(re.fullmatch(r"\w+=\d\.\d{4}s;;;0", datum) for datum in plugin.data[1:])


SLOW = (Pause(0.1), *GOOD_SCRIPT)


@pytest.mark.parametrize(
    ("options", "state"),
    [
        ([], "OK"),
        (["--warning", "60000"], "OK"),
        (["--critical", "60000"], "OK"),
        (["--warning", "50"], "WARNING"),
        (["--warning", "50", "--critical", "60000"], "WARNING"),
        (["--critical", "50"], "CRITICAL"),
        (["--warning", "20", "--critical", "50"], "CRITICAL"),
        (["--warning", "0"], "WARNING"),
        (["--critical", "0"], "CRITICAL"),
    ],
    ids=" ".join,
)
def test_thresholds_are_milliseconds_for_the_whole_echo(
    capsys: pytest.CaptureFixture[str], options: list[str], state: str
) -> None:
    with RawPeer(SLOW) as peer:
        assert run(capsys, peer.address, *options).state == state


def test_a_release_that_fails_is_not_the_echo_s_time(capsys: pytest.CaptureFixture[str]) -> None:
    """It takes the second that is waited for the release, but the peer has answered before."""
    with RawPeer(script(release=None)) as peer:
        plugin = run(capsys, peer.address, "--critical", 900)
    assert plugin.state == "OK"
    assert float(plugin.data[0].removeprefix("time=").partition("s;")[0]) < 0.9


def test_of_several_echoes_the_failed_one_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with RawPeer(REJECTING, GOOD_SCRIPT) as peer:
        plugin = run(capsys, peer.address, "-c", 3, "-i", 0)
    assert plugin.state == "CRITICAL"
    assert plugin.text.endswith("Rejected: called AE title not recognized (2 of 3)")


@contextlib.contextmanager
def being_read(pipe: Path) -> Iterator[None]:
    """Wait until somebody reads a named pipe, and keep it open."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            descriptor = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
            break
        except OSError:  # nobody reads it yet
            assert time.monotonic() < end
            time.sleep(0.01)
    yield
    os.close(descriptor)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals and pipes")
def test_an_interruption_before_the_first_echo_is_unknown(tmp_path: Path) -> None:
    targets = tmp_path / "targets"
    os.mkfifo(targets)
    command = command_line("--format", "nagios", "-T", targets)
    with start_process(command) as process, being_read(targets):
        time.sleep(1)  # what comes just before a system call blocks is seen only after it
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=20)
    assert (process.returncode, out) == (3, "DICOM ECHO UNKNOWN - interrupted\n")


@pytest.mark.parametrize(
    ("played", "text"),
    [
        (REJECTING, "Rejected: called AE title not recognized"),
        (script(accept=abort()), "Aborted: "),
        (script(accept=Close()), "Connection lost: "),
        (script(echo=echo_rsp(1, 0x0122)), "status 0122H, SOP class not supported"),
        (script(accept=associate_ac([(1, 3, None)])), "Not supported: "),
        ((ReceiveSome(), Send(b"220 mail ESMTP\r\n"), Close()), "Protocol error: "),
    ],
    ids=["rejected", "aborted", "lost", "status", "not supported", "protocol"],
)
def test_a_failed_echo_is_critical(capsys: pytest.CaptureFixture[str], played: Script, text: str) -> None:
    with RawPeer(played) as peer:
        plugin = run(capsys, peer.address, "--critical", 60000)
        assert plugin.text.startswith(f"{peer.address}: {text}")
    assert (plugin.state, plugin.details, plugin.data) == ("CRITICAL", [], [])


@pytest.mark.parametrize("listener", [closed_port, full_listener, silent_listener])
def test_no_answer_is_critical(
    capsys: pytest.CaptureFixture[str], listener: Callable[[], AbstractContextManager[Any]]
) -> None:
    with listener() as endpoint:
        plugin = run(capsys, endpoint.address, "-t", 0.3)
    assert (plugin.state, plugin.data) == ("CRITICAL", [])


def test_a_name_that_is_not_resolved_is_critical(capsys: pytest.CaptureFixture[str]) -> None:
    plugin = run(capsys, "no-such-host.invalid")
    assert (plugin.state, plugin.text) == (
        "CRITICAL", "ANY-SCP@no-such-host.invalid:104: Unreachable: name not resolved",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("scripts", "state", "text"),
    [
        ([GOOD_SCRIPT], "OK", r".* answered in \d+\.\d ms \(3 of 3\)"),
        ([GOOD_SCRIPT, REJECTING, GOOD_SCRIPT], "CRITICAL", r".*\(2 of 3\)"),
        ([GOOD_SCRIPT, REJECTING], "CRITICAL", r".*: Rejected: .* \(1 of 3\)"),
    ],
)
def test_one_loss_in_several_echoes_is_critical(
    capsys: pytest.CaptureFixture[str], scripts: list[Script], state: str, text: str
) -> None:
    with RawPeer(*scripts) as peer:
        plugin = run(capsys, peer.address, "-c", 3, "-i", 0)
    assert plugin.state == state
    assert re.fullmatch(text, plugin.text)


# --- The format ------------------------------------------------------------------------------------------------------

HOSTILE = "| time=0s;;\nDICOM ECHO OK - fine\r\x1b[2J'=\u2028"


@pytest.mark.parametrize(
    "played",
    [
        script(echo=command_pdu(echo_rsp_command(1, 0x0110, error_comment=HOSTILE))),
        script(accept=associate_ac(version_name=HOSTILE)),
        (ReceiveSome(), Send(b"220 | x=1\nDICOM ECHO OK | y=2\n"), Close()),
        script(accept=associate_ac([(1, 0, "1.2|\n3")])),
    ],
    ids=["error comment", "version name", "banner", "transfer syntax"],
)
@pytest.mark.parametrize("number", [1, 2])
def test_hostile_text_cannot_break_the_line(capsys: pytest.CaptureFixture[str], played: Script, number: int) -> None:
    with RawPeer(played) as peer, RawPeer(played) as other:
        plugin = run(capsys, *[peer.address, other.address][:number])
    assert len(plugin.details) == (0 if number == 1 else 2)


def test_odd_titles_are_quoted_in_labels(capsys: pytest.CaptureFixture[str]) -> None:
    with RawPeer() as peer, RawPeer() as other:
        odd = [f"{title}@{peer.endpoint.host_port}" for title in ("A B", "A=B", "A'B", "A|B", "A;B", 'A"B')]
        plugin = run(capsys, *odd, other.address)
    assert (plugin.state, len(plugin.details)) == ("OK", 7)
    labels = [datum.rpartition("=")[0] for datum in plugin.data]
    assert len(labels) == 8
    assert all(re.fullmatch(LABEL, label) for label in labels)


@pytest.mark.parametrize(
    "options", [["-t", "80000"], ["--warning", "5000000000"], ["--critical", "1234567890"], ["--warning", "0.05"]],
    ids=" ".join,
)  # fmt: skip
def test_numbers_are_never_in_exponent_form(capsys: pytest.CaptureFixture[str], options: list[str]) -> None:
    with RawPeer() as peer:
        assert "e" not in run(capsys, peer.address, *options).data[0].removeprefix("time")


def test_the_output_can_be_encoded_in_ascii(tmp_path: Path) -> None:
    with RawPeer() as good, RawPeer(REJECTING) as bad:
        command = command_line("--format", "nagios", good.address, bad.address)
        outcome = run_process(command, environment(PYTHONIOENCODING="ascii"))
    assert outcome.out.isascii()
    assert parse(outcome).state == "CRITICAL"


# --- Several targets -------------------------------------------------------------------------------------------------


def test_of_several_targets_the_worst_comes_first(capsys: pytest.CaptureFixture[str]) -> None:
    with RawPeer() as good, RawPeer((Pause(0.4), *GOOD_SCRIPT)) as slow, RawPeer(REJECTING) as bad:
        addresses = [good.address, slow.address, bad.address]
        plugin = run(capsys, *addresses, "--warning", 300)
    good_address, slow_address, bad_address = addresses
    assert (plugin.state, plugin.text) == ("CRITICAL", "1 of 3 targets OK")
    assert [line.split(" - ")[0] for line in plugin.details] == ["CRITICAL", "WARNING", "OK"]
    for line, address in zip(plugin.details, [bad_address, slow_address, good_address], strict=True):
        assert address in line
    assert plugin.data[0] == "ok=1;;;0;3"
    assert [datum.rpartition("=")[0] for datum in plugin.data[1:]] == [f"'{slow_address}'", f"'{good_address}'"]


def test_several_targets_that_are_all_well(capsys: pytest.CaptureFixture[str]) -> None:
    with RawPeer() as one, RawPeer() as two:
        plugin = run(capsys, one.address, two.address)
    assert (plugin.state, plugin.text) == ("OK", "2 of 2 targets OK")


def test_a_label_is_used_once(capsys: pytest.CaptureFixture[str]) -> None:
    """A graph has one line for a label."""
    with RawPeer() as peer:
        plugin = run(
            capsys, peer.address, peer.address, f"A=@{peer.endpoint.host_port}", f"A'@{peer.endpoint.host_port}"
        )
    labels = [datum.rpartition("=")[0] for datum in plugin.data]
    assert len(labels) == len(set(labels))


# --- UNKNOWN ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["--format", "nagios"],
        ["--format=nagios"],
        ["--format", "nagios", "host:99999"],
        ["--format", "nagios", "host", "--no-such-option"],
        ["host", "-t", "soon", "--format", "nagios"],
        ["--format", "nagios", "host", "--warning", "x|y\nz"],
        ["--format", "nagios", "-q", "host"],
        ["--format", "nagios", "-T", "/no/such/file"],
        ["--format", "nagios", "host", "--output", "/no/such/folder/file"],
    ],
    ids=" ".join,
)
def test_a_usage_error_is_unknown_on_standard_output(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    outcome = run_main(capsys, *arguments)
    assert outcome.err == ""
    plugin = parse(outcome)
    assert (plugin.state, plugin.details, plugin.data) == ("UNKNOWN", [], [])


def test_all_errors_of_a_file_are_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "fleet").write_text("host:0\nhost:x|y\n")
    plugin = run(capsys, "-T", tmp_path / "fleet")
    assert (plugin.state, plugin.details) == ("UNKNOWN", [])


def test_a_host_that_is_called_nagios_does_not_make_it_a_plugin(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = run_main(capsys, "nagios", "-t", "soon")
    assert (outcome.code, outcome.out) == (2, "")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_check_is_unknown(number: signal.Signals) -> None:
    """As when the monitoring system ends a plugin that takes too long."""
    with RawPeer((ReceiveSome(),)) as silent:
        command = command_line("--format", "nagios", silent.address, "-t", 60)
        with start_process(command) as process:
            while not (silent.received and silent.received[0].raw):
                time.sleep(0.01)
            process.send_signal(number)
            out, _ = process.communicate(timeout=20)
    assert parse(Outcome(process.returncode, out, "")).state == "UNKNOWN"
