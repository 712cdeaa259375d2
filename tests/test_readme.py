"""README's examples are run as they stand there: against real peers, and by Icinga 2, a node exporter and promtool.

The ports in it stand for peers of these tests: 11112 for DCMTK's storescp, 4242 for one that knows its title as STRICT,
11999 for a port where nobody listens. Times differ from run to run; all else must not.
"""

from __future__ import annotations

import doctest
import json
import os
import re
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import rawpeer
from command import MODULE, PATIENCE, Outcome, posix, run_process
from conftest import require
from peers import Peer, run_pynetdicom, running, scrape

import dicom_echo
from dicom_echo import EchoError

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")

VOLATILE = {
    r"time=[0-9.]+ ms": "time=(ms)",
    r" +[0-9.]+ ms": " (ms)",
    r"= [0-9./]+ ms": "= (times)",
    r"=[0-9.]+s;": "=(seconds)s;",
    " +": " ",
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def only_block(language: str) -> str:
    (only,) = blocks(language)
    return only


def settled(text: str) -> list[str]:
    """The lines of a text without what differs from run to run; rows come as their targets finish."""
    for pattern, stand_in in VOLATILE.items():
        text = re.sub(pattern, stand_in, text, flags=re.MULTILINE)
    return sorted(text.splitlines()) if "targets:" in text else text.splitlines()


@pytest.fixture(scope="module")  # pynetdicom stumbles when it is shut down right after it has refused somebody
def ports(storescp: Peer) -> Iterator[dict[str, str]]:
    """What the ports of README are in this run."""
    with run_pynetdicom(ae_title="STRICT", check_called_title=True) as strict, rawpeer.closed_port() as closed:
        yield {"11112": str(storescp.port), "4242": str(strict.port), "11999": str(closed.port)}


def with_ports(text: str, ports: dict[str, str]) -> str:
    return re.sub(r"(?:localhost|pacs):(\d+)", lambda match: f"localhost:{ports.get(match[1], match[1])}", text)


def test_commands_print_what_readme_says(
    ports: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    examples = [each for block in blocks("console") for each in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]]
    assert len(examples) >= 5
    for example in examples:
        command, _, output = example.partition("\n")
        program, *arguments = shlex.split(with_ports(command, ports))
        if program == "cat":  # the file that later commands are given
            Path(*arguments).write_text(with_ports(output, ports), encoding="utf-8")
        else:
            assert program == "dicom-echo"
            dicom_echo.main(arguments)
            printed = capsys.readouterr().out
            for stands_for, port in ports.items():
                printed = re.sub(rf'{port}(?=["\s,}} ])', stands_for, printed)
            assert settled(printed) == settled(output)


def test_python_does_what_readme_says(ports: dict[str, str]) -> None:
    code = with_ports(only_block("python"), ports)
    problems: list[str] = []
    test = doctest.DocTestParser().get_doctest(code, {}, "README.md", None, 0)
    doctest.DocTestRunner(verbose=False).run(test, out=problems.append)
    assert not problems, "".join(problems)


def test_the_options_of_readme_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert dicom_echo.main(["--help"]) == 0
    known = set(re.findall(r"(?<![\w-])--?[a-zA-Z0-9][\w-]*", capsys.readouterr().out))
    named = set(re.findall(r"`(?:dicom-echo )?(--?[a-zA-Z0-9][\w-]*)", TEXT))
    assert named <= known


def test_the_troubleshooting_table_has_the_words_of_the_code() -> None:
    """Each row is what is printed, the hint below it, and who can act."""
    rows = re.findall(r"^\| ([A-Z][^|]*?) \| ([^|]*?) \| [^|]* \|$", TEXT, re.MULTILINE)
    errors = [each for each in vars(dicom_echo).values() if isinstance(each, type) and issubclass(each, EchoError)]
    titles = {**{each.kind: each.title for each in errors}, "status": "Failed"}
    words = {"called": "CALLED", "calling": "CALLING", "local": "this host"}
    known = [
        (titles[kind], case, hint.format(**words).replace("this host, this host", "this host"))
        for (kind, case), hint in dicom_echo._HINTS.items()
        if kind in titles
    ]
    general = {"this host", "not DICOM", "associate", "connect", "echo"}  # cases that are not the message itself
    assert len(rows) >= 20
    for printed, hint in rows:
        cases = {case for title, case, text in known if printed.startswith(title) and text == hint}
        assert any(case in general or printed.endswith(case) or case in printed for case in cases), printed


def test_ci_calls_the_command_of_readme() -> None:
    command = next(line.strip() for line in TEXT.splitlines() if "install nox" in line)
    run = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert command.replace("pip install nox", "pip install -q nox") in run


def test_readme_can_be_read_at_a_sitting() -> None:
    assert len(TEXT.splitlines()) <= 250


# --- Monitoring ------------------------------------------------------------------------------------------------------


@pytest.fixture
def plugins(tmp_path: Path) -> Path:
    """A folder with the command as `dicom-echo`, and under the name of the archive, which smoke.py tries."""
    folder = tmp_path / "plugins"
    folder.mkdir()
    python = f"PYTHONPATH={shlex.quote(str(MODULE.parent))} exec {shlex.quote(sys.executable)}"
    for name in "dicom-echo", "dicom-echo.pyz":
        (folder / name).write_text(f'#!/bin/sh\n{python} -m dicom_echo "$@"\n', encoding="utf-8")
        (folder / name).chmod(0o755)
    return folder


# Icinga runs as whoever runs the tests, in a temporary folder and without a listener: its checker and its writer of
# performance data are all that it loads.
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


@posix
def test_icinga_checks_with_the_command_of_readme(plugins: Path, tmp_path: Path, pynetdicom_scp_strict: Peer) -> None:
    import grp
    import pwd

    icinga, log, perfdata = require("icinga2", "icinga2-bin"), tmp_path / "log", tmp_path / "perfdata"
    host = f"[$address$]:{pynetdicom_scp_strict.port}"
    (tmp_path / "command.conf").write_text(only_block("icinga"), encoding="utf-8")
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
    assert re.match(r"time=[\d.]+s;5;8;0;10 resolve=", measured)
    assert seen["bad"][0] == "CRITICAL"
    assert f":{pynetdicom_scp_strict.port}: Rejected: called AE title not recognized" in seen["bad"][1]
    assert seen["usage"][0] == "UNKNOWN"
    assert "ANY-SCP@127.0.0.1:104" in seen["defaults"][1]


def labels_of(series: str) -> dict[str, str]:
    """The labels of a series; an empty one is none."""
    return {name: json.loads(value) for name, value in re.findall(r'(\w+)=("(?:[^"\\]|\\.)+")', series)}


@posix
def test_what_cron_writes_sets_off_the_alerts_of_readme(plugins: Path, tmp_path: Path, pynetdicom_scp: Peer) -> None:
    exporter = require("prometheus-node-exporter", "prometheus-node-exporter")
    promtool = require("promtool", "prometheus")
    *when, user, line = only_block("cron").split(None, 6)
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
    lines = (line.rpartition(" ") for line in scrape(exporter, served).splitlines() if not line.startswith("#"))
    series = {name: float(value) for name, _, value in lines}
    assert series["node_textfile_scrape_error"] == 0
    success = {each: value for each, value in series.items() if each.startswith("dicom_echo_success{")}
    assert {labels_of(each).get("label"): value for each, value in success.items()} == {"the archive": 1, None: 0}

    (tmp_path / "rules.yaml").write_text(only_block("yaml"), encoding="utf-8")
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


def run(plugins: Path, command: Sequence[str], ports: dict[str, str]) -> Outcome:
    """Run a command of README where `dicom-echo` is in PATH."""
    path = f"PATH={plugins}{os.pathsep}{os.environ['PATH']}"
    return run_process(["/usr/bin/env", path, *(with_ports(word, ports) for word in command)])


@posix
def test_containers_ask_for_their_health(plugins: Path, ports: dict[str, str]) -> None:
    (docker,) = re.findall(r"HEALTHCHECK --timeout=6s CMD ([^`]*)", TEXT)
    lists = re.findall(r"`\[(dicom-echo, [^]]*)\]`", TEXT)
    assert not any(item.isdigit() for items in lists for item in items.split(", "))  # which YAML would make a number of
    kubernetes, compose = (shlex.split(items.replace(",", "")) for items in lists)
    for command in (["/bin/sh", "-c", docker], kubernetes, compose):
        assert run(plugins, command, ports).code == 0
    nobody = {"11112": ports["11999"]}
    assert run(plugins, ["/bin/sh", "-c", docker], nobody) == (1, "", "")  # it knows no other code
    assert run(plugins, kubernetes, nobody) == (3, "", "")
    # Both end before they are killed.
    assert "-t 4" in docker
    assert kubernetes[kubernetes.index("-t") + 1] == "4"
    assert "`timeoutSeconds: 6`" in TEXT


@posix
def test_zabbix_reads_json(plugins: Path, ports: dict[str, str]) -> None:
    ((script, key),) = re.findall(r"^    (dicom-echo)(\[.*\])$", TEXT, re.MULTILINE)
    assert re.findall(r"`\$\.([a-z_.]+)`", TEXT) == ["ok", "total_ms", "error.kind"]
    command = [script, *json.loads(key.replace("{HOST.CONN}:104", "localhost:11112"))]
    good, bad = (json.loads(run(plugins, command, each).out) for each in (ports, {"11112": ports["11999"]}))
    assert (good["ok"], good["error"], good["total_ms"] > 0) == (True, None, True)
    assert (bad["ok"], bad["error"]["kind"], bad["total_ms"] > 0) == (False, "unreachable", True)
