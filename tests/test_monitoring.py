"""What README gives to whoever sets up monitoring is tried: by Icinga 2, a node exporter, promtool, and as commands.

Icinga runs as whoever runs the tests, in a temporary folder and without a listener: its checker and its writer of
performance data are all that it loads.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import rawpeer
from command import MODULE, PATIENCE, Outcome, run_process
from conftest import require
from peers import Peer, becomes_ready, free_port, stop

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the plugin is a script of the shell")

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
ARCHIVE = ROOT / "dist" / "dicom-echo.pyz"


def block(language: str) -> str:
    (only,) = re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return str(only)


def snippet(pattern: str) -> str:
    """What the parentheses of a pattern match in README, its lines joined."""
    (only,) = re.findall(pattern, README.replace("\n", " "))
    return str(only)


@pytest.fixture
def plugins(tmp_path: Path) -> Path:
    """A folder with the commands `dicom-echo` and `dicom-echo.pyz`: the archive where one is built of this module."""
    folder = tmp_path / "plugins"
    folder.mkdir()
    script = folder / "dicom-echo"
    arguments = f'{shlex.quote(sys.executable)} -m dicom_echo "$@"'
    script.write_text(f"#!/bin/sh\nPYTHONPATH={shlex.quote(str(MODULE.parent))} exec {arguments}\n", encoding="utf-8")
    script.chmod(0o755)
    is_built = ARCHIVE.exists() and ARCHIVE.stat().st_mtime > (ROOT / "dicom_echo.py").stat().st_mtime
    shutil.copy(ARCHIVE if is_built else script, folder / "dicom-echo.pyz")
    (folder / "dicom-echo.pyz").chmod(0o755)
    return folder


# --- Icinga ----------------------------------------------------------------------------------------------------------

ICINGA = """\
const NodeName = "here"
const PluginDir = "{folder}/plugins"
include "command.conf"
object CheckerComponent "checker" {{ }}
object PerfdataWriter "perfdata" {{
  service_perfdata_path = "{folder}/perfdata/services"
  service_temp_path = "{folder}/perfdata.tmp"
  service_format_template = "$service.name$\\t$service.state$\\t$service.output$\\t$service.perfdata$"
  host_perfdata_path = "{folder}/hosts"
  host_temp_path = "{folder}/hosts.tmp"
  rotation_interval = 0.1
}}
object Host "pacs" {{
  address = "127.0.0.1"
  check_command = "dicom_echo"
  enable_active_checks = false
  vars.dicom_address = "[$address$]:{port}"
}}
template Service "echo" {{
  host_name = "pacs"
  check_command = "dicom_echo"
  check_interval = 1
  max_check_attempts = 1
}}
object Service "good" {{
  import "echo"
  vars.dicom_called = "{ae_title}"
  vars.dicom_calling = "ICINGA"
  vars.dicom_warning = 5000
  vars.dicom_critical = 8000
}}
object Service "bad" {{
  import "echo"
  vars.dicom_called = "WRONG"
}}
object Service "usage" {{
  import "echo"
  vars.dicom_timeout = "soon"
}}
object Host "modality" {{
  address = "127.0.0.9"
  check_command = "dicom_echo"
  enable_active_checks = false
}}
object Service "defaults" {{
  import "echo"
  host_name = "modality"
}}
"""


@contextlib.contextmanager
def run_icinga(program: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Icinga 2 with the configuration in a folder, to which everything that it writes goes."""
    import grp
    import pwd

    user, group = pwd.getpwuid(os.getuid()).pw_name, grp.getgrgid(os.getgid()).gr_name
    constants = {"ConfigDir": folder, "RunAsUser": user, "RunAsGroup": group}
    for name in ("DataDir", "LogDir", "CacheDir", "SpoolDir", "InitRunDir"):
        constants[name] = folder / name
        (folder / name).mkdir()
    defined = [f"--define={name}={value}" for name, value in constants.items()]
    command = [program, "daemon", "--config", str(folder / "icinga2.conf"), *defined]
    with (folder / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            yield process
        finally:
            stop(process)


def test_icinga_checks_with_the_command_of_readme(
    plugins: Path, tmp_path: Path, pynetdicom_scp_strict: Peer
) -> None:
    icinga = require("icinga2", "icinga2-bin")
    peer = pynetdicom_scp_strict
    (tmp_path / "command.conf").write_text(block("icinga"), encoding="utf-8")
    configuration = ICINGA.format(folder=tmp_path, port=peer.port, ae_title=peer.ae_title)
    (tmp_path / "icinga2.conf").write_text(configuration, encoding="utf-8")
    (tmp_path / "perfdata").mkdir()
    seen: dict[str, list[str]] = {}
    with run_icinga(icinga, tmp_path) as process:
        end = time.monotonic() + PATIENCE
        while len(seen) < 4:
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < end, (seen, (tmp_path / "log").read_text())
            time.sleep(0.1)
            lines = [line for file in (tmp_path / "perfdata").iterdir() for line in file.read_text().splitlines()]
            seen = {name: rest for name, *rest in (line.split("\t") for line in lines)}

    state, output, perfdata = seen["good"]
    assert (state, output.split(" answered in ")[0]) == ("OK", f"DICOM ECHO OK - PYNETDICOM@127.0.0.1:{peer.port}")
    read = json.dumps(perfdata.split())
    script = f"Json.encode({read}.map((x) => parse_performance_data(x)).map((p) => [p.label, p.unit, p.warn, p.crit, p.max]))"
    whole, *phases = json.loads(json.loads(run_process([icinga, "console", "--eval", script]).out))
    assert whole == ["time", "seconds", 5, 8, 10]
    assert [label for label, *_ in phases] == ["resolve", "connect", "associate", "echo", "release"]

    assert seen["bad"][0] == "CRITICAL"
    assert f"WRONG@127.0.0.1:{peer.port}: Rejected: called AE title not recognized" in seen["bad"][1]
    assert seen["usage"][0] == "UNKNOWN"
    assert "ANY-SCP@127.0.0.9:104" in seen["defaults"][1]


# --- Prometheus ------------------------------------------------------------------------------------------------------


def scrape(program: str, folder: Path) -> dict[str, float]:
    """The series that a node exporter serves of the text files in a folder."""
    port = free_port()
    command = [
        program, "--collector.disable-defaults", "--collector.textfile", f"--collector.textfile.directory={folder}",
        f"--web.listen-address=127.0.0.1:{port}", "--web.disable-exporter-metrics",
    ]  # fmt: skip
    log = folder.with_suffix(".log")
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            assert becomes_ready(process, port, log)
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE) as response:
                lines = response.read().decode().splitlines()
        finally:
            stop(process)
    samples = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {series: float(value) for series, _, value in samples}


