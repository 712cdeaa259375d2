"""The files that the command reads and writes: lists of targets, and --output."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import stat
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from command import HELP, REFUSED, Outcome, in_shell, posix, run_main
from rawpeer import Conversation, RawPeer, echo_rsp, script

from dicom_echo import _read_targets

Capsys = pytest.CaptureFixture[str]
Targets = list[tuple[str, "str | None"]]

UNREACHABLE = "❌ Unreachable: connection refused"


def files_in(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


# --- Targets ---------------------------------------------------------------------------------------------------------

# What a file holds, and which targets are read from it.
FILES: dict[str | bytes, Targets] = {
    "A@x": [("A@x", None)],
    "\n\nA@x\n   \n\t\nB@x\n\n": [("A@x", None), ("B@x", None)],
    "# all\nA@x\n  # indented\n#B@x\n": [("A@x", None)],
    "A@x # archive\nB@x   #   second floor   \n": [("A@x", "archive"), ("B@x", "second floor")],
    "A@x #archive\nB@x #\n": [("A@x", "archive"), ("B@x", None)],
    "A@x # room # 3\nB#@x # two\n": [("A@x", "room # 3"), ("B#@x", "two")],
    "A@x # Röntgen 放射線\n": [("A@x", "Röntgen 放射線")],
    "# all\r\nA@x\r\nB@x # two\r\n": [("A@x", None), ("B@x", "two")],
    "# all\rA@x\rB@x # two\r": [("A@x", None), ("B@x", "two")],
    "A@x\rB@x\r\n\nC@x": [("A@x", None), ("B@x", None), ("C@x", None)],
    "\ufeffA@x\n\ufeffB@x\n": [("A@x", None), ("B@x", None)],
    "\ufeff# all\r\nA@x\r\n": [("A@x", None)],
    "  A@x  \n\tB@x\t\n": [("A@x", None), ("B@x", None)],
    "A@x\nA@x # again\n": [("A@x", None), ("A@x", "again")],
    b"# R\xf6\nA@x # R\xf6\nB@x\n": [("A@x", "R\ufffd"), ("B@x", None)],
    **{
        "\ufeff# Rö\r\nA@x # Rö\r\nB@x\r\n".encode(encoding): [("A@x", "Rö"), ("B@x", None)]
        for encoding in ("utf-16-le", "utf-16-be")
    },
    **{f"A@x # one{no_end}B@x\n": [("A@x", f"one{no_end}B@x")] for no_end in "\v\f\x1c\x1d\x1e\x85\u2028\u2029"},
}


def test_a_targets_file_is_read(tmp_path: Path) -> None:
    def read(content: str | bytes) -> Targets:
        (tmp_path / "fleet").write_bytes(content if isinstance(content, bytes) else content.encode())
        found = _read_targets(str(tmp_path / "fleet"), [])
        return [(address, label) for _, address, label in found]

    assert {content: read(content) for content in FILES} == FILES


def test_standard_input_is_read_as_a_file_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the console's encoding, with the mark that Windows puts before a text, or replaced by an application."""
    data = "\ufeffA@x # Rö\n"
    for stream in io.TextIOWrapper(io.BytesIO(data.encode()), "cp1252"), io.StringIO(data):
        monkeypatch.setattr(sys, "stdin", stream)
        assert _read_targets("-", []) == [("-:1", "A@x", "Rö")]


def test_hosts_and_files_go_together(capsys: Capsys, tmp_path: Path) -> None:
    for name in "bc":
        (tmp_path / name).write_text(f"{name.upper()}@{REFUSED} # {name}\n")
    files = ["-T", tmp_path / "b", "--targets", tmp_path / "c"]
    code, out, err = run_main(capsys, f"A@{REFUSED}", *files, "--format", "json")
    *echoes, _ = map(json.loads, out.splitlines())
    labels = {each["called_ae_title"]: each["label"] for each in echoes}
    assert (code, labels, err) == (3, {"A": None, "B": "b", "C": "c"}, "")


