"""`--format prometheus`, read by promtool and by a real node_exporter; and `--output`, which replaces a file whole."""

import os
import re
import signal
import stat
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import command_line, environment, run_main, start_process
from conftest import require
from peers import Peer, TlsFiles, becomes_ready, free_port, stop
from rawpeer import GOOD_SCRIPT, Conversation, RawPeer, ReceiveSome, associate_rj, closed_port, echo_rsp, script

REJECTING = script(accept=associate_rj(1, 1, 7))
posix_only = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such files")


@pytest.fixture(scope="session")
def promtool() -> str:
    """The path of Prometheus's promtool."""
    return require("promtool", "prometheus")


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The metrics of a run."""
    outcome = run_main(capsys, "--format", "prometheus", *arguments)
    assert outcome.err == ""
    return outcome.out


def check(promtool: str, metrics: str) -> None:
    """promtool finds nothing."""
    done = subprocess.run(
        [promtool, "check", "metrics"], input=metrics.encode(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        timeout=20, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout.decode()) == (0, ""), metrics


def samples(metrics: str) -> dict[str, float]:
    """Each series with its value."""
    rows = [line for line in metrics.splitlines() if not line.startswith("#")]
    found = {row.rpartition(" ")[0]: float(row.rpartition(" ")[2]) for row in rows}
    assert len(found) == len(rows), "a series twice"
    return found


# --- The format ------------------------------------------------------------------------------------------------------


def test_success(capsys: pytest.CaptureFixture[str], promtool: str, lenient_peer: Peer) -> None:
    metrics = run(capsys, lenient_peer.address)
    check(promtool, metrics)
    found = samples(metrics)
    labels = f'{{target="{lenient_peer.address}",called_ae="{lenient_peer.ae_title}",calling_ae="ECHOSCU"'
    assert found[f"dicom_echo_success{labels}}}"] == 1
    assert found[f"dicom_echo_status_code{labels}}}"] == 0
    phases = {name: found[f'dicom_echo_phase_duration_seconds{labels},phase="{name}"}}']
              for name in ("resolve", "connect", "associate", "echo", "release")}  # fmt: skip
    assert len(found) == 8
    assert found[f"dicom_echo_duration_seconds{labels}}}"] == pytest.approx(sum(phases.values()), abs=1e-5)
    assert all(0 < seconds < 5 for seconds in phases.values())


def test_a_failure_has_no_status(capsys: pytest.CaptureFixture[str], promtool: str) -> None:
    with closed_port() as closed:
        metrics = run(capsys, closed.address)
    check(promtool, metrics)
    assert "dicom_echo_status_code" not in metrics
    assert [value for name, value in samples(metrics).items() if name.startswith("dicom_echo_success")] == [0]


def test_a_failing_status_is_shown(capsys: pytest.CaptureFixture[str], promtool: str) -> None:
    with RawPeer(script(echo=echo_rsp(1, 0x0122))) as peer:
        metrics = run(capsys, peer.address)
    check(promtool, metrics)
    assert [value for name, value in samples(metrics).items() if "_status_code" in name] == [0x0122]


def test_the_expiry_of_a_certificate_is_shown(
    capsys: pytest.CaptureFixture[str], promtool: str, tls_scp: Peer, tls_files: TlsFiles
) -> None:
    metrics = run(capsys, tls_scp.address, "--tls", "--cacert", tls_files.authority)
    check(promtool, metrics)
    [expiry] = [value for name, value in samples(metrics).items() if "_tls_certificate_expiry_timestamp" in name]
    assert expiry > time.time()
    unverified = samples(run(capsys, tls_scp.address, "--tls", "-k"))
    assert [value for name, value in unverified.items() if "_tls_certificate_expiry_timestamp" in name] == [expiry]


def test_a_fleet_has_each_metric_once(
    capsys: pytest.CaptureFixture[str], promtool: str, storescp: Peer, pynetdicom_scp: Peer
) -> None:
    with RawPeer(REJECTING) as bad, closed_port() as closed:
        peers = [storescp.address, pynetdicom_scp.address, bad.address, closed.address]
        metrics = run(capsys, *peers, "-c", 2, "-i", 0)
    check(promtool, metrics)
    assert len(re.findall("^# TYPE", metrics, re.MULTILINE)) == len(set(re.findall("^# TYPE .*", metrics, re.M))) == 4
    success = {name: value for name, value in samples(metrics).items() if name.startswith("dicom_echo_success")}
    assert sorted(success.values()) == [0, 0, 1, 1]
    assert all(any(f'target="{address}"' in name for name in success) for address in peers)


@pytest.mark.parametrize("title", ['A"B', 'say "hi"', "A{B}", "A,B=C", "#A", "A'B"])
def test_label_values_are_escaped(capsys: pytest.CaptureFixture[str], promtool: str, title: str) -> None:
    with RawPeer() as peer:
        metrics = run(capsys, f"{title}@{peer.endpoint.host_port}", "-aet", title)
    check(promtool, metrics)
    quoted = title.replace('"', '\\"')
    assert f'called_ae="{quoted}",calling_ae="{quoted}"' in metrics


def test_a_target_twice_has_one_series(capsys: pytest.CaptureFixture[str], promtool: str) -> None:
    with RawPeer() as peer:
        metrics = run(capsys, peer.address, peer.address, f"OTHER@{peer.endpoint.host_port}")
    check(promtool, metrics)
    assert len(samples(metrics)) == 16


# --- node_exporter ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exporter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A node_exporter with its textfile collector only: the folder that it reads, and where it serves."""
    program = require("prometheus-node-exporter", "prometheus-node-exporter")
    folder = tmp_path_factory.mktemp("textfile")
    log = tmp_path_factory.mktemp("exporter") / "log.txt"
    port = free_port()
    command = [
        program, "--collector.disable-defaults", "--collector.textfile", f"--collector.textfile.directory={folder}",
        f"--web.listen-address=127.0.0.1:{port}", "--web.disable-exporter-metrics",
    ]  # fmt: skip
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        assert becomes_ready(process, port, log), log.read_text()
        yield folder, f"http://127.0.0.1:{port}/metrics"
    finally:
        stop(process)


