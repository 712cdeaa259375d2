"""The built archive on every Python of this host, in every bad place that we could think of: `nox -s smoke`.

pytest collects this file only where it is named. Each test has a host of its own: a fresh home, temporary directory
and working directory, and the archive in a directory that holds nothing else.

- `DICOM_ECHO_ARCHIVE` names another archive than dist/dicom-echo.pyz; what the build writes lies beside it.
- `DICOM_ECHO_PYTHONS` names more interpreters, separated as on PATH.
- `DICOM_ECHO_OFFLINE=1` leaves out the test that installs packages.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import pytest
from rawpeer import RawPeer, ReceiveSome, closed_port

if sys.platform == "win32":
    pytest.skip("these tests need a POSIX system; Windows is simulated on one", allow_module_level=True)

ROOT = Path(__file__).resolve().parent.parent
ARCHIVE = Path(os.environ.get("DICOM_ECHO_ARCHIVE", ROOT / "dist/dicom-echo.pyz")).resolve()
BILL = ARCHIVE.with_name("dicom-echo.cdx.json")
NOBODY = 65534
PATIENCE = 60.0
SUCCESS = "✅ Success\n"
HOUR, DAY = 60 * 60, 24 * 60 * 60
MB = 1_000_000

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")


# --- The Pythons -----------------------------------------------------------------------------------------------------


class Python(NamedTuple):
    """An interpreter that really runs: not a shim that finds nothing behind it."""

    version: tuple[int, ...]
    path: str

    @property
    def name(self) -> str:
        """`3.12.1`."""
        return ".".join(map(str, self.version))


def candidates() -> Iterator[str]:
    """Where interpreters may be: some of them several times, some not at all."""
    yield from os.environ.get("DICOM_ECHO_PYTHONS", "").split(os.pathsep)
    if pyenv := shutil.which("pyenv"):
        root = subprocess.run([pyenv, "root"], capture_output=True, text=True, check=True).stdout.strip()
        yield from map(str, sorted(Path(root, "versions").glob("*/bin/python")))
    for version in ("2.7", *(f"3.{minor}" for minor in range(6, 15))):
        yield shutil.which(f"python{version}") or ""
    yield sys.executable


@functools.cache
def pythons() -> list[Python]:
    """One of each version, from old to new."""
    probe = "import os, sys; print('%d.%d.%d' % sys.version_info[:3]); print(os.path.realpath(sys.executable))"
    found: dict[tuple[int, ...], str] = {}
    for candidate in dict.fromkeys(filter(None, candidates())):
        try:
            said = subprocess.run([candidate, "-c", probe], capture_output=True, text=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError):
            continue
        version, path = said.splitlines()
        found.setdefault(tuple(map(int, version.split("."))), path)
    return sorted(Python(version, path) for version, path in found.items())


GOOD = [python for python in pythons() if python.version >= (3, 10)]
OLD = [python for python in pythons() if python.version < (3, 10)]
NEWEST = GOOD[-1:]
on_the_newest = pytest.mark.parametrize("python", NEWEST, ids=[python.name for python in NEWEST])


# --- The host --------------------------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """What a run leaves behind."""

    code: int
    out: str
    err: str


WELL = Outcome(0, SUCCESS, "")


@dataclass(frozen=True)
class Host:
    """A fresh host with one user, one Python, the archive, and a peer that answers.

    `user` is the command that makes us that user.
    """

    folder: Path
    archive: Path
    python: str
    peer: str
    user: tuple[str, ...] = ()
    uid: int = os.geteuid()
    cwd: str = "work"

    @property
    def home(self) -> Path:
        """The user's home."""
        return self.folder / "home"

    @property
    def tmp(self) -> Path:
        """The temporary directory."""
        return self.folder / "tmp"

    @property
    def cache(self) -> Path:
        """Where the archive unpacks to if nothing hinders it."""
        return self.home / ".cache/dicom-echo"

    def environment(self, **changes: str | None) -> dict[str, str]:
        """That of a user who has set nothing; None takes a variable away."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PYTHON", "SHIV_", "XDG_", "LC_", "COV_", "COVERAGE_"))
            and name not in {"TEMP", "TMP", "NO_COLOR", "FORCE_COLOR"}
        }
        ours = kept | {"HOME": str(self.home), "TMPDIR": str(self.tmp), "LANG": "C.UTF-8"} | changes
        return {name: value for name, value in ours.items() if value is not None}

    def command(self, *arguments: object, flags: Sequence[str] = (), archive: str | Path | None = None) -> list[str]:
        """`python [FLAGS] dicom-echo.pyz [ARGUMENTS]`."""
        return [*self.user, self.python, *flags, str(archive or self.archive), *map(str, arguments)]

    def start(self, command: Sequence[str], **changes: str | None) -> subprocess.Popen[bytes]:
        """A process that one can wait for, or kill."""
        return subprocess.Popen(
            command,
            cwd=self.folder / self.cwd,
            env=self.environment(**changes),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def execute(self, command: Sequence[str], **changes: str | None) -> Outcome:
        """Run any command to its end."""
        with self.start(command, **changes) as process:
            return ended(process)

    def run(self, *arguments: object, flags: Sequence[str] = (), **changes: str | None) -> Outcome:
        """Run the archive to its end."""
        return self.execute(self.command(*arguments, flags=flags), **changes)

    def files(self) -> set[str]:
        """Every file and directory there is, but for what the archive has unpacked."""
        everything = {path for path in self.folder.rglob("*") if self.cache.parent not in {path, *path.parents}}
        return {f"{path.relative_to(self.folder)} {path.lstat().st_mtime_ns}" for path in everything - {self.home}}

    def unpacked(self, below: Path | None = None) -> list[Path]:
        """The regular files in the cache, or below another directory."""
        return sorted(path for path in (below or self.cache).rglob("*") if path.is_file())

    def as_nobody(self) -> Host:
        """The same host, whose user is nobody: one without privileges, to whom only `tmp` belongs."""
        if os.geteuid() != 0 or not shutil.which("setpriv"):
            pytest.skip("only root, with util-linux's setpriv, can become another user")
        # Reading everything is the one privilege left, since nobody cannot reach interpreters in root's home.
        capability = [f"--{which}-caps=+dac_read_search" for which in ("inh", "ambient")]
        os.chown(self.tmp, NOBODY, NOBODY)
        user = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *capability)
        return replace(self, user=user, uid=NOBODY)


def ended(process: subprocess.Popen[bytes]) -> Outcome:
    """Wait for a process."""
    out, err = process.communicate(timeout=PATIENCE)
    return Outcome(process.returncode, out.decode("utf-8"), err.decode("utf-8", "backslashreplace"))


@pytest.fixture(scope="session")
def carried(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive, in a directory that holds nothing else."""
    if not ARCHIVE.exists():
        pytest.exit(f"there is no {ARCHIVE}: nox -s build makes it", returncode=2)
    return Path(shutil.copy(ARCHIVE, tmp_path_factory.mktemp("carried")))


