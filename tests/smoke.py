"""The built archive on every Python of this host, on hosts of every bad kind that we could think of: `nox -s smoke`.

pytest collects this file only where it is named. Each test has a host of its own: a fresh home, temporary directory
and working directory, and the archive in a directory that holds nothing else.

- `DICOM_ECHO_ARCHIVE` names another archive than dist/dicom-echo.pyz; what the build writes lies beside it.
- `DICOM_ECHO_PYTHONS` names more interpreters, separated as on PATH.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import pytest
from rawpeer import A_ASSOCIATE_RQ, RawPeer, ReceiveSome, closed_port

if sys.platform == "win32":
    pytest.skip("these tests need a POSIX system", allow_module_level=True)

ROOT = Path(__file__).resolve().parent.parent
ARCHIVE = Path(os.environ.get("DICOM_ECHO_ARCHIVE", ROOT / "dist/dicom-echo.pyz")).resolve()
BILL = ARCHIVE.with_name("dicom-echo.cdx.json")
PAGE = ARCHIVE.with_name("dicom-echo.1")
WHEELS = list(ARCHIVE.parent.glob("*.whl"))
PATIENCE = 60.0
SUCCESS = "✅ Success\n"

# A shell starts what it puts into the background with SIGINT ignored, which the archive would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)


# --- The Pythons -----------------------------------------------------------------------------------------------------


class Python(NamedTuple):
    """An interpreter that really runs: not a shim that finds nothing behind it."""

    version: tuple[int, ...]
    path: str

    @property
    def name(self) -> str:
        """`3.12`."""
        return ".".join(map(str, self.version))


@functools.cache
def pythons() -> list[Python]:
    """One of each version, from old to new."""
    named = os.environ.get("DICOM_ECHO_PYTHONS", "").split(os.pathsep)
    of_pyenv = map(
        str, sorted(Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser().glob("versions/*/bin/python"))
    )
    on_path = (shutil.which(f"python{version}") or "" for version in ("2.7", *(f"3.{minor}" for minor in range(6, 15))))
    probe = "import os, sys; print('%d.%d' % sys.version_info[:2]); print(os.path.realpath(sys.executable))"
    found: dict[tuple[int, ...], str] = {}
    for candidate in filter(None, (*named, *of_pyenv, *on_path, sys.executable)):
        done = subprocess.run([candidate, "-c", probe], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            version, path = done.stdout.splitlines()
            found.setdefault(tuple(map(int, version.split("."))), path)
    return sorted(Python(version, path) for version, path in found.items())


GOOD = [python for python in pythons() if python.version >= (3, 9)]
OLD = [python for python in pythons() if python.version < (3, 9)]


def on(chosen: Sequence[Python]) -> pytest.MarkDecorator:
    """Run a test on these alone."""
    return pytest.mark.parametrize("python", chosen, ids=[python.name for python in chosen])


on_some = on([GOOD[0], GOOD[-1]])  # what depends on the releases of pynetdicom, but hardly on Python


# --- The host --------------------------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """What a run leaves behind."""

    code: int
    out: str
    err: str


WELL = Outcome(0, SUCCESS, "")


@dataclass(frozen=True)
class Host:
    """A fresh host with one Python, the archive, and a peer that answers. `before` stands before each command."""

    folder: Path
    archive: Path
    python: str
    peer: str
    before: tuple[str, ...] = ()

    def environment(self, **changes: str | None) -> dict[str, str]:
        """That of a user who has set nothing; None takes a variable away."""
        foreign = ("PYTHON", "SHIV_", "XDG_", "LC_", "COV_", "COVERAGE_", "NO_COLOR", "FORCE_COLOR")
        ours = {"HOME": str(self.folder / "home"), "TMPDIR": str(self.folder / "tmp"), "LANG": "C.UTF-8"}
        kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        return {name: value for name, value in (kept | ours | changes).items() if value is not None}

    def command(self, *arguments: object, flags: Sequence[str] = ()) -> list[str]:
        """`python [FLAGS] dicom-echo.pyz [ARGUMENTS]`."""
        return [*self.before, self.python, *flags, str(self.archive), *map(str, arguments)]

    def start(self, command: Sequence[str], **changes: str | None) -> subprocess.Popen[str]:
        """A process that one can wait for, or kill."""
        return subprocess.Popen(
            command,
            cwd=self.folder / "work",
            env=self.environment(**changes),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="backslashreplace",
        )

    def execute(self, *command: str, **changes: str | None) -> Outcome:
        """Run any command to its end."""
        with self.start(command, **changes) as process:
            return ended(process)

    def run(self, *arguments: object, flags: Sequence[str] = (), **changes: str | None) -> Outcome:
        """Run the archive to its end."""
        return self.execute(*self.command(*arguments, flags=flags), **changes)

    def script(self, text: str, *arguments: str, **changes: str | None) -> Outcome:
        """Run a script on the Python of this host."""
        return self.execute(self.python, "-c", textwrap.dedent(text), *arguments, **changes)

    def driven(self, preparation: str, *arguments: str) -> list[str]:
        """The archive, run by a script that first does something to its process."""
        running = "sys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')"
        script = f"import runpy, sys\n{textwrap.dedent(preparation)}\n{running}"
        return [*self.before, self.python, "-c", script, str(self.archive), *arguments]

    def files(self) -> set[str]:
        """Every file and directory there is, with the time of its last change."""
        paths = [path for top in (self.folder, self.archive.parent) for path in top.rglob("*")]
        return {f"{path} {path.lstat().st_mtime_ns}" for path in paths}


def ended(process: subprocess.Popen[str]) -> Outcome:
    """Wait for a process."""
    out, err = process.communicate(timeout=PATIENCE)
    return Outcome(process.returncode, out, err)


@pytest.fixture(scope="session")
def carried(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive, in a directory that holds nothing else."""
    if not ARCHIVE.exists():
        pytest.exit(f"there is no {ARCHIVE}: nox -s build makes it", returncode=2)
    return Path(shutil.copy(ARCHIVE, tmp_path_factory.mktemp("carried")))


