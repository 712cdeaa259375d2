"""The targets file: what it may hold, and that one bad line keeps everything from being sent."""

import json
import subprocess
from pathlib import Path

import pytest
from command import Outcome, command_line, environment, run_main
from rawpeer import RawPeer


def write(folder: Path, content: str | bytes) -> Path:
    """A targets file."""
    file = folder / "fleet.txt"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def labels(outcome: Outcome) -> list[tuple[str, str | None]]:
    """Targets and labels in JSON output."""
    lines = [json.loads(line) for line in outcome.out.splitlines()]
    return [(line["target"], line["label"]) for line in lines if line["type"] == "echo"]


FILES = {
    "plain": ("A@HERE\n", [("A", None)]),
    "without a line end": ("A@HERE", [("A", None)]),
    "blank lines": ("\n\nA@HERE\n   \n\t\nB@HERE\n\n", [("A", None), ("B", None)]),
    "comments": ("# all\nA@HERE\n  # indented\n#B@HERE\n", [("A", None)]),
    "labels": ("A@HERE # archive\nB@HERE   #   second floor   \n", [("A", "archive"), ("B", "second floor")]),
    "a hash in a label": ("A@HERE # room # 3\n", [("A", "room # 3")]),
    "a hash in a title": ("A #1@HERE\nB#@HERE # two\n", [("A #1", None), ("B#", "two")]),
    "a label beyond ASCII": ("A@HERE # Röntgen 放射線\n", [("A", "Röntgen 放射線")]),
    "carriage returns": ("# all\r\nA@HERE\r\nB@HERE # two\r\n", [("A", None), ("B", "two")]),
    "a byte order mark": ("\ufeffA@HERE\n", [("A", None)]),
    "a byte order mark and a comment": ("\ufeff# all\r\nA@HERE\r\n", [("A", None)]),
    "white space around": ("  A@HERE  \n\tB@HERE\t\n", [("A", None), ("B", None)]),
    "one target twice": ("A@HERE\nA@HERE # again\n", [("A", None), ("A", "again")]),
}


@pytest.mark.parametrize("stdin", [False, True], ids=["file", "stdin"])
@pytest.mark.parametrize(("content", "expected"), FILES.values(), ids=list(FILES))
def test_a_targets_file_is_read(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    content: str,
    expected: list[tuple[str, str | None]],
    stdin: bool,
) -> None:
    with RawPeer() as peer:
        here = peer.endpoint.host_port
        content = content.replace("HERE", here)
        if stdin:
            command = command_line("--targets", "-", "--format", "json")
            env = environment(PYTHONUTF8="1")
            done = subprocess.run(command, input=content.encode(), env=env, capture_output=True, check=False)
            outcome = Outcome(done.returncode, done.stdout.decode(), done.stderr.decode())
        else:
            outcome = run_main(capsys, "-T", write(tmp_path, content), "--format", "json")
    assert (outcome.code, outcome.err) == (0, "")
    assert labels(outcome) == [(f"{title}@{here}", label) for title, label in expected]


def test_hosts_and_a_file_go_together(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with RawPeer() as peer:
        here = peer.endpoint.host_port
        outcome = run_main(capsys, f"A@{here}", "-T", write(tmp_path, f"B@{here} # b\n"), "--format", "json")
    assert labels(outcome) == [(f"A@{here}", None), (f"B@{here}", "b")]


@pytest.mark.parametrize("output", [[], ["--format", "json"], ["--format", "prometheus"]])
def test_all_errors_are_told_at_once_and_nothing_is_sent(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, output: list[str]
) -> None:
    with RawPeer() as peer:
        good = peer.address
        content = f"{good}\n# fine\nhost:99999\n\n{good} # fine\na b:104\nX@ # label\n{'T' * 17}@host\n"
        file = write(tmp_path, content)
        outcome = run_main(capsys, good, "-T", file, *output)
        assert peer.received == []
    assert (outcome.code, outcome.out) == (2, "")
    told = [line for line in outcome.err.splitlines() if line.startswith(str(file))]
    assert [line.removeprefix(f"{file}:").partition(": ")[0] for line in told] == ["3", "6", "7", "8"]
    assert all(len(line.split(": ", 1)[1]) > 10 for line in told)


def test_errors_of_all_files_and_of_the_command_line_are_told_at_once(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name in "ab":
        (tmp_path / name).write_text("pacs\nhost:0\n")
    outcome = run_main(capsys, "one:0", "two:0", "-T", tmp_path / "a", "-T", tmp_path / "b")
    assert (outcome.code, outcome.out) == (2, "")
    told = [line.partition(": the port 0 is not in the range")[0] for line in outcome.err.splitlines()]
    assert told == [
        "dicom-echo: bad addresses, so nothing was sent (see dicom-echo --help)",
        *["argument HOST"] * 2,
        f"{tmp_path / 'a'}:2",
        f"{tmp_path / 'b'}:2",
    ]


def test_standard_input_is_read_as_a_file_is() -> None:
    """Whatever the console's encoding, and with the mark that Windows puts before a text."""
    with RawPeer() as peer:
        text = f"\ufeff{peer.address} # Rö\n".encode()
        command = command_line("-T", "-", "--format", "json")
        done = subprocess.run(
            command, input=text, env=environment(PYTHONIOENCODING="cp1252"), capture_output=True, check=False
        )
    assert done.returncode == 0
    assert json.loads(done.stdout.splitlines()[0])["label"] == "Rö"


def test_errors_on_standard_input_are_told_by_line() -> None:
    command = command_line("--targets", "-")
    done = subprocess.run(
        command, input="host:0\n", env=environment(), capture_output=True, text=True, encoding="utf-8", check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "-:1: " in done.stderr


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "holds no address"),
        (b"# nothing\n\n", "holds no address"),
        (b"A@host # R\xf6ntgen\n", "cannot read"),
        (b"\xff\xfeh\x00o\x00s\x00t\x00", "cannot read"),
        (b"host\x00:104\n", "host"),
    ],
    ids=["empty", "comments only", "Latin-1", "UTF-16", "a zero byte"],
)
def test_a_file_that_is_no_list_of_targets(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, content: bytes, why: str
) -> None:
    outcome = run_main(capsys, "-T", write(tmp_path, content))
    assert (outcome.code, outcome.out) == (2, "")
    assert why in outcome.err
    assert "Traceback" not in outcome.err


def test_a_file_that_cannot_be_read(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for missing in (tmp_path / "missing", tmp_path):
        outcome = run_main(capsys, "localhost", "-T", missing)
        assert (outcome.code, outcome.out) == (2, "")
        assert f"cannot read {missing}: " in outcome.err


def test_standard_input_may_be_closed() -> None:
    """As it is for a job that a daemon starts."""
    code = "import sys; sys.stdin = None; import dicom_echo; sys.exit(dicom_echo.main(['-T', '-']))"
    command = [command_line()[0], "-c", code]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, encoding="utf-8", check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("dicom-echo: cannot read -")