@pytest.fixture(scope="session")
def uncompiled(carried: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive without bytecode: what one has whose Python the build did not find."""
    archive = tmp_path_factory.mktemp("uncompiled") / carried.name
    rewrite(carried, archive, lambda name, of: None if name.startswith(("bytecode/", "start/")) else of)
    return archive


def rewrite(archive: Path, to: Path, change: Callable[[str, bytes], bytes | None]) -> None:
    """Copy an archive; what `change` makes of a member stands in its place, or nothing."""
    to.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(archive) as pyz, zipfile.ZipFile(to, "w") as other:
        for name in pyz.namelist():
            if (content := change(name, pyz.read(name))) is not None:
                other.writestr(name, content)


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
    """A fresh one; the megabytes that were unpacked there go with it."""
    with tempfile.TemporaryDirectory(prefix="host-") as folder:
        for name in ("home", "tmp", "work"):
            Path(folder, name).mkdir()
        yield Host(Path(folder), carried, python.path, peer)


@pytest.fixture
def sources(host: Host, uncompiled: Path) -> Host:
    """A fresh one, with a Python that the build did not find."""
    return replace(host, archive=uncompiled)


@pytest.fixture(params=["carried", "compiled there"])
def either(host: Host, uncompiled: Path, request: pytest.FixtureRequest) -> Host:
    """A fresh one, whether the build has found its Python or not."""
    return host if request.param == "carried" else replace(host, archive=uncompiled)


@pytest.fixture(scope="session")
def namespace() -> tuple[str, ...]:
    """The command that gives a shell script mounts of its own, which end with it."""
    for command in (("unshare", "--mount", "sh", "-c"), ("unshare", "--mount", "--map-root-user", "sh", "-c")):
        try:
            subprocess.run([*command, "mount -t tmpfs tmpfs /tmp"], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        return command
    pytest.skip("this system lets us mount nothing (util-linux's unshare)")


def assert_one_line(outcome: Outcome, *parts: str) -> None:
    """Exit code 2, and one line on standard error that has these parts."""
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.count("\n") == 1
    assert outcome.err.startswith("dicom-echo: ")
    for part in parts:
        assert part in outcome.err


# --- A good host -----------------------------------------------------------------------------------------------------


def test_version(python: Python, host: Host) -> None:
    """One line says which versions of everything run."""
    outcome = host.run("--version")
    bundled = "pynetdicom {pynetdicom}, pydicom {pydicom}".format(**locked())
    assert re.fullmatch(rf"dicom-echo \S+ \({re.escape(bundled)}, Python {re.escape(python.name)}\)\n", outcome.out)
    assert (outcome.code, outcome.err) == (0, "")


def test_verbose_version_names_the_build_and_the_contents(host: Host) -> None:
    """What an administrator compares with the bill of materials."""
    lines = host.run("--version", "-v").out.splitlines()
    assert re.fullmatch(r"build [0-9a-f]{16}, with bytecode for \d\S*(, \d\S*)*", lines[1])
    inside = dict(line.removeprefix("contains ").split() for line in lines[2:])
    assert inside.items() >= locked().items()
    assert set(inside) == {"dicom-echo", "pydicom", "pynetdicom", "shiv"}


def test_self_test(host: Host) -> None:
    """First start and second, and nothing but the one line."""
    assert host.run("--self-test") == WELL
    assert host.run("--self-test") == WELL


def test_echo(host: Host) -> None:
    """To a peer that shares no code with the archive."""
    with RawPeer() as peer:
        outcome = host.run(peer.endpoint.host_port, flags=["-X", "importtime"])
        assert peer.conversation().message_ids == [1]
    assert outcome[:2] == WELL[:2]
    assert "pynetdicom" in imported(outcome.err)


def test_unreachable_peer_costs_no_pynetdicom(host: Host) -> None:
    """Exit code 3, soon."""
    with closed_port() as endpoint:
        outcome = host.run(endpoint.host_port, flags=["-X", "importtime"])
    assert outcome.code == 3
    assert outcome.out.startswith("❌ Unreachable: connection refused\n")
    assert not imported(outcome.err) & {"pynetdicom", "pydicom"}


def imported(report: str) -> set[str]:
    """The top-level modules in what `-X importtime` reports."""
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in report.splitlines()}


def test_the_first_start_compiles_nothing(python: Python, host: Host) -> None:
    """On a Python that the build found, one file with all modules as bytecode is the whole cache."""
    built_for = re.findall(r"\d+\.\d+", host.run("--version", "-v").out.splitlines()[1].partition("for ")[2])
    if "{}.{}".format(*python.version) not in built_for:
        pytest.skip(f"the build found no Python {python.name}")
    shutil.rmtree(host.cache)
    auditing = """
        import atexit
        compiled = set()
        sys.addaudithook(lambda event, its: compiled.add(str(its[1])) if event == "compile" else None)
        atexit.register(lambda: print(*compiled, sep="\\n"))
    """
    outcome = host.execute(driven(host, auditing, "--self-test"))
    assert outcome.out.startswith(SUCCESS)
    ours = [name for name in outcome.out.splitlines() if name.startswith((str(host.archive), str(host.cache)))]
    assert ours == [f"{host.archive}/__main__.py"]
    assert [path.name for path in host.unpacked()] == ["site-packages"]
    names = zipfile.ZipFile(host.unpacked()[0]).namelist()
    assert {"dicom_echo.pyc", "pydicom/__init__.pyc", "pynetdicom/__init__.pyc"} <= set(names)
    assert not [name for name in names if name.endswith(".py")]


def driven(host: Host, preparation: str, *arguments: str) -> list[str]:
    """The archive run by a script that first does something to its process."""
    running = "sys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')"
    script = f"import runpy, sys\n{textwrap.dedent(preparation)}\n{running}"
    return [host.python, "-c", script, str(host.archive), *arguments]


FLAGS = ["-I", "-S", "-E", "-O", "-OO", "-B", "-I -S -B", "-bb -X dev -W error"]


@pytest.mark.parametrize("flags", FLAGS)
def test_flags_of_python(host: Host, flags: str) -> None:
    """pynetdicom checks its peer with asserts, pydicom reads docstrings, and -S has no site-packages."""
    assert host.run("--self-test", flags=flags.split()) == WELL


@pytest.mark.parametrize("name", ["PYTHONDONTWRITEBYTECODE", "PYTHONOPTIMIZE", "PYTHONSAFEPATH"])
def test_settings_of_python(host: Host, name: str) -> None:
    """What a user's profile may set."""
    assert host.run(host.peer, **{name: "1"}) == WELL
    assert host.run("--version", **{name: "1"}).code == 0


OF_SHIV = {
    "SHIV_COMPILE_PYC": "0",
    "SHIV_COMPILE_WORKERS": "many",
    "SHIV_CONSOLE_SCRIPT": "dicom-echo",
    "SHIV_ENTRY_POINT": "this",
    "SHIV_EXTEND_PYTHONPATH": "1",
    "SHIV_FORCE_EXTRACT": "1",
    "SHIV_INTERPRETER": "1",
    "SHIV_MODULE": "this",
    "SHIV_PREPEND_PYTHONPATH": "hostile",
}


@pytest.mark.parametrize("name", OF_SHIV)
def test_settings_of_shiv(host: Host, name: str) -> None:
    """They are for other archives, and for the developers of those. SHIV_ROOT alone is meant for us, too."""
    make_hostile(host.folder / "work/hostile", CARRIED)
    assert host.run(host.peer, **{name: OF_SHIV[name]}) == WELL
    assert host.run("--self-test", **{name: OF_SHIV[name]}) == WELL
    assert len(host.unpacked()) == 1


@pytest.mark.parametrize("encoding", ["cp437", "cp1252", "ascii", "utf-8"])
def test_console_encodings(host: Host, encoding: str) -> None:
    """A stream that has no ✅ gets an ASCII form."""
    said = SUCCESS if encoding == "utf-8" else "[OK] Success\n"
    assert host.run(host.peer, PYTHONIOENCODING=encoding) == (0, said, "")


def test_ctrl_c_while_waiting_for_a_silent_peer(host: Host) -> None:
    """130, as of a program that the signal ends, and no traceback."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a runner in the background ignores it, and we would too
    with RawPeer((ReceiveSome(),)) as peer, host.start(host.command(peer.address, "-t", 60)) as process:
        while not (peer.received and peer.received[0].raw) and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        outcome = ended(process)
    assert outcome.code == 130
    assert "Traceback" not in outcome.err
    assert "KeyboardInterrupt" not in outcome.err


# --- Old Pythons -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("python", OLD, ids=[python.name for python in OLD])
def test_old_pythons_say_what_is_needed(python: Python, host: Host) -> None:
    """One line, and nothing unpacked."""
    before = host.files()
    said = f"dicom-echo needs Python 3.10 or later; this is {python.name} ({python.path})\n"
    for arguments in (["--self-test"], ["--help"], []):
        assert host.run(*arguments) == (2, "", said)
    assert host.files() == before
    assert not host.cache.parent.exists()


@pytest.mark.parametrize("python", OLD, ids=[python.name for python in OLD])
def test_old_pythons_cannot_import_it(host: Host) -> None:
    """An ImportError that says why, not a SyntaxError."""
    outcome = host.execute([host.python, "-c", "import dicom_echo"], PYTHONPATH=str(host.archive))
    assert outcome.code == 1
    assert outcome.err.endswith("ImportError: dicom-echo needs Python 3.10 or later\n")


# --- No home ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("home", ["unset", "empty", "missing", "read-only"])
def test_unprivileged_user_without_a_home(host: Host, home: str) -> None:
    """A service account. Home, archive and working directory are root's; only the temporary directory is left."""
    nobody = host.as_nobody()
    value = {"unset": None, "empty": "", "missing": "/nonexistent", "read-only": str(host.home)}[home]
    before, beside = host.files(), list(host.archive.parent.iterdir())
    assert nobody.run("--self-test", HOME=value) == WELL
    assert nobody.run("--version", HOME=value).code == 0
    cache = host.tmp / f"dicom-echo-{NOBODY}"
    assert (stat.S_IMODE(cache.stat().st_mode), cache.stat().st_uid) == (0o700, NOBODY)
    assert {line for line in host.files() - before if not line.startswith("tmp")} == set()
    assert list(host.archive.parent.iterdir()) == beside
    assert [path.name for path in host.tmp.iterdir()] == [cache.name]


def test_user_without_a_name(host: Host) -> None:
    """A container's user id, of which the system knows nothing."""
    host.as_nobody()
    nameless = replace(host, user=("setpriv", "--reuid=54321", *host.as_nobody().user[2:]), uid=54321)
    os.chown(host.tmp, 54321, NOBODY)
    assert nameless.run(nameless.peer, HOME=None) == WELL
    assert [path.name for path in host.tmp.iterdir()] == ["dicom-echo-54321"]


def test_missing_home_is_not_made(host: Host) -> None:
    """Not even by root, who could."""
    host.home.rmdir()
    assert host.run(host.peer) == WELL
    assert not host.home.exists()
    assert [path.name for path in host.tmp.iterdir()] == [f"dicom-echo-{host.uid}"]


def test_xdg_cache_home(host: Host) -> None:
    """The custom of the system."""
    assert host.run(host.peer, XDG_CACHE_HOME=str(host.folder / "caches")) == WELL
    assert len(host.unpacked(host.folder / "caches/dicom-echo")) == 1
    assert list(host.home.iterdir()) == []


def test_shiv_root(host: Host) -> None:
    """Who sets it wants that."""
    root = host.folder / "root"
    assert host.run(host.peer, SHIV_ROOT=str(root)) == WELL
    assert len(host.unpacked(root / f"dicom-echo-{host.uid}")) == 1
    assert list(host.home.iterdir()) == list(host.tmp.iterdir()) == []


@pytest.mark.parametrize("place", ["/proc", "/proc/nowhere", "/dev/null"])
def test_shiv_root_where_nothing_can_be_written(host: Host, place: str) -> None:
    """One line; not some other place."""
    assert_one_line(host.run(host.peer, SHIV_ROOT=place), place, "SHIV_ROOT")
    assert list(host.home.iterdir()) == list(host.tmp.iterdir()) == []


def test_shiv_root_is_relative(host: Host) -> None:
    """To where we are; which may not exist any more."""
    assert host.run(host.peer, SHIV_ROOT="root") == WELL
    assert len(host.unpacked(host.folder / f"work/root/dicom-echo-{host.uid}")) == 1
    script = 'mkdir gone && cd gone && rmdir ../gone && exec "$@"'
    outcome = host.execute(["sh", "-c", script, "sh", *host.command("--help")], SHIV_ROOT="root")
    assert_one_line(outcome, "root: No such file or directory", "SHIV_ROOT")


def test_shiv_root_that_cannot_be_printed(host: Host) -> None:
    """The message stays one line, and nothing in it is for a terminal."""
    root = host.folder / "a\nb\x1b[31m/root"
    assert_one_line(host.run(host.peer, SHIV_ROOT=str(root)), repr(str(root)), "No such file")
    root.mkdir(parents=True)
    root.parent.chmod(0o777)
    assert_one_line(host.run(host.peer, SHIV_ROOT=str(root)), repr(str(root)), "others can change", "SHIV_ROOT")


def test_no_writable_place_at_all(host: Host, namespace: tuple[str, ...]) -> None:
    """All that is left is to say so."""
    # What another run has left there would do; here it is hidden by an empty directory.
    script = f"""
        for place in /tmp /var/tmp; do
            mount --bind $place $place && mount -o remount,bind,ro $place || exit 99
            left=$place/dicom-echo-{host.uid}
            [ ! -e $left ] || mount -t tmpfs -o ro,mode=700 none $left || exit 99
        done
        exec "$@"
    """
    for changes in ({"HOME": "/nonexistent"}, {"HOME": ""}, {"HOME": "/proc"}):
        outcome = host.execute([*namespace, script, "sh", *host.command("--help")], TMPDIR=None, **changes)
        assert_one_line(outcome, "/tmp: Read-only file system", "/var/tmp", "SHIV_ROOT")


# --- Whom the cache may belong to ------------------------------------------------------------------------------------


def test_cache_is_private(host: Host) -> None:
    """Whatever the umask is."""
    command = ["sh", "-c", 'umask 0; exec "$@"', "sh", *host.command(host.peer)]
    assert host.execute(command) == WELL
    for path in (host.cache, *host.cache.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
        assert path.stat().st_uid == host.uid
    assert stat.S_IMODE(host.cache.stat().st_mode) == 0o700


def plant(place: Path, how: str) -> Path:
    """Make a directory that is not ours alone; it, or what stands behind it."""
    if how == "link":
        behind = place.with_name("behind")
        behind.mkdir(mode=0o700)
        place.symlink_to(behind)
        return behind
    place.mkdir()
    place.chmod(int(how, 8) if how.isdigit() else 0o700)
    if how == "another's":
        os.chown(place, 54321, 54321)
    return place


PLANTED = ["770", "702", "777", "750", "link", pytest.param("another's", marks=as_root)]


@pytest.mark.parametrize("how", PLANTED)
def test_cache_that_others_could_have_filled(host: Host, how: str) -> None:
    """It is left alone for the next place; and where SHIV_ROOT leaves no other place, it is refused."""
    host.cache.parent.mkdir()
    planted = plant(host.cache, how)
    assert host.run("--version").code == 0
    assert list(planted.iterdir()) == []
    assert len(host.unpacked(host.tmp / f"dicom-echo-{host.uid}")) == 1
    root = host.folder / "root"
    root.mkdir()
    planted = plant(root / f"dicom-echo-{host.uid}", how)
    assert_one_line(host.run(host.peer, SHIV_ROOT=str(root)), "not private", "SHIV_ROOT")
    assert list(planted.iterdir()) == []


def test_every_named_place_is_squatted(host: Host, namespace: tuple[str, ...]) -> None:
    """Then a fresh one is made, which goes away with the run."""
    shutil.copy(host.archive, host.folder)
    planted = []
    for name in ("tmp", "var-tmp"):
        (host.folder / name).mkdir(exist_ok=True)
        planted.append(plant(host.folder / name / "dicom-echo-0", "777"))  # who mounts is root
    script = 'mount --bind $0 /mnt && cd /mnt && mount --bind tmp /tmp && mount --bind var-tmp /var/tmp && exec "$@"'
    command = host.command(host.peer, archive="/mnt/dicom-echo.pyz")
    assert host.execute([*namespace, script, str(host.folder), *command], HOME="/nonexistent", TMPDIR=None) == WELL
    for place in planted:
        assert list(place.iterdir()) == []
        assert list(place.parent.iterdir()) == [place]


# On Windows it is what is left without %LOCALAPPDATA%.
FRESH = """
import argparse, asyncio, atexit, ctypes, json, logging, pathlib, shutil, signal, socket, ssl, subprocess, tempfile
import os
sys.platform = "win32"
def end(*_, **__):
    os.kill(os.getpid(), getattr(signal, 'SIG{}'))
"""
ENDING = {"TERM": 143, "HUP": 129}


@pytest.mark.parametrize("name", ENDING)
@pytest.mark.parametrize("moment", ["tempfile.mkstemp", "os.replace", "json.loads"])
def test_fresh_directory_is_removed_at_the_end_of_a_terminated_start(host: Host, name: str, moment: str) -> None:
    """Before dicom_echo takes signals."""
    command = driven(host, FRESH.format(name) + f"{moment} = end", host.peer)
    assert host.execute(command, LOCALAPPDATA=None) == (ENDING[name], "", "")
    assert list(host.tmp.iterdir()) == list(host.home.iterdir()) == []


@pytest.mark.parametrize("name", ENDING)
def test_fresh_directory_is_removed_at_the_end_of_a_terminated_echo(host: Host, name: str) -> None:
    """Soon: it is not for us to wait for the peer."""
    with RawPeer((ReceiveSome(),)) as peer:
        command = driven(host, FRESH, peer.address, "-t", "20")
        with host.start(command, LOCALAPPDATA=None) as process:
            while not (peer.received and peer.received[0].raw) and process.poll() is None:
                time.sleep(0.01)
            assert [path.name for path in host.tmp.glob("dicom-echo-once-*")] != []
            process.send_signal(getattr(signal, f"SIG{name}"))
            assert process.wait(timeout=5) == ENDING[name]
    assert list(host.tmp.iterdir()) == []


def test_terminated_between_echoes(host: Host) -> None:
    """143, and the statistics of what was."""
    with host.start(host.command(host.peer, "-c", "0", "-i", "0.1")) as process:
        assert process.stdout
        seen = [process.stdout.readline() for _ in range(3)]
        process.send_signal(signal.SIGTERM)
        outcome = ended(process)
    assert b"seq=2" in seen[2]
    assert outcome.code == 143
    assert " echo statistics ---" in outcome.out


def test_ignored_hangup_stays_ignored(host: Host) -> None:
    """As nohup has it."""
    ignoring = "signal.signal(signal.SIGHUP, signal.SIG_IGN)\natexit.register(end)"
    command = driven(host, FRESH.format("HUP") + ignoring, host.peer)
    assert host.execute(command, LOCALAPPDATA=None) == WELL


def test_import_leaves_signals_alone(host: Host) -> None:
    """They are somebody else's."""
    probe = "import signal; print(*map(signal.getsignal, (signal.SIGTERM, signal.SIGHUP)))"
    before = host.execute([host.python, "-c", probe])
    assert host.execute([host.python, "-c", f"import dicom_echo; {probe}"], PYTHONPATH=str(host.archive)) == before


def test_old_fresh_directories_go_away(host: Host) -> None:
    """Those of killed runs; nobody else's, and nothing else of ours."""
    names = {"dicom-echo-once-old": 31, "dicom-echo-once-recent": 29, "dicom-echo-0": 31, "another": 31}
    if os.geteuid() == 0:
        names["dicom-echo-once-not-ours"] = 31
    for name, days in names.items():
        (host.tmp / name / "of.pyz_0").mkdir(parents=True)
        if name.endswith("ours"):
            os.chown(host.tmp / name, NOBODY, NOBODY)
        age(host.tmp / name, days * DAY)
    assert host.execute(driven(host, FRESH, host.peer), LOCALAPPDATA=None) == WELL
    assert {path.name for path in host.tmp.iterdir()} == set(names) - {"dicom-echo-once-old"}


@pytest.mark.parametrize("mode", ["777", "775"])
def test_way_to_the_cache_that_others_can_change(host: Host, mode: str) -> None:
    """They could put another directory in the stead of ours. Not so where it is sticky, like /tmp."""
    root = host.folder / "shared/root"
    root.mkdir(parents=True)
    root.parent.chmod(int(mode, 8))
    assert_one_line(host.run(host.peer, SHIV_ROOT=str(root)), "others can change", "SHIV_ROOT")
    assert list(root.iterdir()) == []
    root.parent.chmod(int(mode, 8) | stat.S_ISVTX)
    assert host.run("--version", SHIV_ROOT=str(root)).code == 0


# --- Whole or not at all ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("starts", [2, 6])
def test_first_starts_at_once(host: Host, starts: int) -> None:
    """None of them harms another."""
    processes = [host.start(host.command(host.peer)) for _ in range(starts)]
    assert [ended(process) for process in processes] == [WELL] * starts
    assert [path.name for path in host.unpacked()] == ["site-packages"]


KILLED = {
    "before the cache": "import os; os.mkdir = die",
    "before the file": "import tempfile; tempfile.mkstemp = die",
    "before the first byte": "limit(0)",
    "after a byte": "limit(1)",
    "half-way": "limit(1_000_000)",
    "before the renaming": "import os; os.replace = die",
    "after the renaming": "import os; rename = os.replace; os.replace = lambda *names: (rename(*names), die())",
}
DYING = """
import os, resource, signal
def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
def limit(size):  # the system itself ends who writes more
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
"""


@pytest.mark.parametrize("moment", KILLED)
def test_killed_while_unpacking(host: Host, moment: str) -> None:
    """A part of the file is never taken for the whole."""
    outcome = host.execute(driven(host, DYING + KILLED[moment], "--self-test"))
    assert outcome.code in {-signal.SIGKILL, -signal.SIGXFSZ}
    assert host.run(host.peer) == WELL
    assert len([path for path in host.unpacked() if path.suffix != ".part"]) == 1


def test_killed_at_any_time(host: Host) -> None:
    """As it really happens: from outside."""
    for delay in (40, 80, 120):
        shutil.rmtree(host.cache, ignore_errors=True)
        with host.start(host.command(host.peer)) as process:
            time.sleep(delay / 1000)
            process.kill()
        assert host.run(host.peer) == WELL


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda data: data[:MB],
    "emptied": lambda data: b"",
    "zeros": lambda data: bytes(len(data)),
    "four zeros": lambda data: bytes(4),
    "longer": lambda data: data + b"\0",
    "a bit flipped": lambda data: data[:MB] + bytes([data[MB] ^ 1]) + data[MB + 1 :],
}


@pytest.mark.parametrize("how", DAMAGE)
def test_damaged_cache_is_repaired(host: Host, how: str) -> None:
    """After a power cut, say."""
    damage_and_repair(host, how)


@on_the_newest
@pytest.mark.parametrize("how", DAMAGE)
def test_damaged_cache_is_compiled_anew(sources: Host, how: str) -> None:
    """On a Python that the build did not find."""
    damage_and_repair(sources, how)


def damage_and_repair(host: Host, how: str) -> None:
    same = {"PYTHONHASHSEED": "0"}  # else a Python that compiles for itself writes a set in another order
    assert host.run("--version", **same).code == 0
    (cached,) = host.unpacked()
    whole = cached.read_bytes()
    cached.write_bytes(DAMAGE[how](whole))
    assert host.run(host.peer, **same) == WELL
    assert cached.read_bytes() == whole
    assert host.unpacked() == [cached]


def test_directory_in_the_place_of_the_cached_file(host: Host) -> None:
    """What shiv itself would have left there; the next place will do."""
    assert host.run("--version").code == 0
    (cached,) = host.unpacked()
    cached.unlink()
    cached.mkdir()
    assert host.run(host.peer) == WELL
    assert len(host.unpacked(host.tmp)) == 1


def limited(host: Host, size: int) -> list[str]:
    """An echo where no file can grow beyond `size`: the error that a full disk gives, at any place."""
    script = (
        "import os, resource, sys; "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size})); os.execv(sys.executable, sys.argv[1:])"
    )
    return [host.python, "-c", script, *host.command(host.peer)]