def test_all_that_is_wrong_is_told_at_once_and_nothing_is_sent(capsys: Capsys, tmp_path: Path, peer: RawPeer) -> None:
    first, second, old = tmp_path / "first", tmp_path / "second", tmp_path / "old"
    old.write_text("as it was")
    first.write_text(f"{peer.address}\nhost:99999\n\nlocalhost:104#label")
    second.write_bytes(b"R\xf6@host\n" + peer.address.encode())
    files = ["-T", first, "-T", second, "--output", old, "--format", "prometheus"]
    code, out, err = run_main(capsys, peer.address, "one:0", *files)
    assert (code, out, old.read_text(), peer.received) == (2, "", "as it was", [])
    form = "; expected [AE-TITLE@]HOST[:PORT]"
    assert err.splitlines() == [
        "dicom-echo: invalid addresses; nothing was sent (see dicom-echo --help)",
        f'{first}:4: a label needs a space before its "#"',
        f"{second}:1: byte F6H is not UTF-8; save the file as UTF-8",
        f"argument HOST: the port 0 is not in the range 1-65535{form}",
        f"{first}:2: the port 99999 is not in the range 1-65535{form}",
    ]
    why = f"invalid addresses; nothing was sent; {second}:1: byte F6H is not UTF-8; save the file as UTF-8"
    told = Outcome(3, f"DICOM ECHO UNKNOWN - {why}\n", "")
    assert run_main(capsys, "-T", second, "--format", "nagios") == told


# --- Output: what is replaced ----------------------------------------------------------------------------------------


def test_a_file_holds_what_standard_output_would(capsys: Capsys, tmp_path: Path) -> None:
    code, out, _ = run_main(capsys, REFUSED)
    (tmp_path / "file").write_text("old")
    assert run_main(capsys, REFUSED, "--output", tmp_path / "file") == (code, "", "")
    assert (tmp_path / "file").read_text(encoding="utf-8") == out
    assert files_in(tmp_path) == ["file"]


@posix
def test_mode_and_group_of_the_file_that_is_replaced_are_kept(capsys: Capsys, tmp_path: Path) -> None:
    """node_exporter runs as another user and must be able to read the file."""
    file, new = tmp_path / "metrics", tmp_path / "new"
    group = 4 if os.geteuid() == 0 else os.getgroups()[-1]
    for mode, mask in ((0o640, 0o022), (0o666, 0o077), (0o2755, 0o022)):
        file.write_text("old")
        os.chown(file, -1, group)  # which clears the set-group-ID bit
        file.chmod(mode)
        before = os.umask(mask)
        try:
            for each in file, new:
                assert run_main(capsys, REFUSED, "--output", each).code == 3
        finally:
            os.umask(before)
        status = file.stat()
        assert (stat.S_IMODE(status.st_mode), status.st_gid, file.read_text() == "old") == (mode, group, False)
        assert stat.S_IMODE(new.stat().st_mode) == 0o666 & ~mask
        new.unlink()


@posix
def test_a_link_stays_and_the_file_that_it_names_is_replaced(capsys: Capsys, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "link").symlink_to("other/file")
    for _ in range(2):
        assert run_main(capsys, REFUSED, "--output", tmp_path / "link").code == 3
    assert (tmp_path / "link").is_symlink()
    assert "refused" in (tmp_path / "other" / "file").read_text(encoding="utf-8")
    assert files_in(tmp_path / "other") == ["file"]


# Paths that cannot be written, and why.
UNWRITABLE = {
    "no/file": "no such file or directory",
    "plain/file": "not a directory",
    "loop": "too many levels of symbolic links",
    "folder": "is a directory",
    "socket": "nobody reads it",
    "fifo": "nobody reads it",
    "/dev/fd/99": "bad file descriptor",
}


@posix
def test_what_cannot_be_written_is_told_before_anything_is_sent(capsys: Capsys, tmp_path: Path, peer: RawPeer) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "pool")
    (tmp_path / "pool").symlink_to(tmp_path / "loop")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "plain").touch()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(tmp_path / "socket"))
        for name, why in UNWRITABLE.items():
            path = tmp_path / name
            told = Outcome(2, "", f"dicom-echo: cannot write {path}: {why}{HELP}")
            assert run_main(capsys, peer.address, "--output", path) == told
    assert (peer.received, files_in(tmp_path)) == ([], ["fifo", "folder", "loop", "plain", "pool", "socket"])


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root can be somebody else meanwhile")
def test_a_folder_where_this_user_may_not_replace_the_file(capsys: Capsys, peer: RawPeer) -> None:
    for mode in 0o755, 0o1777:  # unwritable, and sticky
        with tempfile.TemporaryDirectory() as name:
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