def labels_of(series: str) -> dict[str, str]:
    return {name: json.loads(value) for name, value in re.findall(r'(\w+)=("(?:[^"\\]|\\.)*")', series)}


def test_what_cron_writes_sets_off_the_alerts_of_readme(plugins: Path, tmp_path: Path, pynetdicom_scp: Peer) -> None:
    exporter = require("prometheus-node-exporter", "prometheus-node-exporter")
    promtool = require("promtool", "prometheus")
    *when, user, line = block("cron").split(None, 6)
    assert all(re.fullmatch(r"(\*|\d+(-\d+)?)(/\d+)?(,\d+(-\d+)?)*", field) for field in when)
    assert (len(when), user) == (5, "root")
    assert "%" not in line  # which would be a line end to cron
    with rawpeer.closed_port() as closed:
        (tmp_path / "fleet.txt").write_text(f"{pynetdicom_scp.address} # the archive\n{closed.address}\n")
        (tmp_path / "served").mkdir()
        places = {"/usr/local/bin": plugins, "/etc/dicom-echo": tmp_path}
        places["/var/lib/prometheus/node-exporter"] = tmp_path / "served"  # where Debian's looks by itself
        for place, ours in places.items():
            assert place in line
            line = line.replace(place, str(ours))
        assert run_process(["/bin/sh", "-c", line], {"PATH": "/usr/bin:/bin"}) == (3, "", "")
    series = scrape(exporter, tmp_path / "served")
    assert series["node_textfile_scrape_error"] == 0
    success = {each: value for each, value in series.items() if each.startswith("dicom_echo_success{")}
    assert {labels_of(each).get("label"): value for each, value in success.items()} == {"the archive": 1, None: 0}

    (tmp_path / "rules.yaml").write_text(block("yaml"), encoding="utf-8")
    assert run_process([promtool, "check", "rules", str(tmp_path / "rules.yaml")]).code == 0
    # The same values for ten minutes, in which the file stays as it was at time 0.
    (written,) = (each for each in series if each.startswith("node_textfile_mtime_seconds{"))
    (down,) = (each for each, value in success.items() if value == 0)
    expected = [
        ("4m", "DicomNodeDown", []), ("6m", "DicomNodeDown", [{"exp_labels": labels_of(down)}]),
        ("4m", "DicomEchoStale", []), ("6m", "DicomEchoStale", [{"exp_labels": labels_of(written)}]),
    ]  # fmt: skip
    test = {
        "input_series": [{"series": each, "values": f"{value:g}x10"} for each, value in {**success, written: 0}.items()],
        "alert_rule_test": [
            {"eval_time": at, "alertname": name, "exp_alerts": alerts} for at, name, alerts in expected
        ],
    }
    (tmp_path / "test.yaml").write_text(json.dumps({"rule_files": ["rules.yaml"], "tests": [test]}))  # JSON is YAML
    outcome = run_process([promtool, "test", "rules", str(tmp_path / "test.yaml")])
    assert outcome.code == 0, outcome