@pytest.mark.parametrize("size", [0, 400_000])
def test_no_room(either: Host, size: int) -> None:
    """One line, and no part of a file stays behind."""
    root = either.folder / "root"
    assert_one_line(either.execute(limited(either, size), SHIV_ROOT=str(root)), "File too large", "SHIV_ROOT")
    assert either.unpacked(root) == []
    assert either.run("--version", SHIV_ROOT=str(root)).code == 0


def test_full_disk(host: Host, namespace: tuple[str, ...]) -> None:
    """A full home leaves the temporary directory; a full SHIV_ROOT leaves nothing."""
    script = """
        disk=$0; mount -t tmpfs -o size=1m,mode=0700 tmpfs $disk || exit 99
        "$@"; code=$?; find $disk -type f; exit $code
    """
    command = [*namespace, script, str(host.home), *host.command(host.peer)]
    assert host.execute(command) == WELL
    assert len(host.unpacked(host.tmp)) == 1
    assert_one_line(host.execute(command, SHIV_ROOT=str(host.home)), "No space left on device", "SHIV_ROOT")


def age(path: Path, seconds: float) -> None:
    """Put its last use into the past."""
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_old_caches_go_away(host: Host) -> None:
    """At the first start of another build: caches unused for 30 days, and parts that a killed run left an hour ago."""
    host.cache.mkdir(parents=True, mode=0o700)
    for name, days in (("old", 31), ("recent", 29)):
        (host.cache / name / "of.pyz_0").mkdir(parents=True)
        (host.cache / name / "of.pyz_0/site-packages").touch()
        age(host.cache / name, days * DAY)
    for name, hours in (("old", 2), ("recent", 0)):
        (host.cache / f"{name}.part").touch()
        age(host.cache / f"{name}.part", hours * HOUR)
    assert host.run("--version").code == 0
    left = {path.name for path in host.cache.iterdir()}
    assert left > {"recent", "recent.part"}
    assert not left & {"old", "old.part"}
    assert len(left) == 3


