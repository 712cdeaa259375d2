"""The files that the command reads and writes: lists of targets, and --output."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from command import (
    PATIENCE,
    Outcome,
    command_line,
    environment,
    in_shell,
    posix,
    run_main,
    run_process,
    start_process,
)  # fmt: skip
from rawpeer import RawPeer, closed_port, silent_listener

Capsys = pytest.CaptureFixture[str]

HELP = " (see dicom-echo --help)\n"
REFUSED = "127.0.0.1:1"  # nobody listens there


def files_in(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


# --- Targets ---------------------------------------------------------------------------------------------------------

FILES: dict[str, tuple[str, list[tuple[str, str | None]]]] = {
    "plain": ("A@HERE\n", [("A", None)]),
    "without a line end": ("A@HERE", [("A", None)]),
    "blank lines": ("\n\nA@HERE\n   \n\t\nB@HERE\n\n", [("A", None), ("B", None)]),
    "comments": ("# all\nA@HERE\n  # indented\n#B@HERE\n", [("A", None)]),
    "labels": ("A@HERE # archive\nB@HERE   #   second floor   \n", [("A", "archive"), ("B", "second floor")]),
    "a label without a space after its mark": ("A@HERE #archive\n", [("A", "archive")]),
    "an empty label": ("A@HERE #\n", [("A", None)]),
    "a hash in a label": ("A@HERE # room # 3\n", [("A", "room # 3")]),
    "a hash in a title": ("B#@HERE # two\n", [("B#", "two")]),
    "a label beyond ASCII": ("A@HERE # Röntgen 放射線\n", [("A", "Röntgen 放射線")]),
    "CRLF": ("# all\r\nA@HERE\r\nB@HERE # two\r\n", [("A", None), ("B", "two")]),
    "CR": ("# all\rA@HERE\rB@HERE # two\r", [("A", None), ("B", "two")]),
    "all line ends": ("A@HERE\rB@HERE\r\n\nC@HERE", [("A", None), ("B", None), ("C", None)]),
    "a byte order mark": ("\ufeffA@HERE\n", [("A", None)]),
    "a byte order mark and a comment": ("\ufeff# all\r\nA@HERE\r\n", [("A", None)]),
    "a byte order mark in the middle": ("A@HERE\n\ufeffB@HERE\n", [("A", None), ("B", None)]),
    "white space around": ("  A@HERE  \n\tB@HERE\t\n", [("A", None), ("B", None)]),
    "one target twice": ("A@HERE\nA@HERE # again\n", [("A", None), ("A", "again")]),
    **{
        f"U+{ord(end):04X} in a label ends no line": (f"A@HERE # one{end}B@host\n", [("A", f"one{end}B@host")])
        for end in "\v\f\x1c\x1d\x1e\x85\u2028\u2029"
    },
}


def read_targets(capsys: Capsys, folder: Path, content: bytes, expected: list[tuple[str, str | None]]) -> None:
    """Echo what a file names, with HERE for a good peer; compare titles and labels."""
    with RawPeer() as peer:
        here = peer.endpoint.host_port
        for encoding in "utf-8", "utf-16-le", "utf-16-be":
            content = content.replace("HERE".encode(encoding), here.encode(encoding))
        (folder / "fleet").write_bytes(content)
        outcome = run_main(capsys, "-T", folder / "fleet", "--format", "json")
        assert len(peer.received) == len(expected)
    echoes = [line for line in map(json.loads, outcome.out.splitlines()) if line["type"] == "echo"]
    assert (outcome.code, outcome.err) == (0, "")
    assert [(line["target"].partition("@")[0], line["label"]) for line in echoes] == expected


@pytest.mark.parametrize(("content", "expected"), FILES.values(), ids=list(FILES))
def test_a_targets_file_is_read(
    capsys: Capsys, tmp_path: Path, content: str, expected: list[tuple[str, str | None]]
) -> None:
    read_targets(capsys, tmp_path, content.encode(), expected)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_a_targets_file_of_a_windows_editor(capsys: Capsys, tmp_path: Path, encoding: str) -> None:
    content = "\ufeff# Röntgen\r\nA@HERE # Röntgen\r\nB@HERE\r\n".encode(encoding)
    read_targets(capsys, tmp_path, content, [("A", "Röntgen"), ("B", None)])


def test_bytes_that_are_not_utf_8_may_stand_in_comments_and_labels(capsys: Capsys, tmp_path: Path) -> None:
    content = b"# R\xf6ntgen\r\nA@HERE # R\xf6ntgen\r\nB@HERE\r\n"
    read_targets(capsys, tmp_path, content, [("A", "R\ufffdntgen"), ("B", None)])


def test_standard_input_is_read_as_a_file_is() -> None:
    """Whatever the console's encoding, and with the mark that Windows puts before a text."""
    with RawPeer() as peer:
        text = f"\ufeff{peer.address} # Rö\n".encode()
        outcome = run_process(
            command_line("-T", "-", "--format", "json"), environment(PYTHONIOENCODING="cp1252"), stdin=text
        )
    assert outcome.code == 0
    assert json.loads(outcome.out.splitlines()[0])["label"] == "Rö"
    assert run_process(command_line("-T", "-"), stdin=b"host:0\n").err.splitlines()[1].startswith("-:1: the port 0 ")