@pytest.fixture(scope="session")
def uncompiled(carried: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive without bytecode: what one has whose Python the build was not told of."""
    archive = tmp_path_factory.mktemp("uncompiled") / carried.name
    with zipfile.ZipFile(carried) as pyz, zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as other:
        for name in pyz.namelist():
            if not name.startswith("lib/"):
                other.writestr(name, pyz.read(name))
    return archive


@pytest.fixture(params=GOOD, ids=[python.name for python in GOOD])
def python(request: pytest.FixtureRequest) -> Python:
    """Each Python that the archive is for."""
    chosen: Python = request.param
    return chosen


@pytest.fixture(scope="session")
def peer() -> Iterator[str]:
    """The address of a peer that answers every echo."""
    with RawPeer() as answering:
        yield answering.address


@pytest.fixture
def host(python: Python, carried: Path, peer: str) -> Iterator[Host]:
    """A fresh one."""
    with tempfile.TemporaryDirectory(prefix="host-") as folder:
        for name in ("home", "tmp", "work"):
            Path(folder, name).mkdir()
        yield Host(Path(folder), carried, python.path, peer)


@pytest.fixture(params=["known", "unknown"])
def either(host: Host, uncompiled: Path, request: pytest.FixtureRequest) -> Host:
    """A fresh one, whether the build was told of its Python or not."""
    return host if request.param == "known" else replace(host, archive=uncompiled)


def mounted(script: str) -> tuple[str, ...]:
    """The beginning of a command whose mounts, made by a shell script, end with it."""
    for unshare in (("unshare", "--mount"), ("unshare", "--mount", "--map-root-user")):
        if (
            shutil.which("unshare")
            and not subprocess.run([*unshare, "mount", "-t", "tmpfs", "none", "/mnt"], check=False).returncode
        ):
            return (*unshare, "sh", "-c", f'{script} || exit 99; exec "$@"', "sh")
    pytest.skip("this system lets us mount nothing (util-linux's unshare)")


# --- A good host -----------------------------------------------------------------------------------------------------


def locked(python: Python) -> dict[str, str]:
    """The versions of what the archive carries for a Python, by name."""
    lock = ROOT / "packaging" / ("pyz39.lock" if python.version < (3, 10) else "pyz.lock")
    return dict(re.findall(r"^([\w-]+)==(\S+)", lock.read_text(), re.MULTILINE))


def test_version(python: Python, either: Host) -> None:
    """One line says what runs; -v adds what an administrator compares with the bill of materials."""
    name, *rest = either.run("--version", "-v").out.splitlines()
    bundled = "pynetdicom {pynetdicom}, pydicom {pydicom}".format(**locked(python))
    assert re.fullmatch(rf"dicom-echo \S+ \({re.escape(bundled)}, Python {re.escape(python.name)}\.\d+\)", name)
    assert re.fullmatch(r"build [0-9a-f]{16}, with bytecode for \d\S*(, \d\S*)*", rest[0])
    inside = dict(line.removeprefix("contains ").split(" ", 1) for line in rest[1:])
    assert all(version in inside[name] for name, version in locked(python).items())
    assert set(inside) == {"dicom-echo", "pydicom", "pynetdicom", "shiv", "shtab"}


@on_some
def test_completion(host: Host) -> None:
    """All that it takes is inside."""
    code, out, err = host.run("--show-completion", "bash")
    assert (code, err) == (0, "")
    assert " --called-ae-title " in out
    assert out.rstrip().endswith(" dicom-echo")


def test_echo(either: Host) -> None:
    """To a peer that shares no code with the archive."""
    with RawPeer() as peer:
        assert either.run(peer.endpoint.host_port) == WELL
        assert peer.conversation().message_ids == [1]


def test_unreachable_peer_costs_no_pynetdicom(host: Host) -> None:
    """Exit code 3, soon; and shiv's bootstrap is never imported."""
    with closed_port() as endpoint:
        outcome = host.run(endpoint.host_port, flags=["-X", "importtime"])
    assert outcome.code == 3
    assert outcome.out.startswith("❌ Unreachable: connection refused\n")
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in outcome.err.splitlines()}
    assert not imported & {"pynetdicom", "pydicom", "_bootstrap"}
    assert "dicom_echo" in imported