def test_cache_in_use_stays_young(host: Host) -> None:
    """Else a build that runs every day would lose its cache to another one's first start."""
    assert host.run("--version").code == 0
    (used,) = host.cache.iterdir()
    age(used, 20 * DAY)
    assert host.run("--version").code == 0
    assert time.time() - used.stat().st_mtime < HOUR


def zeroed(entry: zipfile.ZipInfo, data: bytearray, header: int) -> None:
    middle = entry.header_offset + entry.compress_size // 2
    data[middle : middle + 100] = bytes(100)


def unknown_method(entry: zipfile.ZipInfo, data: bytearray, header: int) -> None:
    data[header + 10] = 99


def encrypted(entry: zipfile.ZipInfo, data: bytearray, header: int) -> None:
    data[header + 8] |= 1


def cut_short(entry: zipfile.ZipInfo, data: bytearray, header: int) -> None:
    data[header + 20 : header + 24] = (9).to_bytes(4, "little")


def renamed(entry: zipfile.ZipInfo, data: bytearray, header: int) -> None:
    data[header + 46] ^= 1


MISTAKES = [zeroed, unknown_method, encrypted, cut_short, renamed]


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("member", ["bytecode/", "environment.json"])
def test_damaged_archive(host: Host, member: str, mistake: Callable[[zipfile.ZipInfo, bytearray, int], None]) -> None:
    """A copy that went wrong: one line."""
    data = bytearray(host.archive.read_bytes())
    with zipfile.ZipFile(host.archive) as pyz:
        for entry in pyz.infolist():
            if entry.filename.startswith(member):
                mistake(entry, data, data.rindex(entry.filename.encode()) - 46)
    broken = host.folder / "dicom-echo.pyz"
    broken.write_bytes(data)
    outcome = host.execute(host.command("--version", archive=broken))
    if (member, mistake) == ("bytecode/", renamed):
        assert outcome.code == 0  # it is not found, and made
    else:
        assert_one_line(outcome, "dicom-echo.pyz is damaged: ")
        assert host.unpacked() == []


