"""What README gives to whoever sets up monitoring is tried: by Icinga 2, a node exporter, promtool, and as commands.

Icinga runs as whoever runs the tests, in a temporary folder and without a listener: its checker and its writer of
performance data are all that it loads.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import rawpeer
from command import MODULE, PATIENCE, Outcome, run_process
from conftest import require
from peers import Peer, running, scrape

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the plugin is a script of the shell")

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
ARCHIVE = ROOT / "dist" / "dicom-echo.pyz"


def block(language: str) -> str:
    (only,) = re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return str(only)


@pytest.fixture
def plugins(tmp_path: Path) -> Path:
    """A folder with the commands `dicom-echo` and `dicom-echo.pyz`: the archive where one is built of this module."""
    folder = tmp_path / "plugins"
    folder.mkdir()
    script, archive = folder / "dicom-echo", folder / "dicom-echo.pyz"
    python = f"PYTHONPATH={shlex.quote(str(MODULE.parent))} exec {shlex.quote(sys.executable)}"
    script.write_text(f'#!/bin/sh\n{python} -m dicom_echo "$@"\n', encoding="utf-8")
    script.chmod(0o755)
    is_built = ARCHIVE.exists() and ARCHIVE.stat().st_mtime > (ROOT / "dicom_echo.py").stat().st_mtime
    shutil.copy(ARCHIVE if is_built else script, archive)
    archive.chmod(0o755)
    return folder


# --- Icinga ----------------------------------------------------------------------------------------------------------

ICINGA = """\
const NodeName = "here"
const PluginDir = "{folder}/plugins"
include "command.conf"
object CheckerComponent "checker" {{ }}
object PerfdataWriter "perfdata" {{
  service_format_template = "$service.name$\\t$service.state$\\t$service.output$\\t$service.perfdata$"
  rotation_interval = 1 // files are named after the second
}}
object Host "pacs" {{
  address = "127.0.0.1"
  check_command = "dicom_echo"
  enable_active_checks = false
  vars.dicom_calling = "ICINGA"
  vars.checks = {{
    good = {{ dicom_address = "{host}", dicom_called = "PYNETDICOM", dicom_warning = 5000, dicom_critical = 8000 }}
    bad = {{ dicom_address = "{host}" }}
    usage = {{ dicom_timeout = "soon" }}
    defaults = {{ }}
  }}
}}
apply Service for (name => values in host.vars.checks) {{
  check_command = "dicom_echo"
  check_interval = 1
  max_check_attempts = 1
  vars += values
}}
"""


def test_icinga_checks_with_the_command_of_readme(plugins: Path, tmp_path: Path, pynetdicom_scp_strict: Peer) -> None:
    import grp
    import pwd

    icinga, log, perfdata = require("icinga2", "icinga2-bin"), tmp_path / "log", tmp_path / "perfdata"
    host = f"[$address$]:{pynetdicom_scp_strict.port}"
    (tmp_path / "command.conf").write_text(block("icinga"), encoding="utf-8")
    (tmp_path / "icinga2.conf").write_text(ICINGA.format(folder=tmp_path, host=host), encoding="utf-8")
    constants = {"RunAsUser": pwd.getpwuid(os.getuid()).pw_name, "RunAsGroup": grp.getgrgid(os.getgid()).gr_name}
    for name in ("ConfigDir", "DataDir", "LogDir", "CacheDir", "SpoolDir", "InitRunDir"):
        constants[name] = str(tmp_path)
    defined = [f"--define={name}={value}" for name, value in constants.items()]
    seen: dict[str, list[str]] = {}
    perfdata.mkdir()
    (tmp_path / "tmp").mkdir()
    with running([icinga, "daemon", "--config", str(tmp_path / "icinga2.conf"), *defined], log) as process:
        end = time.monotonic() + PATIENCE
        while len(seen) < 4:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, (seen, log.read_text())
            time.sleep(0.1)
            lines = [line for file in perfdata.iterdir() for line in file.read_text().splitlines()]
            seen.update((name, rest) for name, *rest in (line.split("\t") for line in lines))

    state, output, measured = seen["good"]
    assert (state, output.split(" answered in ")[0]) == ("OK", f"DICOM ECHO OK - {pynetdicom_scp_strict.address}")
    facts = "(each) => parse_performance_data(each)).map((p) => [p.label, p.unit, p.warn, p.crit, p.max])"
    console = run_process([icinga, "console", "--eval", f"Json.encode({json.dumps(measured.split())}.map({facts})"])
    whole, *phases = json.loads(json.loads(console.out))
    assert whole == ["time", "seconds", 5, 8, 10]
    assert [label for label, *_ in phases] == ["resolve", "connect", "associate", "echo", "release"]
    assert seen["bad"][0] == "CRITICAL"
    assert f":{pynetdicom_scp_strict.port}: Rejected: called AE title not recognized" in seen["bad"][1]
    assert seen["usage"][0] == "UNKNOWN"
    assert "ANY-SCP@127.0.0.1:104" in seen["defaults"][1]


# --- Prometheus ------------------------------------------------------------------------------------------------------


def samples(served: str) -> dict[str, float]:
    lines = (line.rpartition(" ") for line in served.splitlines() if not line.startswith("#"))
    return {series: float(value) for series, _, value in lines}


def labels_of(series: str) -> dict[str, str]:
    """The labels of a series; an empty one is none."""
    return {name: json.loads(value) for name, value in re.findall(r'(\w+)=("(?:[^"\\]|\\.)+")', series)}


def test_what_cron_writes_sets_off_the_alerts_of_readme(plugins: Path, tmp_path: Path, pynetdicom_scp: Peer) -> None:
    exporter = require("prometheus-node-exporter", "prometheus-node-exporter")
    promtool = require("promtool", "prometheus")
    *when, user, line = block("cron").split(None, 6)
    assert all(re.fullmatch(r"(\*|\d+(-\d+)?)(/\d+)?(,\d+(-\d+)?)*", field) for field in when)
    assert user == "root"
    assert "%" not in line  # which would be a line end to cron
    served = tmp_path / "served"
    served.mkdir()
    with rawpeer.closed_port() as closed:
        (tmp_path / "fleet.txt").write_text(f"{pynetdicom_scp.address} # the archive\n{closed.address}\n")
        places = {"/usr/local/bin": plugins, "/etc/dicom-echo": tmp_path, "/var/lib/prometheus/node-exporter": served}
        for place, ours in places.items():
            assert place in line
            line = line.replace(place, str(ours))
        assert run_process(["/bin/sh", "-c", line], {"PATH": "/usr/bin:/bin"}) == (3, "", "")
    series = samples(scrape(exporter, served))
    assert series["node_textfile_scrape_error"] == 0
    success = {each: value for each, value in series.items() if each.startswith("dicom_echo_success{")}
    assert {labels_of(each).get("label"): value for each, value in success.items()} == {"the archive": 1, None: 0}

    (tmp_path / "rules.yaml").write_text(block("yaml"), encoding="utf-8")
    assert run_process([promtool, "check", "rules", str(tmp_path / "rules.yaml")]).code == 0
    # The same values for ten minutes, in which the file stays as it was at time 0.
    (written,) = (each for each in series if each.startswith("node_textfile_mtime_seconds{"))
    (down,) = (each for each, value in success.items() if value == 0)
    alerts = [
        {"eval_time": at, "alertname": name, "exp_alerts": [{"exp_labels": labels_of(each)}] if at == "6m" else []}
        for name, each in (("DicomNodeDown", down), ("DicomEchoStale", written))
        for at in ("4m", "6m")
    ]
    values = [{"series": each, "values": f"{value:g}x10"} for each, value in {**success, written: 0}.items()]
    test = {"interval": "1m", "input_series": values, "alert_rule_test": alerts}
    (tmp_path / "tests.yaml").write_text(json.dumps({"rule_files": ["rules.yaml"], "tests": [test]}))  # JSON is YAML
    assert run_process([promtool, "test", "rules", str(tmp_path / "tests.yaml")]).code == 0


# --- Docker, Kubernetes, Compose, Zabbix -----------------------------------------------------------------------------


def run_in_readme(plugins: Path, command: Sequence[str], port: int) -> Outcome:
    """Run a command of README where `dicom-echo` is in PATH, with a port of this test."""
    moved = [re.sub("(localhost|pacs):11112", f"localhost:{port}", each) for each in command]
    assert moved != command
    return run_process(["/usr/bin/env", f"PATH={plugins}{os.pathsep}{os.environ['PATH']}", *moved])


def test_containers_ask_for_their_health(plugins: Path, pynetdicom_scp: Peer) -> None:
    (docker,) = re.findall(r"HEALTHCHECK --timeout=6s CMD ([^`]*)", README)
    lists = [items.split(", ") for items in re.findall(r"`\[(dicom-echo, [^]]*)\]`", README)]
    assert len(lists) == 2
    assert not any(item.isdigit() for items in lists for item in items)  # which YAML would make a number of
    kubernetes, compose = ([item.strip('"') for item in items] for items in lists)
    for command in (["/bin/sh", "-c", docker], kubernetes, compose):
        assert run_in_readme(plugins, command, pynetdicom_scp.port).code == 0
    with rawpeer.closed_port() as closed:
        assert run_in_readme(plugins, ["/bin/sh", "-c", docker], closed.port) == (1, "", "")  # it knows no other code
        assert run_in_readme(plugins, kubernetes, closed.port) == (3, "", "")
    assert "-t 4" in docker  # ends before it is killed
    assert "`timeoutSeconds: 6`" in README
    assert kubernetes[kubernetes.index("-t") + 1] == "4"


def test_zabbix_reads_json(plugins: Path, pynetdicom_scp: Peer) -> None:
    ((script, key),) = re.findall(r"^    (dicom-echo)(\[.*\])$", README, re.MULTILINE)
    assert re.findall(r"`\$\.([a-z_.]+)`", README) == ["ok", "total_ms", "error.kind"]
    arguments = json.loads(key.replace("{HOST.CONN}:104", "localhost:11112"))
    with rawpeer.closed_port() as closed:
        for port, kind in ((pynetdicom_scp.port, None), (closed.port, "unreachable")):
            out = json.loads(run_in_readme(plugins, [script, *arguments], port).out)
            assert (out["ok"], (out["error"] or {}).get("kind")) == (kind is None, kind)
            assert out["total_ms"] > 0