def test_nothing_is_compiled(python: Python, host: Host) -> None:
    """On a Python that the build was told of, but for the two files that have to be read by any Python."""
    built_for = re.findall(r"\b\d+\.\d+", host.run("--version", "-v").out.splitlines()[1].partition("for ")[2])
    if python.name not in built_for:
        pytest.skip(f"the build found no Python {python.name}")
    auditing = """
        import atexit
        compiled = set()
        sys.addaudithook(lambda event, its: compiled.add(str(its[1])) if event == "compile" else None)
        atexit.register(lambda: print(*(name for name in compiled if ".pyz" in name), sep="\\n"))
    """
    outcome = host.execute(*host.driven(auditing, "--self-test"))
    assert sorted(outcome.out.splitlines()) == sorted(
        [f"{host.archive}/__main__.py", f"{host.archive}/dicom_echo.py", SUCCESS.strip()]
    )


def test_metadata(python: Python, host: Host) -> None:
    """Whoever imports from the archive finds the versions of what is in use."""
    script = """
        import dicom_echo
        from importlib.metadata import version
        print(*map(version, ("dicom-echo", "pynetdicom", "pydicom")), dicom_echo.__version__)
    """
    outcome = host.script(script, PYTHONPATH=str(host.archive))
    ours, *others, same = outcome.out.split()
    assert (others, ours) == ([locked(python)[name] for name in ("pynetdicom", "pydicom")], same)


CALLS = (
    "open openat openat2 creat truncate mkdir mkdirat mknod mknodat rename renameat renameat2 link linkat symlink "
    "symlinkat unlink unlinkat rmdir chmod fchmodat chown lchown fchownat utimensat fork vfork clone clone3 execve"
)
HARMLESS = re.compile(r"\bopen\w*\((?!.*\bO_(?:WRONLY|RDWR|CREAT))|\bclone3?\(.*CLONE_THREAD|/dev/(null|tty)")