@pytest.mark.parametrize("error", ["EOFError", "KeyError", "NotImplementedError", "zipfile.BadZipFile", "zlib.error"])
@on_the_newest
def test_mistake_of_the_program(sources: Host, error: str) -> None:
    """It is not taken for a damaged archive."""
    program = f"import zipfile, zlib\ndef main():\n    raise {error}('mine')\n".encode()
    wrong = sources.folder / "dicom-echo.pyz"
    rewrite(sources.archive, wrong, lambda name, of: program if name == "site-packages/dicom_echo.py" else of)
    outcome = sources.execute(sources.command("--version", archive=wrong))
    assert outcome.code == 1
    assert outcome.err.startswith("Traceback")
    assert "damaged" not in outcome.err


# --- A Python that the build did not find ----------------------------------------------------------------------------


def test_sources_are_compiled(sources: Host, carried: Path) -> None:
    """Into one file with the same members as the one that is carried; private and pruned all the same."""
    sources.cache.mkdir(parents=True, mode=0o700)
    (sources.cache / "old").mkdir()
    age(sources.cache / "old", 31 * DAY)
    assert sources.execute(["sh", "-c", 'umask 0; exec "$@"', "sh", *sources.command(sources.peer)]) == WELL
    (made,) = sources.unpacked()
    assert made.name == "site-packages"
    assert not (sources.cache / "old").exists()
    assert [path for path in sources.cache.rglob("*") if path.stat().st_mode & 0o077] == []
    with zipfile.ZipFile(carried) as pyz:
        packed = next(name for name in pyz.namelist() if name.startswith("bytecode/"))
        with pyz.open(packed) as inner, zipfile.ZipFile(inner) as packages, zipfile.ZipFile(made) as ours:
            assert ours.namelist() == packages.namelist()


