"""`--output`, which replaces a file as a whole or not at all."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from command import command_line, environment, run_main, start_process
from rawpeer import Conversation, RawPeer, ReceiveSome, closed_port, echo_rsp, script

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such files")


def test_readers_never_see_a_part_of_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "dicom.prom"
    stopping = threading.Event()
    seen: set[int] = set()

    def read() -> None:
        while not stopping.is_set():
            seen.add(file.read_text().count("\n"))

    with RawPeer() as peer:
        arguments = peer.address, "--format", "prometheus", "--output", file
        run_main(capsys, *arguments)
        whole = file.read_text().count("\n")
        reader = threading.Thread(target=read)
        reader.start()
        for _ in range(60):
            assert run_main(capsys, *arguments) == (0, "", "")
        stopping.set()
        reader.join()
    assert seen == {whole}
    assert [each.name for each in tmp_path.iterdir()] == ["dicom.prom"]


@pytest.mark.parametrize("form", ["text", "json", "nagios", "prometheus"])
def test_a_file_holds_what_standard_output_would(capsys: pytest.CaptureFixture[str], tmp_path: Path, form: str) -> None:
    with closed_port() as closed:
        code, out, _ = run_main(capsys, closed.address, "--format", form)
        assert run_main(capsys, closed.address, "--format", form, "--output", tmp_path / "file") == (code, "", "")
    written = (tmp_path / "file").read_text(encoding="utf-8")
    assert re.sub(r"[\d.:TZe-]+", "#", written) == re.sub(r"[\d.:TZe-]+", "#", out)


@posix_only
@pytest.mark.parametrize("form", ["json", "prometheus"])
def test_the_old_file_stays_when_an_interrupted_run_has_nothing_to_say(tmp_path: Path, form: str) -> None:
    """Half of the series would look as if the other targets were gone."""
    file = tmp_path / "dicom"
    file.write_text("old")
    with RawPeer() as good, RawPeer((ReceiveSome(),)) as silent:
        targets = [good.address, silent.address] if form == "prometheus" else [silent.address]
        with start_process(command_line(*targets, "-t", 60, "--format", form, "--output", file)) as process:
            while not (silent.received and silent.received[0].raw):
                time.sleep(0.01)
            if form == "prometheus":
                assert good.conversation(0, timeout=20).message_ids == [1]
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == -signal.SIGTERM
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


@posix_only
@pytest.mark.parametrize(
    ("before", "mask", "mode"),
    [(None, 0o022, 0o644), (None, 0o077, 0o600), (0o644, 0o077, 0o644), (0o640, 0o022, 0o640), (0o664, 0o022, 0o664)],
)
def test_the_mode_is_that_of_the_old_file_or_follows_the_umask(
    tmp_path: Path, before: int | None, mask: int, mode: int
) -> None:
    """node_exporter runs as another user and must be able to read the file."""
    file = tmp_path / "dicom.prom"
    if before is not None:
        file.touch()
        file.chmod(before)
    with RawPeer() as peer:
        command = command_line(peer.address, "--format", "prometheus", "--output", file)
        subprocess.run(command, env=environment(), umask=mask, check=True)
    assert stat.S_IMODE(file.stat().st_mode) == mode


@pytest.mark.parametrize(
    "wrong", [["host:99999"], ["host", "-t", "soon"], ["-T", "/no/such/file"], ["host", "--reuse"]], ids=" ".join
)
def test_the_old_file_stays_when_nothing_is_sent(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, wrong: list[str]
) -> None:
    file = tmp_path / "dicom.prom"
    file.write_text("old")
    assert run_main(capsys, *wrong, "--format", "prometheus", "--output", file).code == 2
    assert file.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["dicom.prom"]


def test_the_old_file_stays_until_the_new_one_is_whole(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "dicom.prom"
    file.write_text("old")
    seen: list[str] = []

    def answer(_conversation: Conversation) -> bytes:
        seen.append(file.read_text())
        return echo_rsp()

    with RawPeer(script(echo=answer)) as peer:
        run_main(capsys, peer.address, "--format", "json", "--output", file)
    assert seen == ["old"]
    assert file.read_text().startswith('{"schema_version"')


def test_what_a_killed_run_left_behind_does_no_harm(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """In a container, each run may have the same process id."""
    for name in (f".dicom.prom.{os.getpid()}.tmp", f".dicom.prom.{os.getpid()}"):
        (tmp_path / name).write_text("left behind")
    with RawPeer() as peer:
        outcome = run_main(capsys, peer.address, "--output", tmp_path / "dicom.prom")
    assert outcome == (0, "", "")
    assert "Success" in (tmp_path / "dicom.prom").read_text()


def test_a_file_that_cannot_be_written_is_told_before_anything_is_sent(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    with RawPeer() as peer:
        for bad in (tmp_path / "missing" / "file", tmp_path / "folder"):
            outcome = run_main(capsys, peer.address, "--output", bad)
            assert (outcome.code, outcome.out) == (2, "")
            assert outcome.err.startswith(f"dicom-echo: cannot write {bad}: ")
        assert peer.received == []
    assert [each.name for each in tmp_path.iterdir()] == ["folder"]


@posix_only
def test_a_file_that_is_no_file_is_not_replaced(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """As /dev/null and /dev/stdout are not: root could."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with RawPeer() as peer:
            run_main(capsys, peer.address, "--output", pipe)
        assert stat.S_ISFIFO(pipe.stat().st_mode)
    finally:
        os.close(reader)