@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
def test_nothing_is_written(either: Host) -> None:
    """No file, directory or name is made or changed, where all could be; and no other process is started."""
    before = either.files()
    trace = either.folder / "trace"
    strace = ("strace", "-f", "-qq", "-o", str(trace), "-e", "trace=" + ",".join(f"?{name}" for name in CALLS.split()))
    outcome = either.execute(*strace, *either.command("--self-test"))
    if outcome.code == 1 and "ptrace" in outcome.err:
        pytest.skip("this system does not let us trace")
    assert outcome == WELL
    lines = [line for line in trace.read_text().splitlines() if "(" in line and not HARMLESS.search(line)]
    assert len(lines) == 1, lines  # by strace, which has executed Python
    trace.unlink()
    assert either.files() == before


# --- A shiv archive --------------------------------------------------------------------------------------------------


@on_some
@pytest.mark.parametrize(
    ("name", "value", "arguments"),
    [
        ("SHIV_INTERPRETER", "1", ["-c", "import dicom_echo; print(dicom_echo.__file__, dicom_echo.send(PEER))"]),
        ("SHIV_ENTRY_POINT", "dicom_echo:main", ["PEER"]),
        ("SHIV_FORCE_EXTRACT", "1", ["PEER"]),
    ],
)
def test_settings_of_shiv(host: Host, name: str, value: str, arguments: list[str]) -> None:
    """They do as shiv documents: unpack, and run from there."""
    root = host.folder / "root"
    arguments = [each.replace("PEER", repr(host.peer) if "(" in each else host.peer) for each in arguments]
    outcome = host.run(*arguments, SHIV_ROOT=str(root), **{name: value})
    (unpacked,) = root.glob("dicom-echo.pyz_*/site-packages/dicom_echo.py")
    assert outcome == (WELL if name != "SHIV_INTERPRETER" else (0, f"{unpacked} 0\n", ""))


@on_some
def test_other_settings_of_shiv(host: Host) -> None:
    """They are for other archives."""
    settings = {
        "MODULE": "this",
        "CONSOLE_SCRIPT": "this",
        "PREPEND_PYTHONPATH": "hostile",
        "ROOT": str(host.folder / "root"),
    }
    assert host.run(host.peer, **{f"SHIV_{name}": value for name, value in settings.items()}) == WELL
    assert not (host.folder / "root").exists()


# --- Flags, names, places --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", ["-I", "-S", "-O", "-OO", "-I -S -B", "-bb -X dev -W error"])
def test_flags_of_python(python: Python, host: Host, flags: str) -> None:
    """pynetdicom checks its peer with asserts, and -S has no site-packages."""
    if python.version < (3, 10):
        flags = flags.replace("-bb ", "")  # pydicom 2 compares bytes with text
    assert host.run("--self-test", flags=flags.split()) == WELL


@on_some
def test_settings_of_python(either: Host) -> None:
    """What a user's profile may set."""
    settings = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONOPTIMIZE": "2", "PYTHONSAFEPATH": "1"}
    assert either.run(either.peer, **settings) == WELL


@on_some
@pytest.mark.parametrize("name", ["dicom-echo (1).pyz", "dicom-echo", "la d é 医/dicom-echo.pyz", "%TEMP% & 'x'.pyz"])
def test_names_of_the_archive(host: Host, name: str) -> None:
    """A browser's second download, and folders as people call them: by the full path, a relative one, and a link."""
    renamed = host.folder / name
    renamed.parent.mkdir(exist_ok=True)
    shutil.copy(host.archive, renamed)
    (host.folder / "work/dicom-echo").symlink_to(renamed)
    for path in (renamed, os.path.relpath(renamed, host.folder / "work"), Path("dicom-echo")):
        assert replace(host, archive=Path(path)).run(host.peer) == WELL
    assert renamed.read_bytes().startswith(b"#!/usr/bin/env python3\n")


@on_some
def test_relative_path_and_changed_directory(host: Host) -> None:
    """pynetdicom comes later, when the path leads elsewhere."""
    shutil.copy(host.archive, host.folder / "work/d.pyz")
    for entry in ("d.pyz", "d.pyz/", "./d.pyz"):
        script = f"""
            import os, sys
            sys.path.insert(0, {entry!r})
            import dicom_echo
            os.chdir("/")
            print(dicom_echo.send({host.peer!r}))
        """
        assert host.script(script) == (0, "0\n", "")