@pytest.mark.parametrize("flags", FLAGS)
@on_the_newest
def test_sources_with_flags_of_python(sources: Host, flags: str) -> None:
    """A warning about them is none of the user's, -O is not for our asserts, and the next start has other flags."""
    assert sources.run("--self-test", flags=flags.split()) == WELL
    before = sources.files(), sources.unpacked()[0].stat()
    assert sources.run("--self-test") == WELL
    assert (sources.files(), sources.unpacked()[0].stat().st_mtime_ns) == (before[0], before[1].st_mtime_ns)


def test_sources_write_only_to_the_cache(sources: Host) -> None:
    """Not where Python is told to put its bytecode."""
    before = sources.files()
    assert sources.run(sources.peer) == WELL
    assert sources.files() == before
    shutil.rmtree(sources.cache)
    elsewhere = sources.folder / "elsewhere"  # where Python itself puts bytecode of what it imports before us
    assert sources.run(sources.peer, PYTHONPYCACHEPREFIX=str(elsewhere)) == WELL
    assert [path for path in elsewhere.rglob("*") if "dicom" in path.name or "_bootstrap" in path.name] == []
    assert len(sources.unpacked()) == 1


@on_the_newest
def test_sources_without_shared_memory(sources: Host, namespace: tuple[str, ...]) -> None:
    """As in a locked-down container."""
    script = 'mount -t tmpfs -o ro none /dev/shm || exit 99; exec "$@"'
    assert sources.execute([*namespace, script, "sh", *sources.command(sources.peer)]) == WELL


def test_sources_with_first_starts_at_once(sources: Host) -> None:
    """Each makes the file; it is all the same whose stays."""
    processes = [sources.start(sources.command(sources.peer)) for _ in range(3)]
    assert [ended(process) for process in processes] == [WELL] * 3
    assert len(sources.unpacked()) == 1


@on_the_newest
@pytest.mark.parametrize("delay", [0.2, 0.5, 0.9])
def test_sources_killed_while_unpacking(sources: Host, delay: float) -> None:
    """Nothing of it is taken for the whole, and nobody is left who would hold the pipe to a waiting program."""
    with sources.start(sources.command(sources.peer)) as process:
        time.sleep(delay)
        process.kill()
        process.communicate(timeout=5)
    assert sources.run(sources.peer) == WELL
    assert len([path for path in sources.unpacked() if path.suffix != ".part"]) == 1


# --- What the host has installed -------------------------------------------------------------------------------------

CARRIED = ("pydicom", "pynetdicom", "numpy", "dicom_echo", "_bootstrap", "dicom_echo_start", "dicom_echo_cache")
STANDARD = (
    *("argparse", "ast", "concurrent", "json", "logging", "marshal", "multiprocessing", "pickle", "queue", "shutil"),
    *("signal", "socket", "ssl", "subprocess", "tempfile", "threading", "warnings", "zipfile", "zlib"),
)


def make_hostile(folder: Path, names: Sequence[str]) -> None:
    """Modules that end whoever imports them, with code 99."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / f"{name}.py").write_text("import os\nos._exit(99)\n")


def make_hostile_to_us(folder: Path, host: Host) -> None:
    """As many of them as let Python come to us: it could not start without what it imports before."""
    probe = "import runpy, sys, zlib; print(*sys.modules)"
    needed = host.execute([host.python, "-c", probe]).out.split()
    make_hostile(folder, [name for name in CARRIED + STANDARD if name not in needed])


def test_hostile_working_directory(either: Host) -> None:
    """It is not looked at: neither for our names nor for those of the standard library."""
    make_hostile(either.folder / "work", CARRIED + STANDARD)
    assert either.run(either.peer) == WELL


@pytest.mark.parametrize("entry", ["", "work", "work/lib-dynload"])
def test_hostile_pythonpath(either: Host, entry: str) -> None:
    """Nor is this: old backports, or what is named like a folder of Python's own. An empty entry is where we are."""
    work = either.folder / "work"
    make_hostile_to_us(either.folder / entry if entry else work, either)
    assert either.run(either.peer, PYTHONPATH=str(either.folder / entry) if entry else os.pathsep) == WELL


def test_hostile_packages_beside_the_standard_library(host: Host) -> None:
    """Where somebody has unpacked them. Here, that is a folder of links."""
    probe = "import os; print(os.path.dirname(os.__file__))"
    real = Path(host.execute([host.python, "-c", probe]).out.strip())
    linked = host.folder / "python/lib" / real.name
    linked.mkdir(parents=True)
    for path in real.iterdir():
        (linked / path.name).symlink_to(path)
    make_hostile(linked, CARRIED)
    assert host.execute([host.python, "-c", "import pydicom"], PYTHONHOME=str(linked.parents[1])).code == 99
    assert host.run("--self-test", PYTHONHOME=str(linked.parents[1])) == WELL


