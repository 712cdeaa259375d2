"""JSON Lines: every line of every kind of result is what tests/schema.json says."""

import contextlib
import copy
import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from command import Outcome, command_line, run_main, run_process, start_process
from peers import Peer, TlsFiles
from rawpeer import (
    GOOD_SCRIPT,
    Close,
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

SCHEMA = json.loads(Path(__file__).with_name("schema.json").read_text(encoding="utf-8"))
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)

HTTP = (ReceiveSome(), Send(b"HTTP/1.1 400 Bad Request\r\n\r\n"), Close())
RUDE = '\x1b[2J\r\n| \u2028 \udcff "quoted" \\'.encode("utf-8", "surrogateescape").decode("latin-1")


def valid(outcome: Outcome) -> list[dict[str, Any]]:
    """Every line of the output as an object, held to the schema."""
    assert outcome.out.isascii()
    lines: list[dict[str, Any]] = [json.loads(line) for line in outcome.out.splitlines()]
    for line in lines:
        VALIDATOR.validate(line)
    return lines


def run_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[dict[str, Any]]:
    """The objects of a run that says nothing else."""
    outcome = run_main(capsys, "--format", "json", *arguments)
    assert outcome.err == ""
    return valid(outcome)


SCRIPTS: dict[str, tuple[str, Script]] = {
    "success": ("ok", GOOD_SCRIPT),
    "notes": ("ok", script(release=abort())),
    "error comment": ("status", script(echo=command_pdu(echo_rsp_command(1, 0x0110, error_comment="disk full")))),
    "rude error comment": ("status", script(echo=command_pdu(echo_rsp_command(1, 0x0110, error_comment=RUDE)))),
    "known status": ("status", script(echo=echo_rsp(1, 0x0122))),
    "unknown status": ("status", script(echo=echo_rsp(1, 0xFFFE))),
    "nameless": ("ok", script(accept=associate_ac(version_name=None, max_length=None))),
    "unlimited": ("ok", script(accept=associate_ac(max_length=0))),
    "rude name": ("ok", script(accept=associate_ac(version_name='|\x1b[2J\n"'))),
    "rejected": ("rejected", script(accept=associate_rj(1, 1, 7))),
    "rejected for reserved reasons": ("rejected", script(accept=associate_rj(255, 255, 255))),
    "not supported": ("not-supported", script(accept=associate_ac([(1, 3, None)]))),
    "aborted": ("aborted", script(accept=abort(2, 1))),
    "aborted for reserved reasons": ("aborted", script(echo=abort(255, 255))),
    "closed": ("lost", script(accept=Close())),
    "closed later": ("lost", script(echo=Close())),
    "HTTP": ("protocol", HTTP),
    "wrong message id": ("protocol", script(echo=echo_rsp(2))),
    "junk": ("protocol", script(accept=bytes(range(200, 255)))),
}


@pytest.mark.parametrize(("kind", "played"), SCRIPTS.values(), ids=list(SCRIPTS))
def test_every_kind_of_result_is_a_valid_line(capsys: pytest.CaptureFixture[str], kind: str, played: Script) -> None:
    with RawPeer(played) as peer:
        [line] = run_json(capsys, peer.address)
        assert line["target"] == peer.address
        assert line["remote"] == peer.endpoint.host_port
    assert kind_of(line) == kind
    released = not any("while releasing" in note for note in line["notes"])
    counted = [ms for phase, ms in line["phases_ms"].items() if released or phase != "release"]
    assert line["total_ms"] == pytest.approx(sum(counted), abs=0.01)


def kind_of(line: dict[str, Any]) -> str:
    """The verdict in a line."""
    return str(line["error"]["kind"]) if line["error"] else "ok"


@pytest.mark.parametrize(
    ("listener", "kind", "phase"),
    [(closed_port, "unreachable", "connect"), (full_listener, "timeout", "connect"),
     (silent_listener, "timeout", "associate")],
)  # fmt: skip
def test_no_answer_is_a_valid_line(
    capsys: pytest.CaptureFixture[str],
    listener: Callable[[], contextlib.AbstractContextManager[Any]],
    kind: str,
    phase: str,
) -> None:
    with listener() as endpoint:
        [line] = run_json(capsys, endpoint.address, "-t", 0.3)
    assert (kind_of(line), line["error"]["phase"]) == (kind, phase)


def test_a_name_that_is_not_resolved_is_a_valid_line(capsys: pytest.CaptureFixture[str]) -> None:
    [line] = run_json(capsys, "no-such-host.invalid")
    assert (kind_of(line), line["error"]["phase"], line["remote"]) == ("unreachable", "resolve", None)


def test_real_peers_give_valid_lines(capsys: pytest.CaptureFixture[str], real_peer: Peer) -> None:
    [line] = run_json(capsys, real_peer.address)
    assert line["ok"]
    assert line["peer"]["implementation_version_name"]