def test_without_home_and_user(host: Host) -> None:
    """A container's user, of which the system knows nothing, with no directory but the root's."""
    if os.geteuid() != 0 or not shutil.which("setpriv"):
        pytest.skip("only root, with util-linux's setpriv, can become another user")
    # Reading everything is the one privilege left, since others cannot reach interpreters in root's home.
    capability = [f"--{which}-caps=+dac_read_search" for which in ("inh", "ambient")]
    nameless = replace(host, before=("setpriv", "--reuid=54321", "--regid=54321", "--clear-groups", *capability))
    for home in (None, "", "/nonexistent"):
        assert nameless.run("--self-test", HOME=home) == WELL


@on_some
@pytest.mark.parametrize(
    "script",
    [
        "for m in $(awk '{print $2}' /proc/mounts | grep -vE '^/(proc|sys|dev)'); do mount -o remount,bind,ro $m; done",
        "mount -t tmpfs -o mode=0777 none /var/tmp",
        "mount -t tmpfs -o ro none /dev/shm",
    ],
    ids=["everything is read-only", "no sticky bit", "no shared memory"],
)
def test_locked_down_host(host: Host, script: str) -> None:
    """A pod's root is read-only; a directory for all may lack what keeps others out."""
    locked_down = replace(host, before=mounted(script))
    if "ro $m" in script:
        assert (
            locked_down.execute(*locked_down.before, "sh", "-c", f"! touch {host.folder}/work/file 2>/dev/null").code
            == 0
        )
    assert locked_down.run("--self-test", TMPDIR="/var/tmp") == WELL


# --- What the host has installed -------------------------------------------------------------------------------------

CARRIED = ("pydicom", "pynetdicom", "numpy", "dicom_echo", "_bootstrap")
STANDARD = (
    *("argparse", "ast", "concurrent", "json", "logging", "multiprocessing", "pickle", "queue", "selectors", "shutil"),
    *("signal", "socket", "ssl", "subprocess", "tempfile", "threading", "warnings", "zipfile", "zlib"),
)


def make_hostile(folder: Path, names: Sequence[str]) -> None:
    """Modules that end whoever imports them, with code 99."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / f"{name}.py").write_text("import os\nos._exit(99)\n")


@pytest.mark.parametrize("entry", ["", "work", "work/lib-dynload"])
def test_hostile_directories(host: Host, entry: str) -> None:
    """On PYTHONPATH, named like a folder of Python's own, or where we are: as many modules as let Python start."""
    needed = host.script("import runpy, sys, zlib; print(*sys.modules)").out.split()
    make_hostile(host.folder / (entry or "work"), [name for name in CARRIED + STANDARD if name not in needed])
    for arguments in ([host.peer], ["--self-test"]):
        assert host.run(*arguments, PYTHONPATH=str(host.folder / entry) if entry else os.pathsep) == WELL


@on_some
def test_hostile_packages_beside_the_standard_library(host: Host) -> None:
    """Where somebody has unpacked them. Here, that is a folder of links."""
    real = Path(host.script("import os; print(os.path.dirname(os.__file__))").out.strip())
    linked = host.folder / "python/lib" / real.name
    linked.mkdir(parents=True)
    for path in real.iterdir():
        (linked / path.name).symlink_to(path)
    make_hostile(linked, CARRIED)
    assert host.script("import pydicom", PYTHONHOME=str(linked.parents[1])).code == 99
    assert host.run("--self-test", PYTHONHOME=str(linked.parents[1])) == WELL


def test_hostile_site_packages(host: Host) -> None:
    """Broken packages; .pth files that import others before us, and that put a finder before all."""
    host.execute(host.python, "-m", "venv", "--without-pip", "--symlinks", str(host.folder / "venv"))
    (site_packages,) = (host.folder / "venv").glob("lib/python*/site-packages")
    make_hostile(site_packages, CARRIED)
    for name in ("pydicom", "pynetdicom", "numpy"):
        (host.folder / "early" / name).mkdir(parents=True)
        (host.folder / "early" / name / "__init__.py").write_text("WRONG = True\n")
    early = f"import sys; sys.path.insert(0, {str(host.folder / 'early')!r}); import pydicom, pynetdicom, numpy\n"
    (site_packages / "early.pth").write_text(early)
    finder = "class Finder:\n def find_spec(name, *_):\n  if name in {'PIL', 'numpy'}: import os; os._exit(99)"
    (site_packages / "finder.pth").write_text(f"import sys; exec({finder!r}); sys.meta_path.insert(0, Finder)\n")
    venv = replace(host, python=str(host.folder / "venv/bin/python"))
    assert venv.script("import pydicom; assert pydicom.WRONG").code == 0
    assert venv.run("--self-test") == WELL
    assert venv.run(host.peer) == WELL