def test_virtual_environment(host: Host) -> None:
    """Python's own modules are found from there as well."""
    venv = host.folder / "venv"
    host.execute([host.python, "-m", "venv", "--without-pip", str(venv)])
    assert replace(host, python=str(venv / "bin/python")).run("--self-test") == WELL


def test_hostile_user_site(host: Host) -> None:
    """What `pip install --user` has put there."""
    where = "import site; print(site.getusersitepackages())"
    make_hostile(Path(host.execute([host.python, "-c", where]).out.strip()), CARRIED)
    assert host.run(host.peer) == WELL


def test_hostile_site_packages(host: Host) -> None:
    """Broken packages; .pth files that import others before us, and that put a finder before all."""
    host.execute([host.python, "-m", "venv", "--without-pip", "--symlinks", str(host.folder / "venv")])
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
    assert venv.execute([venv.python, "-c", "import pydicom; assert pydicom.WRONG"]).code == 0
    assert venv.run("--self-test") == WELL


# --- Where it writes, whom it calls ----------------------------------------------------------------------------------


def test_nothing_is_written_elsewhere(host: Host) -> None:
    """No ~/.pydicom, nothing beside the archive, nothing in the working directory."""
    before, beside = host.files(), list(host.archive.parent.iterdir())
    assert host.run(host.peer) == WELL
    assert host.run("--self-test") == WELL
    assert host.files() == before
    assert [path.name for path in host.home.iterdir()] == [".cache"]
    assert [path.name for path in host.cache.parent.iterdir()] == ["dicom-echo"]
    assert list(host.archive.parent.iterdir()) == beside


CALLS = (
    "open openat openat2 creat truncate mkdir mkdirat mknod mknodat rename renameat renameat2 link linkat symlink "
    "symlinkat unlink unlinkat rmdir chmod fchmodat chown lchown fchownat utimensat connect sendto sendmsg "
    "fork vfork clone clone3 execve"
)
READING = re.compile(r"\bopen\w*\((?!.*\bO_(?:WRONLY|RDWR|CREAT))")


@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
@pytest.mark.parametrize("start", ["first", "second"])
def test_system_calls(either: Host, start: str) -> None:
    """Whatever is opened for writing, made, renamed or removed is in the cache; every call goes to the peer.

    And no other process is started.
    """
    host = either
    if start == "second":
        assert host.run("--version").code == 0
    trace = host.folder / "trace"
    calls = ",".join(f"?{name}" for name in CALLS.split())
    strace = ["strace", "-f", "-qq", "-s", "9999", "-o", str(trace), "-e", f"trace={calls}"]
    with RawPeer() as peer:
        outcome = host.execute([*strace, *host.command(peer.endpoint.host_port)])
        port = peer.port
    if outcome.code == 1 and "ptrace" in outcome.err:
        pytest.skip("this system does not let us trace")
    assert outcome == WELL
    lines = [line for line in trace.read_text().splitlines() if "(" in line and not READING.search(line)]
    called = [line for line in lines if "sa_family=" in line]
    began = [line for line in lines if re.search(r"\b(v?fork|clone3?|execve)\(", line) and "CLONE_THREAD" not in line]
    wrote = [line for line in lines if line not in called + began and not re.search(r"\bsend\w+\(", line)]
    assert len(began) == 1  # by strace
    assert len(called) == 1
    assert f'sin_port=htons({port}), sin_addr=inet_addr("127.0.0.1")' in called[0]
    outside = [line for line in wrote if not set(re.findall(r'"(/[^"]*)"', line)) <= inside(host, line)]
    assert outside == []
    assert any("O_CREAT" in line for line in wrote) == (start == "first")


def inside(host: Host, line: str) -> set[str]:
    """The paths in a line that are in the cache, or are the way there."""
    allowed = (str(host.cache), str(host.cache.parent))
    return {path for path in re.findall(r'"(/[^"]*)"', line) if path in allowed or path.startswith(allowed[0] + "/")}


# --- Names and places of the archive ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dicom-echo (1).pyz", "dicom-echo", "la d é 医/dicom-echo.pyz", "%TEMP% & 'x'.pyz"])
def test_names_of_the_archive(host: Host, name: str) -> None:
    """A browser's second download, and folders as people call them: by its full path, relative, and where it is."""
    renamed = host.folder / name
    renamed.parent.mkdir(exist_ok=True)
    shutil.copy(host.archive, renamed)
    relative = os.path.relpath(renamed, host.folder / "work")
    assert host.execute(host.command(host.peer, archive=renamed)) == WELL
    assert host.execute(host.command("--version", archive=relative)).code == 0
    there = replace(host, cwd=str(renamed.parent))
    assert there.execute(there.command("--version", archive=renamed.name)).code == 0


def test_link_to_the_archive(host: Host) -> None:
    """In ~/bin, say; and run as a command, by the first line of the file."""
    link = host.folder / "work/dicom-echo"
    link.symlink_to(host.archive)
    assert host.execute(host.command(host.peer, archive=link)) == WELL
    assert host.archive.read_bytes().startswith(b"#!/usr/bin/env python3\n")