def test_tls_gives_valid_lines(capsys: pytest.CaptureFixture[str], tls_scp: Peer, tls_files: TlsFiles) -> None:
    [verified] = run_json(capsys, tls_scp.address, "--tls", "--cacert", tls_files.authority)
    [unverified] = run_json(capsys, tls_scp.address, "--tls", "-k")
    [refused] = run_json(capsys, tls_scp.address, "--tls")
    assert verified["tls"].pop("certificate_verified")
    assert not unverified["tls"].pop("certificate_verified")
    assert verified["tls"] == unverified["tls"]
    assert (kind_of(refused), refused["tls"]) == ("tls", None)


def test_ipv6_gives_a_valid_line(capsys: pytest.CaptureFixture[str], ipv6: str) -> None:
    with RawPeer(host=ipv6) as peer:
        [line] = run_json(capsys, peer.address)
    assert (line["host"], line["local"].rpartition(":")[0]) == (ipv6, f"[{ipv6}]")


# --- Several echoes --------------------------------------------------------------------------------------------------


def test_a_single_echo_has_no_summary(capsys: pytest.CaptureFixture[str]) -> None:
    with RawPeer() as peer:
        assert [line["type"] for line in run_json(capsys, peer.address)] == ["echo"]


@pytest.mark.parametrize("reuse", [[], ["--reuse"]])
def test_repeats_end_with_a_summary(capsys: pytest.CaptureFixture[str], reuse: list[str]) -> None:
    with RawPeer() as peer:
        *echoes, summary = run_json(capsys, peer.address, "-c", 3, "-i", 0, *reuse)
    assert [line["message_id"] for line in echoes] == [1, 2, 3]
    assert (summary["type"], summary["sent"], summary["succeeded"]) == ("summary", 3, 3)
    assert (summary["kinds"], summary["loss_percent"]) == ({"ok": 3}, 0)
    totals = [line["total_ms"] for line in echoes]
    times = summary["times_ms"]
    assert [times["minimum"], times["maximum"]] == [min(totals), max(totals)]
    assert times["average"] == pytest.approx(sum(totals) / 3, abs=0.01)


def test_a_fleet_ends_with_a_summary(capsys: pytest.CaptureFixture[str]) -> None:
    with RawPeer() as good, RawPeer(SCRIPTS["rejected"][1]) as bad, closed_port() as closed:
        *echoes, summary = run_json(capsys, good.address, bad.address, closed.address, "-c", 2, "-i", 0)
    assert len(echoes) == 6
    assert (summary["sent"], summary["succeeded"], summary["loss_percent"]) == (6, 2, 66.667)
    assert summary["kinds"] == {"ok": 2, "rejected": 2, "unreachable": 2}


def test_a_summary_without_success_has_no_times(capsys: pytest.CaptureFixture[str]) -> None:
    with closed_port() as closed:
        summary = run_json(capsys, closed.address, "-c", 2, "-i", 0)[-1]
    assert (summary["times_ms"], summary["loss_percent"]) == (None, 100)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_ends_with_a_summary(number: signal.Signals, code: int) -> None:
    with RawPeer() as peer:
        command = command_line(peer.address, "-c", 0, "-i", 0.05, "--format", "json")
        with start_process(command) as process:
            peer.conversation(2, timeout=20)
            time.sleep(0.1)
            process.send_signal(number)
            out, _ = process.communicate(timeout=20)
    *echoes, summary = valid(Outcome(process.returncode, out, ""))
    assert (process.returncode, summary["type"], summary["sent"]) == (code, "summary", len(echoes))


def test_standard_output_holds_nothing_else() -> None:
    """Not even with -d, which shows every byte on standard error."""
    with RawPeer() as peer:
        outcome = run_process(command_line("-d", "--format", "json", peer.address))
    assert len(valid(outcome)) == 1
    assert "A-ASSOCIATE-RQ" in outcome.err


# --- The schema itself -----------------------------------------------------------------------------------------------


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def change(path: str, value: object) -> Callable[[dict[str, Any]], None]:
    """What puts a value into a line."""

    def apply(line: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        for parent in parents:
            line = line[parent]
        line[last] = value

    return apply


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("surplus", 1), ("schema_version", 2), ("ok", True), ("status", 0), ("status", "0"), ("time", "2026-11-22"),
        ("port", 0), ("message_id", 65536), ("error", None), ("error.kind", "address"), ("error.kind", "aborted"),
        ("error.phase", None), ("error.surplus", 1), ("error.reason", 256), ("phases_ms.other", 1.0),
        ("phases_ms.echo", -1), ("notes", None), ("local", "somewhere"), ("label", ""),
    ],
)  # fmt: skip
def test_the_schema_refuses_what_is_wrong(capsys: pytest.CaptureFixture[str], path: str, value: object) -> None:
    with RawPeer(SCRIPTS["rejected"][1]) as peer:
        [line] = run_json(capsys, peer.address)
    wrong = copy.deepcopy(line)
    change(path, value)(wrong)
    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate(wrong)