# --- Where it cannot start -------------------------------------------------------------------------------------------


@on(OLD)
def test_old_pythons_say_what_would_do(python: Python, host: Host) -> None:
    """One line names a command on PATH that is new enough, if there is one: not a shim with nothing behind it."""
    path = host.folder / "path"
    path.mkdir()
    (path / "python3").symlink_to(python.path)
    (path / "python3.30").write_text("#!/bin/sh\nexit 127\n")
    (path / "python3.30").chmod(0o755)
    said = rf"Python 3\.9 or later is needed; this is {re.escape(python.name)}\.\d+ \({re.escape(python.path)}\)"
    before = host.files()
    for command in ("", "python3.9", "python3.11"):
        if command:
            (path / command).symlink_to(GOOD[0].path)
        expected = said + (f"; run it with {re.escape(command)}" if command else "") + "\n"
        code, out, err = host.run("--help", PATH=str(path))
        assert (code, out, bool(re.fullmatch("dicom-echo: " + expected, err))) == (2, "", True), err
        code, out, err = host.run("pacs", "--format", "nagios", PATH=str(path))
        assert (code, bool(re.fullmatch("DICOM ECHO UNKNOWN - " + expected, out)), err) == (3, True, ""), out
    assert {line for line in host.files() - before if "path" not in line} == set()


@on(OLD)
def test_old_pythons_cannot_import_it(host: Host) -> None:
    """An ImportError that says why, not a SyntaxError."""
    outcome = host.script("import dicom_echo", PYTHONPATH=str(host.archive))
    assert (outcome.code, outcome.err.splitlines()[-1]) == (1, "ImportError: dicom-echo needs Python 3.9 or later")


def assert_damage_is_told(broken: Host) -> None:
    """In one line, and in a plugin's own way."""
    code, out, err = broken.run(broken.peer)
    assert (code, out, err.count("\n"), err[:12]) == (2, "", 1, "dicom-echo: ")
    code, out, err = broken.run("--format=nagios", broken.peer)
    assert (code, out.count("\n"), err, out[:21]) == (3, 1, "", "DICOM ECHO UNKNOWN - ")