@pytest.mark.parametrize("locale", ["C.UTF-8", "POSIX"])
def test_home_that_is_not_ascii(host: Host, locale: str) -> None:
    """Where the locale cannot encode it, too."""
    home = host.folder / "hé m 医"
    home.mkdir()
    settings = {"HOME": str(home), "LC_ALL": locale, "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    said = SUCCESS if locale == "C.UTF-8" else "[OK] Success\n"
    assert host.run(host.peer, **settings) == (0, said, "")
    assert len(host.unpacked(home / ".cache/dicom-echo")) == 1


@on_the_newest
def test_read_only_share(host: Host, namespace: tuple[str, ...]) -> None:
    """The archive on a mount that nobody can write to."""
    script = 'share=$0; mount --bind $share $share && mount -o remount,bind,ro $share || exit 99; exec "$@"'
    assert host.execute([*namespace, script, str(host.archive.parent), *host.command(host.peer)]) == WELL


def test_without_what_only_posix_has(host: Host) -> None:
    """Windows, as well as one can simulate it: its name, and none of POSIX's own modules and calls."""
    simulation = """
        import argparse, asyncio, code, compileall, ctypes, logging, pathlib, platform, shutil, site, socket, ssl
        import subprocess, tempfile, zipfile, uuid
        import os
        for name in ("fork", "geteuid", "getuid", "getpwuid", "kill", "setsid"):
            if hasattr(os, name):
                delattr(os, name)
        for name in ("pwd", "fcntl", "grp", "resource", "termios"):
            sys.modules[name] = None
        sys.platform = "win32"
    """
    data = host.folder / "Dätä (x86)"
    data.mkdir()
    assert host.execute(driven(host, simulation, "--version"), LOCALAPPDATA=str(data)).code == 0
    assert host.execute(driven(host, simulation, host.peer), LOCALAPPDATA=str(data)) == WELL
    assert len(host.unpacked(data / "dicom-echo")) == 1


# --- As a library ----------------------------------------------------------------------------------------------------


def test_import_from_the_archive(host: Host) -> None:
    """The one line that README gives to scripts on such hosts."""
    script = f"""
import sys; sys.path.insert(0, {str(host.archive)!r})
import dicom_echo as echo
print(echo.send({host.peer!r}), echo.__name__, echo.EchoResult.__module__)
"""
    assert host.execute([host.python, "-c", script]) == (0, "0 dicom_echo dicom_echo\n", "")


def test_import_in_several_threads(host: Host) -> None:
    """None of them is left with what stands there until the real module has come."""
    script = f"""
import os, sys, threading, time; sys.path.insert(0, {str(host.archive)!r})
umask = os.umask
os.umask = lambda mask: (time.sleep(0.2), umask(mask))[1]  # which leaves the others time to come by
def echo(number):
    while number and "dicom_echo" not in sys.modules: time.sleep(0.01)
    import dicom_echo
    print(dicom_echo.send({host.peer!r}), dicom_echo.EchoResult.__module__ + "\\n", end="")
threads = [threading.Thread(target=echo, args=[number]) for number in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""
    for _start in ("first", "second"):
        assert host.execute([host.python, "-c", script]) == (0, "0 dicom_echo\n" * 8, "")


@pytest.mark.parametrize("entry", ["{}", "{}/", "./{}"])
def test_import_by_another_spelling(host: Host, entry: str) -> None:
    """Of the entry on sys.path, which the import system sees in its own spelling."""
    shutil.copy(host.archive, host.folder / "work/d.pyz")
    script = (
        f"import sys; sys.path.insert(0, {entry.format('d.pyz')!r}); import dicom_echo as echo; print(echo.EchoError)"
    )
    assert host.execute([host.python, "-c", script]).code == 0


def test_run_as_a_module_of_the_archive(host: Host) -> None:
    """`python -m dicom_echo`, where PYTHONPATH has it."""
    command = [host.python, "-m", "dicom_echo", "--self-test"]
    assert host.execute(command, PYTHONPATH=str(host.archive)) == WELL


def test_import_without_a_writable_place(host: Host) -> None:
    """An ImportError that says why."""
    command = [host.python, "-c", "import dicom_echo"]
    outcome = host.execute(command, PYTHONPATH=str(host.archive), SHIV_ROOT="/proc")
    assert outcome.code == 1
    assert re.search(r"\nImportError: dicom-echo: nowhere to unpack to \(/proc: .*SHIV_ROOT.*\n$", outcome.err)


@on_the_newest
@pytest.mark.skipif(bool(os.environ.get("DICOM_ECHO_OFFLINE")), reason="DICOM_ECHO_OFFLINE is set")
def test_vendoring(host: Host) -> None:
    """dicom_echo.py alone beside a script, where just pynetdicom is installed: now, from the network."""
    venv = host.folder / "venv"
    subprocess.run([host.python, "-m", "venv", venv], check=True)
    pip = [str(venv / "bin/python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    locked = ["--require-hashes", "--only-binary=:all:", "-r", str(ROOT / "packaging/pyz.lock")]
    subprocess.run([*pip, *locked], check=True)
    shutil.copy(ROOT / "dicom_echo.py", host.folder / "work")
    script = host.folder / "work/script.py"
    script.write_text(f"import dicom_echo\nprint(dicom_echo.send({host.peer!r}), dicom_echo.__file__)\n")
    outcome = host.execute([str(venv / "bin/python"), "script.py"])
    assert outcome == (0, f"0 {host.folder / 'work/dicom_echo.py'}\n", "")


# --- What the build wrote --------------------------------------------------------------------------------------------


def locked() -> dict[str, str]:
    """The versions in pyz.lock, by name."""
    return dict(re.findall(r"^([\w-]+)==(\S+)", (ROOT / "packaging/pyz.lock").read_text(), re.MULTILINE))


def members(archive: Path) -> list[str]:
    """The names of all files inside, those of the packages as they are below site-packages."""
    with zipfile.ZipFile(archive) as pyz:
        return [name.removeprefix("site-packages/") for name in pyz.namelist()]


def test_size(carried: Path) -> None:
    """With the bytecode of all Pythons."""
    assert carried.stat().st_size <= 4 * MB


def test_checksums() -> None:
    """As `sha256sum -c SHA256SUMS` would find them."""
    lines = ARCHIVE.with_name("SHA256SUMS").read_text(encoding="ascii").splitlines()
    sums = {name: digest for digest, name in (line.split("  ") for line in lines)}
    files = [ARCHIVE, BILL]
    assert sums == {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_bill_of_materials(carried: Path) -> None:
    """CycloneDX, with all that is inside, in the versions of the lock file."""
    bill = json.loads(BILL.read_text(encoding="utf-8"))
    listed = {component["name"]: component["version"] for component in bill["components"]}
    assert bill["bomFormat"] == "CycloneDX"
    assert listed.items() >= locked().items()
    found = {re.fullmatch(r"(.+)-(.+)\.dist-info/METADATA", name) for name in members(carried)} - {None}
    assert {match[1].replace("_", "-") for match in found if match} == set(listed)
    root = bill["metadata"]["component"]
    assert (root["name"], root["version"], root["type"]) == (ARCHIVE.name, listed["dicom-echo"], "application")
    needs = {entry["ref"]: entry.get("dependsOn", []) for entry in bill["dependencies"]}
    assert {ref.partition("==")[0] for ref in needs[root["bom-ref"]]} == {"dicom-echo", "shiv"}
    assert set(needs) == {root["bom-ref"], *(component["bom-ref"] for component in bill["components"])}


def test_licences(carried: Path) -> None:
    """Of all that is inside."""
    holders = {name.partition("-")[0] for name in members(carried) if re.search(r"dist-info/.*LICEN[CS]E", name)}
    assert holders == {"dicom_echo", "pydicom", "pynetdicom", "shiv"}


def test_no_ballast(carried: Path) -> None:
    """No test suites, sample data, apps, scripts, or what an installation leaves."""
    unwanted = r"(^|/)(tests?|test_files|apps|benchmarks|cli|bin|__pycache__)/|\.(dcm|gz|csv|json\.gz|pyd|so)$|/RECORD$"
    assert [name for name in members(carried) if re.search(unwanted, name)] == []


def test_bytecode_for_each_python_of_the_build(carried: Path) -> None:
    """As many as `--version -v` says, each with every module."""
    names = members(carried)
    facts = json.loads(zipfile.ZipFile(carried).read("site-packages/dicom_echo_build.json"))
    carried_for = [name for name in names if name.startswith("bytecode/")]
    minors = sorted(re.findall(r"cpython-3(\d+)-", " ".join(carried_for)))
    assert minors == sorted(version.split(".")[1] for version in facts["bytecode"])
    with zipfile.ZipFile(carried) as pyz:
        sources = {name for name in pyz.namelist() if re.fullmatch(r"site-packages/.*\.py", name)}
        for name in carried_for:
            with pyz.open(name) as inner, zipfile.ZipFile(inner) as packages:
                modules = [module for module in packages.namelist() if module.endswith(".pyc")]
            assert {f"site-packages/{module[:-1]}" for module in modules} == sources