# --- Docker, Kubernetes, Compose, Zabbix -----------------------------------------------------------------------------


def run_there(plugins: Path, command: Sequence[str], port: int) -> Outcome:
    """Run a command of README where `dicom-echo` is in PATH, with a port of this test."""
    path = f"{plugins}{os.pathsep}{os.environ['PATH']}"
    moved = [re.sub(r"(localhost|pacs):11112", f"localhost:{port}", each) for each in command]
    assert moved != list(command)
    return run_process(["/usr/bin/env", f"PATH={path}", *moved])


def flow(text: str) -> list[str]:
    """The items of a YAML list in brackets; only quoted ones may be numbers."""
    items = text.split(", ")
    assert not any(item.isdigit() for item in items)
    return [item.strip('"') for item in items]


def test_docker_counts_failures_as_1(plugins: Path, pynetdicom_scp: Peer) -> None:
    limit, command = re.findall(r"HEALTHCHECK --timeout=(\d+)s CMD ([^`]*)", README)[0]
    assert run_there(plugins, ["/bin/sh", "-c", command], pynetdicom_scp.port) == (0, "", "")
    with rawpeer.closed_port() as closed:
        assert run_there(plugins, ["/bin/sh", "-c", command], closed.port) == (1, "", "")
    assert float(command.split("-t ")[1].split()[0]) < float(limit)


def test_kubernetes_probes(plugins: Path, pynetdicom_scp: Peer) -> None:
    command = flow(snippet(r"`exec` probe with +`\[([^]]*)\]`"))
    assert run_there(plugins, command, pynetdicom_scp.port) == (0, "", "")
    assert float(command[command.index("-t") + 1]) < float(snippet(r"`timeoutSeconds: (\d+)`"))


def test_compose_waits(plugins: Path, pynetdicom_scp: Peer) -> None:
    command = flow(snippet(r"Compose: a service that runs +`\[([^]]*)\]`"))
    assert run_there(plugins, command, pynetdicom_scp.port).code == 0


def test_zabbix_reads_json(plugins: Path, pynetdicom_scp: Peer) -> None:
    script, items = re.findall(r"^    (dicom-echo)(\[.*\])$", README, re.MULTILINE)[0]
    paths = re.findall(r"`\$\.([a-z_.]+)`", README)
    assert paths == ["ok", "total_ms", "error.kind"]
    with rawpeer.closed_port() as closed:
        for port, ok in ((pynetdicom_scp.port, True), (closed.port, False)):
            arguments = json.loads(items.replace("{HOST.CONN}:104", "localhost:11112"))
            out = json.loads(run_there(plugins, [script, *arguments], port).out)
            assert out["ok"] is ok
            assert out["total_ms"] > 0
            assert (out["error"] or {}).get("kind") == (None if ok else "unreachable")