@pytest.mark.parametrize("module", ["dicom_echo", "pynetdicom/pdu"])
def test_damaged_archive(host: Host, module: str) -> None:
    """A copy that went wrong: one line, whether we are hit or what we import later."""
    data = bytearray(host.archive.read_bytes())
    with zipfile.ZipFile(host.archive) as pyz:
        for entry in pyz.infolist():
            if re.search(rf"^(lib|site-packages)/.*\b{module}\.pyc?$", entry.filename):
                middle = entry.header_offset + entry.compress_size // 2
                data[middle : middle + 100] = bytes(100)
    broken = replace(host, archive=host.folder / "dicom-echo.pyz")
    broken.archive.write_bytes(data)
    assert_damage_is_told(broken)
    broken.archive.write_bytes(data[: len(data) // 2])
    assert broken.run(host.peer).code == 1


@pytest.mark.parametrize("seed", range(6))
def test_a_flipped_bit(host: Host, seed: int) -> None:
    """In what an echo reads: it is told, even where the bytecode could still be run, or would crash Python."""
    chance, data = random.Random(seed), bytearray(host.archive.read_bytes())
    with zipfile.ZipFile(host.archive) as pyz:
        found = [each for each in pyz.infolist() if re.search(r"/(dicom_echo|pynetdicom/utils)\.pyc?$", each.filename)]
    for entry in found:  # those of each Python
        start = entry.header_offset + 30 + len(entry.filename)
        data[start + chance.randrange(entry.compress_size)] ^= 1 << chance.randrange(8)
    broken = replace(host, archive=host.folder / "dicom-echo.pyz")
    broken.archive.write_bytes(data)
    assert_damage_is_told(broken)


@pytest.mark.parametrize("module", ["dicom_echo", "selectors", "pynetdicom.pdu"])
def test_ctrl_c_from_the_first_moment(host: Host, module: str) -> None:
    """The signal ends the process while a module is imported: no traceback. A plugin says its line."""
    interrupted = f"""
        import os, signal, threading
        def hook(event, its):
            if event == "import" and its[0] == {module!r}: os.kill(os.getpid(), signal.SIGINT)
        sys.addaudithook(hook)
    """
    code, out, err = host.execute(*host.driven(interrupted, host.peer))
    assert code == -signal.SIGINT
    assert "Traceback" not in err
    code, out, err = host.execute(*host.driven(interrupted, "--format", "nagios", host.peer))
    assert (code, out.count("\n"), err) == (3, 1, "")
    assert out.startswith("DICOM ECHO UNKNOWN - ")
    ignored = textwrap.dedent(interrupted) + "signal.signal(signal.SIGINT, signal.SIG_IGN)"  # as nohup has it
    assert host.execute(*host.driven(ignored, host.peer)) == WELL


def test_ctrl_c_while_waiting_for_a_silent_peer(host: Host) -> None:
    """The process ends by the signal, so that a shell's loop ends, too."""
    with RawPeer((ReceiveSome(),)) as peer, host.start(host.command(peer.address, "-t", 60)) as process:
        while not (peer.received and peer.received[0].raw) and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        outcome = ended(process)
    assert outcome.code == -signal.SIGINT
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize("fate", ["overwritten", "removed"])
def test_archive_changes_while_it_runs(host: Host, fate: str) -> None:
    """An update does not disturb a monitoring that goes on, even where its peer has been down until then."""
    moving = replace(host, archive=Path(shutil.copy(host.archive, host.folder / "work")))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        process = moving.start(moving.command(f"127.0.0.1:{listener.getsockname()[1]}", "-c", 0, "-i", 0.1))
        assert process.stdout
        while "seq=2" not in process.stdout.readline():
            assert process.poll() is None
        if fate == "removed":
            moving.archive.unlink()
        else:
            moving.archive.write_bytes(bytes(moving.archive.stat().st_size))
        listener.listen()
        connection, _ = listener.accept()
        with connection:
            assert connection.recv(6)[0] == A_ASSOCIATE_RQ
        process.send_signal(signal.SIGINT)
        outcome = ended(process)
    assert outcome.code == -signal.SIGINT
    assert " echo statistics ---" in outcome.out
    assert "Traceback" not in outcome.err


# --- As a library ----------------------------------------------------------------------------------------------------


def test_import_in_several_threads(either: Host) -> None:
    """The one line that README gives to scripts on such hosts: all get the real module, whose verbs work."""
    script = f"""
        import sys, threading; sys.path.insert(0, {str(either.archive)!r})
        def echo():
            import dicom_echo
            print(dicom_echo.send({either.peer!r}), dicom_echo.EchoResult.__module__ + "\\n", end="")
        threads = [threading.Thread(target=echo) for number in range(8)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
    """
    assert either.script(script) == (0, "0 dicom_echo\n" * 8, "")


def test_import_leaves_the_process_alone(host: Host) -> None:
    """Signals and modules are somebody else's; pydicom is whole there."""
    script = f"""
        import signal, sys
        before = signal.getsignal(signal.SIGINT), sys.meta_path[-1], sys.dont_write_bytecode
        import dicom_echo
        dicom_echo.main(["-q", {host.peer!r}])
        import pydicom, pynetdicom
        print(pydicom.dcmread.__module__, pynetdicom.AE.__module__)
        assert before == (signal.getsignal(signal.SIGINT), sys.meta_path[-1], sys.dont_write_bytecode)
    """
    assert host.script(script, PYTHONPATH=str(host.archive)) == (0, "pydicom.filereader pynetdicom.ae\n", "")


def test_run_as_a_module_of_the_archive(host: Host) -> None:
    """`python -m dicom_echo`, where PYTHONPATH has it."""
    assert host.execute(host.python, "-m", "dicom_echo", "--self-test", PYTHONPATH=str(host.archive)) == WELL


# --- What the build wrote --------------------------------------------------------------------------------------------


def test_size_and_checksums() -> None:
    """As `sha256sum -c SHA256SUMS` would find them."""
    assert ARCHIVE.stat().st_size <= 5_000_000
    lines = ARCHIVE.with_name("SHA256SUMS").read_text(encoding="ascii").splitlines()
    sums = {name: digest for digest, name in (line.split("  ") for line in lines)}
    assert sums == {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in (ARCHIVE, BILL, PAGE, *WHEELS)}


def test_bill_of_materials() -> None:
    """CycloneDX, with all that is inside, and no more, in the versions of the lock files."""
    bill = json.loads(BILL.read_text(encoding="utf-8"))
    assert (bill["bomFormat"], bill["metadata"]["component"]["name"]) == ("CycloneDX", ARCHIVE.name)
    listed = {f"{component['name']}-{component['version']}" for component in bill["components"]}
    pinned = {f"{name}-{version}" for python in (GOOD[0], GOOD[-1]) for name, version in locked(python).items()}
    names = zipfile.ZipFile(ARCHIVE).namelist()
    found = {
        match[1].replace("_", "-") for name in names if (match := re.search(r"([^/]+)\.dist-info/METADATA$", name))
    }
    assert listed == found
    assert {name for name in listed if name.startswith(("py", "shtab"))} == pinned
    needs = {entry["ref"]: set(entry["dependsOn"]) for entry in bill["dependencies"]}
    assert set(needs) == {component["bom-ref"] for component in bill["components"]} | {ARCHIVE.name}
    needed = {ref.partition("@")[0] for ref in needs[ARCHIVE.name]}
    assert needed == {"pkg:pypi/dicom-echo", "pkg:pypi/shiv", "pkg:pypi/shtab"}


def test_contents() -> None:
    """Licences of all; no test suites, sample data, apps or scripts; each Python's folder has every module."""
    names = zipfile.ZipFile(ARCHIVE).namelist()
    holders = {re.sub("-.*", "", name) for name in names if re.search(r"^[^/]+dist-info/.*LICEN[CS]E", name)}
    assert holders == {"dicom_echo", "pydicom", "pynetdicom", "shiv", "shtab"}
    unwanted = r"(^|/)(tests?|test_files|apps|benchmarks|cli|bin|__pycache__)/|\.(dcm|gz|csv|json\.gz|pyd|so)$|/RECORD$"
    assert [name for name in names if re.search(unwanted, name)] == []
    facts = json.loads(zipfile.ZipFile(ARCHIVE).read("site-packages/dicom_echo_build.json"))
    folders = {name.split("/")[1] for name in names if name.startswith("lib/")}
    assert sorted(int(folder.split("-")[1][1:]) for folder in folders) == sorted(
        int(v.split(".")[1]) for v in facts["bytecode"]
    )
    for folder in folders - {each for each in folders if "-39-" in each}:
        sources = {name for name in names if re.fullmatch(r"site-packages/(?!py39/).*\.py", name)}
        assert {
            name.replace(f"lib/{folder}", "site-packages")[:-1]
            for name in names
            if name.startswith(f"lib/{folder}/") and name.endswith(".pyc")
        } == sources


@on_some
def test_man_page(host: Host) -> None:
    """Each option of --help is in it, and man has nothing against it; the wheel has the same."""
    page = PAGE.read_text(encoding="ascii").replace("\\-", "-")
    options = re.findall(r"^  (-[^ ,]+)", host.run("--help").out, flags=re.MULTILINE)
    assert len(options) > 30
    assert [option for option in options if f"\\fB{option}\\fR" not in page] == ["--help"]  # which a man page replaces
    for wheel in WHEELS:
        data = wheel.name.replace("-py3-none-any.whl", ".data/data")
        assert zipfile.ZipFile(wheel).read(f"{data}/share/man/man1/{PAGE.name}") == PAGE.read_bytes()
    if shutil.which("man"):
        shown = subprocess.run(["man", "--warnings", "-l", PAGE], capture_output=True, text=True, check=True)
        assert shown.stderr == ""
        assert "EXIT STATUS" in shown.stdout
