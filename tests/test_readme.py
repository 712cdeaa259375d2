"""README's examples are run as they stand there, against real peers.

The ports in it stand for peers of these tests: 11112 for DCMTK's storescp, 4242 for one that knows its title as STRICT,
11999 for a port where nobody listens. Times differ from run to run; all else must not.
"""

from __future__ import annotations

import doctest
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import rawpeer
from peers import Peer, run_pynetdicom

import dicom_echo
from dicom_echo import EchoError

README = Path(__file__).parent.parent / "README.md"
TEXT = README.read_text(encoding="utf-8")

VOLATILE = [
    (r"time=[0-9.]+ ms", "time=(ms)"),
    (r" +[0-9.]+ ms", " (ms)"),
    (r"= [0-9./]+ ms", "= (times)"),
    (r"=[0-9.]+s;", "=(seconds)s;"),
]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def examples() -> list[tuple[str, str]]:
    """Each command of the console blocks, with the output that it is said to have."""
    shown = [each for block in blocks("console") for each in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]]
    return [(command, output) for command, _, output in (each.partition("\n") for each in shown)]


def settled(text: str) -> list[str]:
    """The lines of a text without what differs from run to run; rows come as their targets finish."""
    for pattern, stand_in in [*VOLATILE, (" +", " ")]:
        text = re.sub(pattern, stand_in, text, flags=re.MULTILINE)
    return sorted(text.splitlines()) if "targets:" in text else text.splitlines()


@pytest.fixture(scope="module")  # pynetdicom stumbles when it is shut down right after it has refused somebody
def ports(storescp: Peer) -> Iterator[dict[str, str]]:
    """What the ports of README are in this run."""
    with run_pynetdicom(ae_title="STRICT", check_called_title=True) as strict, rawpeer.closed_port() as closed:
        yield {"11112": str(storescp.port), "4242": str(strict.port), "11999": str(closed.port)}


def with_ports(text: str, ports: dict[str, str]) -> str:
    return re.sub(r"(?<=localhost:)\d+", lambda match: ports.get(match[0], match[0]), text)


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ports: dict[str, str]) -> None:
    """The file that README shows with cat."""
    monkeypatch.chdir(tmp_path)
    shown = next(output for command, output in examples() if command == "cat fleet.txt")
    (tmp_path / "fleet.txt").write_text(with_ports(shown, ports), encoding="utf-8")


@pytest.mark.usefixtures("fleet")
@pytest.mark.parametrize(("command", "output"), [each for each in examples() if each[0].startswith("dicom-echo")])
def test_a_command_prints_what_readme_says(
    command: str, output: str, ports: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    dicom_echo.main(shlex.split(with_ports(command, ports))[1:])
    printed = capsys.readouterr().out
    for stands_for, port in ports.items():
        printed = re.sub(rf'{port}(?=["\s,}} ])', stands_for, printed)
    assert settled(printed) == settled(output)


@pytest.mark.parametrize("block", blocks("python"))
def test_python_does_what_readme_says(block: str, ports: dict[str, str]) -> None:
    test = doctest.DocTestParser().get_doctest(with_ports(block, ports), {}, "README.md", str(README), 0)
    problems: list[str] = []
    doctest.DocTestRunner(verbose=False).run(test, out=problems.append)
    assert not problems, "".join(problems)


def test_every_console_block_is_tried() -> None:
    assert {command.split()[0] for command, _ in examples()} == {"dicom-echo", "cat"}
    assert len(examples()) >= 5


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
    run = (README.parent / ".ci" / "run").read_text(encoding="utf-8")
    assert command.replace("pip install nox", "pip install -q nox") in run


def test_readme_can_be_read_at_a_sitting() -> None:
    assert len(TEXT.splitlines()) <= 250