def test_hosts_and_files_go_together(capsys: Capsys, tmp_path: Path) -> None:
    with RawPeer() as peer:
        here = peer.endpoint.host_port
        for name in "bc":
            (tmp_path / name).write_text(f"{name.upper()}@{here} # {name}\n")
        files = ["-T", tmp_path / "b", "--targets", tmp_path / "c"]
        lines = map(json.loads, run_main(capsys, f"A@{here}", *files, "--format", "json").out.splitlines())
    assert [line["label"] for line in lines if line["type"] == "echo"] == [None, "b", "c"]


@pytest.mark.parametrize("output", [[], ["--format", "json"], ["--format", "prometheus", "--output", "FILE"]], ids=str)
def test_all_that_is_wrong_is_told_at_once_and_nothing_is_sent(
    capsys: Capsys, tmp_path: Path, output: list[str]
) -> None:
    first, second, old = tmp_path / "first", tmp_path / "second", tmp_path / "old"
    old.write_text("as it was")
    with RawPeer() as peer:
        good = peer.address
        lines = [f"{good} # fine", "host:99999", "", "a b:104 # label", "X@", "dicom://X@host", "localhost:104#label"]
        first.write_text("\n".join(lines))
        second.write_bytes(b"R\xf6@host\n" + good.encode())
        output = [str(old) if each == "FILE" else each for each in output]
        code, out, err = run_main(capsys, good, "one:0", "-T", first, "-T", second, *output)
        assert peer.received == []
    assert (code, out, old.read_text()) == (2, "", "as it was")
    form = "; expected [AE-TITLE@]HOST[:PORT]"
    told = err.splitlines()
    assert told[0] == "dicom-echo: invalid addresses; nothing was sent (see dicom-echo --help)"
    assert sorted(told[1:]) == sorted([
        f"argument HOST: the port 0 is not in the range 1-65535{form}",
        f"{first}:2: the port 99999 is not in the range 1-65535{form}",
        f'{first}:4: "a b" is not a host name{form}',
        f"{first}:5: the host is missing{form}",
        f'{first}:6: "dicom://X@host" is a URL{form}',
        f'{first}:7: a label needs a space before its "#"',
        f"{second}:1: byte F6H is not UTF-8; save the file as UTF-8",
    ])  # fmt: skip
    nagios = run_main(capsys, "-T", second, "--format", "nagios")
    assert (nagios.code, nagios.err, nagios.out.count("\n")) == (3, "", 1)
    assert nagios.out.endswith(f"{second}:1: byte F6H is not UTF-8; save the file as UTF-8\n")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "{file} contains no addresses"),
        (b"# nothing\n\n", "{file} contains no addresses"),
        (b"\xff\xfeh\x00o\x00s", "cannot read {file}: it begins like UTF-16 but is not; save it as UTF-8"),
        (None, "cannot read {file}: no such file or directory"),
    ],
    ids=["empty", "comments only", "half of UTF-16", "missing"],
)
def test_a_file_that_is_no_list_of_targets(capsys: Capsys, tmp_path: Path, content: bytes | None, why: str) -> None:
    file = tmp_path / "fleet"
    if content is not None:
        file.write_bytes(content)
    assert run_main(capsys, "-T", file) == Outcome(2, "", f"dicom-echo: {why.format(file=file)}{HELP}")