def scrape(url: str) -> str:
    """What Prometheus would get."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=20) as response:
        return str(response.read().decode())


def test_a_node_exporter_serves_the_metrics(
    capsys: pytest.CaptureFixture[str], exporter: tuple[Path, str], storescp: Peer, tls_scp: Peer, tls_files: TlsFiles
) -> None:
    folder, url = exporter
    options = "--format", "prometheus", "--output"
    with RawPeer(REJECTING) as bad, closed_port() as closed:
        peers = [storescp.address, bad.address, closed.address, f'"@{storescp.host_port}']
        assert run_main(capsys, *peers, *options, folder / "dicom.prom") == (3, "", "")
    tls = ["--tls", "--cacert", tls_files.authority]
    assert run_main(capsys, tls_scp.address, *tls, *options, folder / "tls.prom").code == 0
    served = scrape(url)
    assert "\nnode_textfile_scrape_error 0\n" in served
    ours = [line for line in served.splitlines() if line.startswith("dicom_echo_")]
    written = samples((folder / "dicom.prom").read_text() + (folder / "tls.prom").read_text())
    assert len(ours) == len(written)
    values = sorted(float(line.rpartition(" ")[2]) for line in ours)
    assert values == pytest.approx(sorted(written.values()))
    assert f'called_ae="STORESCP",calling_ae="ECHOSCU",target="{storescp.address}"}} 1' in served


def test_a_node_exporter_does_not_read_a_file_that_is_being_written(
    capsys: pytest.CaptureFixture[str], exporter: tuple[Path, str]
) -> None:
    """The temporary file has another ending, and what is in its place meanwhile is the old file."""
    folder, url = exporter
    stopping = threading.Event()
    scraped: list[str] = []

    def read() -> None:
        while not stopping.is_set():
            scraped.append(scrape(url))

    with RawPeer() as peer:
        arguments = peer.address, "--format", "prometheus", "--output", folder / "dicom.prom"
        run_main(capsys, *arguments)
        reader = threading.Thread(target=read)
        reader.start()
        for _ in range(40):
            run_main(capsys, *arguments)
        stopping.set()
        reader.join()
    assert scraped
    assert all("\nnode_textfile_scrape_error 0\n" in text and "dicom_echo_success{" in text for text in scraped)


# --- --output --------------------------------------------------------------------------------------------------------


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


def test_of_several_echoes_one_that_failed_counts(capsys: pytest.CaptureFixture[str]) -> None:
    with RawPeer(REJECTING, GOOD_SCRIPT) as peer:
        outcome = run_main(capsys, peer.address, "--format", "prometheus", "-c", 2, "-i", 0)
    assert outcome.code == 1
    assert re.search(r"^dicom_echo_success\{.*\} 0$", outcome.out, re.MULTILINE)


@posix_only
@pytest.mark.parametrize("form", ["text", "json", "prometheus"])
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
            assert process.wait(20) == 143
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


@posix_only
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_mode_follows_the_umask(tmp_path: Path, mask: int, mode: int) -> None:
    """node_exporter runs as another user and must be able to read the file."""
    file = tmp_path / "dicom.prom"
    file.touch(0o600)
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