# --- Output: until the new file is whole -----------------------------------------------------------------------------


def test_the_old_file_stays_until_the_new_one_is_whole(capsys: Capsys, tmp_path: Path) -> None:
    file, seen = tmp_path / "file", list[str]()
    file.write_text("old")
    old = file.stat().st_ino

    def answer(_conversation: Conversation) -> bytes:
        seen.append(file.read_text())
        return echo_rsp()

    with RawPeer(script(echo=answer)) as peer:
        run_main(capsys, REFUSED, peer.address, "--format", "json", "--output", file)
    assert seen == ["old"]
    assert file.read_text().startswith('{"schema_version"')
    assert file.stat().st_ino != old  # so no reader has seen a part of it
    assert files_in(tmp_path) == ["file"]


@posix
def test_the_old_file_stays_when_an_interrupted_run_has_nothing_to_say(capsys: Capsys, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")

    def interrupt(_conversation: Conversation) -> bytes:
        os.kill(os.getpid(), signal.SIGINT)
        return b""

    with RawPeer(script(accept=interrupt)) as silent:
        outcome = run_main(capsys, silent.address, "--format", "json", "--output", tmp_path / "file")
    assert outcome == (130, "", "")
    assert ((tmp_path / "file").read_text(), files_in(tmp_path)) == ("old", ["file"])


@posix
def test_the_old_file_stays_when_the_disk_is_full(capsys: Capsys, tmp_path: Path) -> None:
    import resource

    (tmp_path / "file").write_text("old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
    try:
        outcome = run_main(capsys, *[REFUSED] * 5, "--output", tmp_path / "file", "--format", "json")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert outcome == Outcome(3, "", "dicom-echo: cannot write the results: file too large\n")
    assert ((tmp_path / "file").read_text(), files_in(tmp_path)) == ("old", ["file"])


# --- Output: what is written to --------------------------------------------------------------------------------------


@posix
def test_a_log_that_standard_output_goes_to_is_never_replaced(tmp_path: Path) -> None:
    log, link = tmp_path / "log", tmp_path / "link"
    link.symlink_to("/dev/stdout")
    names = ["-", "/dev/stdout", "/dev/fd/1", str(link), "/dev/fd/7"]
    if Path("/proc/self/fd").exists():
        names += ["/proc/self/fd/1", "/proc/$$/fd/1"]  # the latter is that of the shell
    loop = f'for file in {" ".join(names)} /dev/stderr; do "$@" --output $file; echo $?; done'
    outcome = in_shell(f"exec >>{log} 7>&1; echo before; {loop}; echo after", REFUSED)
    assert (outcome.code, outcome.out, outcome.err.partition("\n")[0]) == (0, "", UNREACHABLE)
    lines = log.read_text(encoding="utf-8").splitlines()
    assert (lines[0], lines[-1], lines.count(UNREACHABLE)) == ("before", "after", len(names))
    assert lines.count("3") == len(names) + 1
    assert files_in(tmp_path) == ["link", "log"]


@posix
def test_other_descriptors_pipes_and_devices(capsys: Capsys, tmp_path: Path) -> None:
    def written(file: str, read: Callable[[], bytes] = lambda: b"") -> str:
        assert run_main(capsys, REFUSED, "--output", file) == (3, "", "")
        return read().decode().partition("\n")[0]

    assert written("/dev/null") == ""
    os.mkfifo(tmp_path / "fifo")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    assert written(str(tmp_path / "fifo"), lambda: os.read(reader, 9999)) == UNREACHABLE
    assert stat.S_ISFIFO((tmp_path / "fifo").stat().st_mode)
    os.close(reader)
    reader, writer = os.pipe()  # such is >(cat)
    assert written(f"/dev/fd/{writer}", lambda: os.read(reader, 9999)) == UNREACHABLE
    os.close(writer)
    outcome = run_main(capsys, REFUSED, "--output", f"/dev/fd/{reader}")  # which is open for reading
    assert outcome == Outcome(3, "", "dicom-echo: cannot write the results: bad file descriptor\n")
    os.close(reader)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert written(f"/dev/fd/{theirs.fileno()}", lambda: ours.recv(9999)) == UNREACHABLE