# --- Output: what is replaced ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["text", "json", "nagios", "prometheus"])
def test_a_file_holds_what_standard_output_would(capsys: Capsys, tmp_path: Path, form: str) -> None:
    with closed_port() as endpoint:
        printed = run_main(capsys, endpoint.address, "--format", form)
        written = run_main(capsys, endpoint.address, "--format", form, "--output", tmp_path / "file")
    text = (tmp_path / "file").read_text(encoding="utf-8")
    assert (written.code, written.out, written.err) == (printed.code, "", "")
    assert (len(text.splitlines()), text.split()[0]) == (len(printed.out.splitlines()), printed.out.split()[0])
    assert files_in(tmp_path) == ["file"]


@posix
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o666])
@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_mode_and_group_of_the_file_that_is_replaced_are_kept(
    capsys: Capsys, tmp_path: Path, mode: int, mask: int
) -> None:
    file = tmp_path / "metrics"
    file.write_text("old")
    file.chmod(mode)
    groups = [0, 4] if os.geteuid() == 0 else os.getgroups()
    os.chown(file, -1, groups[-1])
    before = os.umask(mask)
    try:
        assert run_main(capsys, REFUSED, "--output", file).code == 3
        assert run_main(capsys, REFUSED, "--output", tmp_path / "new").code == 3
    finally:
        os.umask(before)
    status = file.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_gid, file.read_text() == "old") == (mode, groups[-1], False)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o666 & ~mask


@posix
def test_a_link_stays_and_the_file_that_it_names_is_replaced(capsys: Capsys, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "link").symlink_to("other/file")
    for _ in range(2):
        assert run_main(capsys, REFUSED, "--output", tmp_path / "link").code == 3
    assert (tmp_path / "link").is_symlink()
    assert "refused" in (tmp_path / "other" / "file").read_text(encoding="utf-8")
    assert files_in(tmp_path / "other") == ["file"]


@posix
@pytest.mark.parametrize(
    ("file", "why"),
    [
        ("no/file", "there is no folder {folder}/no"),
        ("loop", "too many levels of symbolic links"),
        ("folder", "is a directory"),
        ("socket", "nobody reads it"),
        ("fifo", "nobody reads it"),
        ("/dev/fd/99", "bad file descriptor"),
    ],
)
def test_what_cannot_be_written_is_told_before_anything_is_sent(
    capsys: Capsys, tmp_path: Path, file: str, why: str
) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "pool")
    (tmp_path / "pool").symlink_to(tmp_path / "loop")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listener, RawPeer() as peer:
        listener.bind(os.path.relpath(tmp_path / "socket"))
        path = str(tmp_path / file)
        outcome = run_main(capsys, peer.address, "--output", path)
        assert peer.received == []
    assert outcome == Outcome(2, "", f"dicom-echo: cannot write {path}: {why.format(folder=tmp_path)}{HELP}")
    assert files_in(tmp_path) == ["fifo", "folder", "loop", "pool", "socket"]


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root can be somebody else meanwhile")
@pytest.mark.parametrize("mode", [0o755, 0o1777], ids=["unwritable", "sticky"])
def test_a_folder_where_this_user_may_not_replace_the_file(capsys: Capsys, mode: int) -> None:
    with tempfile.TemporaryDirectory() as name, RawPeer() as peer:
        file = Path(name) / "file"
        file.write_text("root's")
        file.parent.chmod(mode)
        os.setresuid(65534, 65534, 0)
        try:
            outcome = run_main(capsys, peer.address, "--output", file)
        finally:
            os.setresuid(0, 0, 0)
        assert (files_in(file.parent), peer.received) == (["file"], [])
    why = f"this user may not replace files in {name}"
    assert outcome == Outcome(2, "", f"dicom-echo: cannot write {file}: {why}{HELP}")


# --- Output: what is written to --------------------------------------------------------------------------------------


@posix
@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "/proc/$$/fd/1", "LINK", "-"])
def test_a_log_that_standard_output_goes_to_is_never_replaced(tmp_path: Path, name: str) -> None:
    if "/proc" in name and not Path("/proc/self/fd").exists():
        pytest.skip("no /proc on this system")
    (tmp_path / "link").symlink_to("/dev/stdout")
    log = tmp_path / "log"
    name = name.replace("LINK", str(tmp_path / "link"))
    outcome = in_shell(f'exec >>{log}; echo before; "$@" --output {name}; echo after $?', REFUSED)
    lines = log.read_text(encoding="utf-8").splitlines()
    assert (outcome, lines[0], lines[1][:13], lines[-1]) == (Outcome(0, "", ""), "before", "❌ Unreachable", "after 3")
    assert files_in(tmp_path) == ["link", "log"]


@posix
def test_other_descriptors_pipes_and_devices(tmp_path: Path) -> None:
    assert in_shell('exec "$@" --output /dev/null', REFUSED) == Outcome(3, "", "")
    assert in_shell('"$@" --output >(cat >&2)', REFUSED).err.startswith("❌ Unreachable")
    assert in_shell('exec "$@" --output /dev/stderr', REFUSED).err.startswith("❌ Unreachable")
    assert in_shell('exec "$@" --output /dev/fd/7 7>&1', REFUSED).out.startswith("❌ Unreachable")
    read_only = in_shell('exec "$@" --output /dev/fd/7 7</dev/null', REFUSED)
    assert read_only == Outcome(3, "", "dicom-echo: cannot write the results: bad file descriptor\n")
    os.mkfifo(tmp_path / "fifo")
    outcome = in_shell(f'cat {tmp_path}/fifo & sleep 0.3; "$@" --output {tmp_path}/fifo; wait', REFUSED)
    assert (outcome.out.splitlines()[0], outcome.err) == ("❌ Unreachable: connection refused", "")
    assert stat.S_ISFIFO((tmp_path / "fifo").stat().st_mode)
    ours, theirs = socket.socketpair()
    with ours:
        with theirs, start_process(command_line(REFUSED, "--output", "/dev/stdout"), theirs.fileno()) as process:
            assert process.wait(PATIENCE) == 3
        assert ours.recv(9999).decode().startswith("❌ Unreachable")


@posix
def test_a_full_disk_keeps_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    with closed_port() as endpoint:
        hosts = [f"T{number}@{endpoint.host_port}" for number in range(30)]
        outcome = in_shell(f'ulimit -f 1; exec "$@" --output {tmp_path}/file --format json', *hosts)
    assert outcome == Outcome(3, "", "dicom-echo: cannot write the results: file too large\n")
    assert ((tmp_path / "file").read_text(), files_in(tmp_path)) == ("old", ["file"])


# --- Output: interrupted runs ----------------------------------------------------------------------------------------


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("form", ["prometheus", "json"])
def test_a_signal_leaves_no_temporary_file_and_the_old_one(tmp_path: Path, number: signal.Signals, form: str) -> None:
    (tmp_path / "file").write_text("old")
    with silent_listener() as endpoint:
        command = command_line(endpoint.address, "-t", 60, "--format", form, "--output", tmp_path / "file")
        with start_process(command) as process:
            while len(files_in(tmp_path)) < 2:
                assert process.poll() is None
            process.send_signal(number)
            assert process.communicate(timeout=PATIENCE) == ("", "")
    assert (process.returncode, files_in(tmp_path)) == (-number, ["file"])
    assert (tmp_path / "file").read_text() == "old"


def test_readers_never_see_a_part_of_a_file(capsys: Capsys, tmp_path: Path) -> None:
    file, seen, stop = tmp_path / "metrics", set(), threading.Event()

    def read() -> None:
        while not stop.is_set():
            if file.exists():
                seen.add(len(file.read_text(encoding="utf-8").splitlines()))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for _ in range(10):
            assert run_main(capsys, REFUSED, "127.0.0.1:2", "--format", "prometheus", "--output", file).code == 3
    finally:
        stop.set()
        reader.join()
    assert seen == {len(file.read_text(encoding="utf-8").splitlines())}
