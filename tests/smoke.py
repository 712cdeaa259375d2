"""The built archive on this host's Pythons, on hosts of every bad kind that we could think of: `nox -s smoke`.

pytest collects this file only where it is named. `DICOM_ECHO_ARCHIVE` names another archive than dist/dicom-echo.pyz,
with what the build writes lying beside it.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
from collections import namedtuple
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from zipfile import ZipFile

import pytest
from rawpeer import A_ASSOCIATE_RQ, RawPeer

if sys.platform == "win32":
    pytest.skip("these tests need a POSIX system", allow_module_level=True)

ROOT = Path(__file__).resolve().parent.parent
ARCHIVE = Path(os.environ.get("DICOM_ECHO_ARCHIVE", ROOT / "dist/dicom-echo.pyz")).resolve()
BILL, PAGE = ARCHIVE.with_name("dicom-echo.cdx.json"), ARCHIVE.with_name("dicom-echo.1")
FACTS = "site-packages/dicom_echo_build.json"
WHEELS = list(ARCHIVE.parent.glob("*.whl"))


def pythons() -> Iterator[tuple[str, str]]:
    """Version and path, from old to new, of each interpreter that really runs: not a shim with nothing behind it."""
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
    for version in ("2.7", *(f"3.{minor}" for minor in range(6, 16))):
        for path in (*pyenv.glob(f"versions/{version}.*/bin/python"), shutil.which(f"python{version}")):
            probe = [path or "false", "-c", "import os, sys; print(os.path.realpath(sys.executable))"]
            done = subprocess.run(probe, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                yield version, done.stdout.strip()
                break


PYTHONS = dict(pythons())
OLD = [version for version in PYTHONS if version in ("2.7", "3.6", "3.7", "3.8")]
GOOD = [version for version in PYTHONS if version not in OLD]

on_old, on_each = (pytest.mark.parametrize("python", versions) for versions in (OLD, GOOD))
on_both = pytest.mark.parametrize("python", [GOOD[0], GOOD[-1]])  # what depends on pynetdicom, or hardly on Python
known_or_not = pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])

Outcome = namedtuple("Outcome", "code out err")
WELL = Outcome(0, "✅ Success\n", "")


@dataclass(frozen=True)
class Host:
    """A fresh host: a Python, the archive, a peer that answers, and a user who has set nothing."""

    folder: Path
    archive: Path
    python: str
    peer: str

    def execute(self, *command: str, **settings: str) -> Outcome:
        places = {"HOME": str(self.folder / "home"), "TMPDIR": str(self.folder / "tmp"), "PATH": os.environ["PATH"]}
        environment = {"LANG": "C.UTF-8", **places, **settings}
        work = self.folder / "work"
        done = subprocess.run(command, cwd=work, env=environment, capture_output=True, timeout=60, check=False)
        return Outcome(
            done.returncode, *(data.decode(errors="backslashreplace") for data in (done.stdout, done.stderr))
        )

    def run(self, *arguments: str, **settings: str) -> Outcome:
        return self.execute(self.python, str(self.archive), *arguments, **settings)

    def script(self, text: str, *arguments: str, **settings: str) -> Outcome:
        return self.execute(self.python, "-c", textwrap.dedent(text), *arguments, **settings)

    def run_after(self, preparation: str, *arguments: str) -> Outcome:
        """Run the archive from a script that first does something to its process."""
        running = "import runpy\nsys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')"
        return self.script(f"import sys\n{textwrap.dedent(preparation)}\n{running}", str(self.archive), *arguments)


@pytest.fixture(scope="session")
def unknown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive without bytecode, as if the build had not known our Python."""
    if not ARCHIVE.exists():
        pytest.exit(f"there is no {ARCHIVE}: nox -s build makes it", returncode=2)
    archive = tmp_path_factory.mktemp("unknown") / ARCHIVE.name
    with ZipFile(ARCHIVE) as pyz, ZipFile(archive, "w") as other:
        for name in [name for name in pyz.namelist() if not name.startswith("bytecode/")]:
            other.writestr(name, pyz.read(name))
    return archive


@pytest.fixture
def known() -> bool:
    """Whether the build knew the Python of this host."""
    return True


@pytest.fixture(scope="session")
def peer() -> Iterator[str]:
    """The address of a peer that answers every echo, and shares no code with the archive."""
    with RawPeer() as answering:
        yield answering.address


@pytest.fixture
def host(python: str, known: bool, unknown: Path, peer: str, tmp_path: Path) -> Host:
    for name in ("home", "tmp", "work"):
        (tmp_path / name).mkdir()
    return Host(tmp_path, ARCHIVE if known else unknown, PYTHONS[python], peer)


def locked(python: str) -> dict[str, str]:
    """The versions of what the archive carries for a Python, by name."""
    lock = ROOT / "packaging" / ("pyz39.lock" if python == "3.9" else "pyz.lock")
    return dict(re.findall(r"^([\w-]+)==(\S+)", lock.read_text(), re.MULTILINE))


# --- A good host -----------------------------------------------------------------------------------------------------


@on_each
def test_version_and_completion(python: str, host: Host) -> None:
    """All that it takes is inside; -v shows what an administrator compares with the bill of materials."""
    name, build, *rest = host.run("--version", "-v").out.splitlines()
    bundled = "pynetdicom {pynetdicom}, pydicom {pydicom}".format(**locked(python))
    assert re.fullmatch(rf"dicom-echo \S+ \({re.escape(bundled)}, Python {re.escape(python)}\.\d+\)", name)
    assert re.fullmatch(r"build [0-9a-f]{16}, with bytecode for \d\S*(, \d\S*)*", build)
    contents = dict(line.removeprefix("contains ").split(" ", 1) for line in rest)
    assert set(contents) == {"dicom-echo", *locked(python)}
    assert all(version in contents[name] for name, version in locked(python).items())
    code, out, err = host.run("--show-completion", "bash")
    assert (code, " --called-ae-title " in out, out.rstrip().endswith(" dicom-echo"), err) == (0, True, True, "")


@on_each
def test_nothing_is_compiled(python: str, host: Host) -> None:
    """On a Python that the build knew, but for the two files that any Python has to read: shiv's are not imported."""
    if not any(version.startswith(f"{python}.") for version in json.loads(ZipFile(ARCHIVE).read(FACTS))["bytecode"]):
        pytest.skip(f"the build found no Python {python}")
    auditing = """
        import atexit
        compiled = set()
        sys.addaudithook(lambda event, its: compiled.add(str(its[1])) if event == "compile" else None)
        atexit.register(lambda: print(*sorted(name for name in compiled if ".pyz" in name), sep="\\n"))
    """
    files = f"{host.archive}/__main__.py\n{host.archive}/dicom_echo.py\n"
    assert host.run_after(auditing, "--self-test") == WELL._replace(out=WELL.out + files)


HARMLESS = re.compile(
    r"stat\w*\(|access\w*\(|readlink\w*\(|getcwd\(|exit\w*\(|open\w*\((?!.*\bO_(?:WRONLY|RDWR|CREAT))|CLONE_THREAD"
    r"|resumed>|/dev/(null|tty)"
)


@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
@known_or_not
@on_both
def test_nothing_is_written(host: Host) -> None:
    """No file, directory or name is made or changed, where all could be; and no other process is started."""
    strace = ("strace", "-f", "-qqq", "-e", "signal=none", "-e", "trace=%file,%process", "-o", "trace")
    outcome = host.execute(*strace, host.python, str(host.archive), "--self-test")
    if outcome.code == 1 and "ptrace" in outcome.err:
        pytest.skip("this system does not let us trace")
    assert outcome == WELL
    trace = (host.folder / "work/trace").read_text().splitlines()
    calls = [line for line in trace if not HARMLESS.search(line)]
    assert len(calls) == 1, calls  # by strace, which has executed Python
    assert host.run("--self-test", PYTHONPYCACHEPREFIX="cache") == WELL
    assert list((host.folder / "work/cache").rglob("selectors.*")) == []  # nor the standard library's bytecode


@on_both
def test_settings_of_shiv(host: Host) -> None:
    """They do as shiv documents: unpack, and run from there."""
    root = host.folder / "root"
    assert host.run(host.peer, SHIV_ROOT=str(root), SHIV_FORCE_EXTRACT="1") == WELL
    (unpacked,) = root.glob("dicom-echo.pyz_*/site-packages/dicom_echo.py")
    assert host.run(host.peer, SHIV_ROOT=str(root), SHIV_ENTRY_POINT="dicom_echo:main") == WELL
    script = f"import dicom_echo; print(dicom_echo.__file__, dicom_echo.send({host.peer!r}))"
    assert host.run("-c", script, SHIV_ROOT=str(root), SHIV_INTERPRETER="1") == (0, f"{unpacked} 0\n", "")


# --- Flags, names, places --------------------------------------------------------------------------------------------

# Reading everything is the one privilege left, since others cannot reach interpreters in root's home.
NAMELESS = "setpriv --reuid=54321 --clear-groups --inh-caps=+dac_read_search --ambient-caps=+dac_read_search env"
MOUNTED = "unshare --mount" + (" --map-root-user" if os.geteuid() else "") + " sh -c"  # mounts end with the command
ALL_MOUNTS = "$(cut -d\\  -f2 /proc/mounts | grep -vE '^/(proc|sys|dev)')"
READ_ONLY = (
    f'for mount in {ALL_MOUNTS}; do mount -o remount,bind,ro $mount; done; ! touch file 2>/dev/null && exec "$@"'
)


@on_both
@pytest.mark.parametrize(
    ("known", "command"),
    [
        (True, "python -I"),
        (True, "python -S"),
        (True, "python -I -S -B"),
        (True, "python -X dev -W error"),
        (False, "python -O"),  # pynetdicom checks its peer with asserts
        (False, "python -OO"),
        (True, "env PYTHONDONTWRITEBYTECODE=1 PYTHONSAFEPATH=1 PYTHONOPTIMIZE=2 python"),
        (True, "env SHIV_MODULE=this SHIV_CONSOLE_SCRIPT=this SHIV_PREPEND_PYTHONPATH=work SHIV_ROOT=root python"),
        (True, f"{NAMELESS} -u HOME python"),
        (True, f"{NAMELESS} HOME=/nonexistent python"),
        (True, f"{MOUNTED} {shlex.quote(READ_ONLY)} sh python"),
        (True, f"""{MOUNTED} 'mount -t tmpfs -o mode=0777 none /var/tmp && exec env TMPDIR=/var/tmp "$@"' sh python"""),
        (True, f"""{MOUNTED} 'mount -t tmpfs -o ro none /dev/shm && exec "$@"' sh python"""),
    ],
)
def test_hosts(host: Host, command: str) -> None:
    """Flags and settings of Python, and of shiv for other archives; a container's user; a pod without the usual."""
    tool = re.split(r"\b(?:sh|python)\b", command)[0].split()
    if host.execute("env", *tool, "true").code:
        pytest.skip(f"this system does not let us {tool}")
    words = [host.python if word == "python" else word for word in shlex.split(command)]
    assert host.execute(*words, str(host.archive), "--self-test") == WELL
    assert not (host.folder / "work/root").exists()


@on_both
def test_names_of_the_archive(host: Host) -> None:
    """A browser's second download, a command, and folders as people call them: full paths, relative ones, and links."""
    work = host.folder / "work"
    (work / "la d é 医").mkdir()
    for name in ("dicom-echo (1).pyz", "dicom-echo", "la d é 医/dicom-echo.pyz", "%TEMP% & 'x'.pyz"):
        shutil.copy(host.archive, work / name)
    (work / "link").symlink_to("dicom-echo")
    paths = (work / "dicom-echo (1).pyz", Path("link"), Path("la d é 医/dicom-echo.pyz"), work / "%TEMP% & 'x'.pyz")
    assert [replace(host, archive=path).run(host.peer) for path in paths] == [WELL] * 4
    assert ARCHIVE.read_bytes().startswith(b"#!/usr/bin/env python3\n")


# --- What the host has installed -------------------------------------------------------------------------------------

CARRIED = ("pydicom", "pynetdicom", "numpy", "dicom_echo", "_bootstrap")


def make_hostile(folder: Path, names: Sequence[str]) -> None:
    """Modules that end whoever imports them, with code 99."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / f"{name}.py").write_text("import os\nos._exit(99)\n")


@on_each
def test_hostile_directories(host: Host) -> None:
    """On PYTHONPATH, named like a folder of Python's own, and where we are: as many modules as let Python start."""
    needed = host.script("import runpy, sys, zlib; print(*sys.modules)").out.split()
    standard = [path.stem for path in Path(host.python).parents[1].glob("lib/python3.*/*.py")]
    folders = [host.folder / "work", host.folder / "home", host.folder / "home/lib-dynload"]
    for folder in folders:
        make_hostile(folder, [name for name in (*CARRIED, *standard) if name not in needed])
    path = os.pathsep.join(["", *map(str, folders)])
    assert host.script("import pydicom", PYTHONPATH=path).code == 99
    assert [host.run(what, PYTHONPATH=path) for what in (host.peer, "--self-test")] == [WELL, WELL]


@on_both
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


@on_both
def test_hostile_site_packages(host: Host) -> None:
    """Broken packages; .pth files that import others before us, and that put a finder before all."""
    host.execute(host.python, "-m", "venv", "--without-pip", "--symlinks", str(host.folder / "venv"))
    (site_packages,) = (host.folder / "venv").glob("lib/python*/site-packages")
    make_hostile(site_packages, CARRIED)
    for name in ("pydicom", "pynetdicom", "numpy"):
        (host.folder / "early" / name).mkdir(parents=True)
        (host.folder / "early" / name / "__init__.py").write_text("WRONG = True\n")
    early = f"import sys; sys.path.insert(0, {str(host.folder / 'early')!r}); import pydicom, pynetdicom, numpy\n"
    finder = "class Finder:\n def find_spec(name, *_):\n  if name in {'PIL', 'numpy'}: import os; os._exit(99)"
    finding = f"import sys; exec({finder!r}); sys.meta_path.insert(0, Finder)\n"
    (site_packages / "early.pth").write_text(early + finding)
    venv = replace(host, python=str(host.folder / "venv/bin/python"))
    assert venv.script("import pydicom; assert pydicom.WRONG").code == 0
    assert [venv.run(what) for what in (host.peer, "--self-test")] == [WELL, WELL]


# --- Where it cannot start -------------------------------------------------------------------------------------------


@on_old
def test_old_pythons_say_what_would_do(python: str, host: Host) -> None:
    """One line names a command on PATH that is new enough, if there is one: not a shim with nothing behind it."""
    path = host.folder / "path"
    path.mkdir()
    (path / "python3").symlink_to(host.python)
    (path / "python3.30").write_text("#!/bin/sh\nexit 127\n")
    (path / "python3.30").chmod(0o755)
    said = rf"Python 3\.9 or later is needed; this is {re.escape(python)}\.\d+ \({re.escape(host.python)}\)"
    code, out, err = host.run("--help", PATH=str(path))
    assert (code, out, bool(re.fullmatch(f"dicom-echo: {said}\n", err))) == (2, "", True), err
    (path / "python3.11").symlink_to(PYTHONS[GOOD[0]])
    code, out, err = host.run("pacs", "--format", "nagios", PATH=str(path))
    expected = rf"DICOM ECHO UNKNOWN - {said}; run it with python3\.11\n"
    assert (code, bool(re.fullmatch(expected, out)), err) == (3, True, ""), out
    *_, error = host.script("import dicom_echo", PYTHONPATH=str(host.archive)).err.splitlines()
    assert error == "ImportError: dicom-echo needs Python 3.9 or later"


@on_both
@known_or_not
@pytest.mark.parametrize("length", [1, 100])
def test_damaged_archive(host: Host, length: int) -> None:
    """A copy that went wrong: one line, even where the code would still run, or would crash Python. Also a plugin's."""
    data, chance = bytearray(host.archive.read_bytes()), random.Random(length)
    for entry in ZipFile(host.archive).infolist():
        if re.match("bytecode/|site-packages/.*/pdu.py", entry.filename):
            at = entry.header_offset + 30 + len(entry.filename) + chance.randrange(entry.compress_size - length)
            data[at : at + length] = bytes(byte ^ 1 << chance.randrange(8) for byte in data[at : at + length])
    broken = replace(host, archive=host.folder / "dicom-echo.pyz")
    broken.archive.write_bytes(data)
    code, out, err = broken.run(host.peer)
    assert (code, out, err.count("\n"), err[:12]) == (2, "", 1, "dicom-echo: ")
    code, out, err = broken.run("--format=nagios", host.peer)
    assert (code, out.count("\n"), err, out[:21]) == (3, 1, "", "DICOM ECHO UNKNOWN - ")


@on_both
@pytest.mark.parametrize("module", ["dicom_echo", "selectors", "pynetdicom.pdu"])
def test_ctrl_c_from_the_first_moment(host: Host, module: str) -> None:
    """The signal ends the process while a module is imported: no traceback. A plugin says its line."""
    interrupted = f"""
        import os, signal
        def hook(event, its):
            if event == "import" and its[0] == {module!r}: os.kill(os.getpid(), signal.SIGINT)
        sys.addaudithook(hook)
    """
    code, out, err = host.run_after(interrupted, host.peer)
    assert (code, "Traceback" in err) == (-signal.SIGINT, False)
    code, out, err = host.run_after(interrupted, "--format", "nagios", host.peer)
    assert (code, out.count("\n"), out[:21], err) == (3, 1, "DICOM ECHO UNKNOWN - ", "")
    ignored = textwrap.dedent(interrupted) + "signal.signal(signal.SIGINT, signal.SIG_IGN)"  # as nohup has it
    assert host.run_after(ignored, host.peer) == WELL


@on_both
@pytest.mark.parametrize("fate", ["overwritten", "removed"])
def test_archive_changes_while_it_runs(host: Host, fate: str) -> None:
    """An update does not disturb a monitoring that goes on, even where its peer has been down until then."""
    moving = Path(shutil.copy(host.archive, host.folder / "work"))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        command = [host.python, str(moving), address, "-c", "0", "-i", "0.1"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")
        assert process.stdout
        while "seq=2" not in process.stdout.readline():
            assert process.poll() is None
        if fate == "removed":
            moving.unlink()
        else:
            moving.write_bytes(bytes(moving.stat().st_size))
        listener.listen()
        connection, _ = listener.accept()
        with connection:
            assert connection.recv(6)[0] == A_ASSOCIATE_RQ
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, "Traceback" in err) == (-signal.SIGINT, False)
    assert " echo statistics ---" in out


# --- As a library ----------------------------------------------------------------------------------------------------


@known_or_not
@on_both
def test_import_in_several_threads(host: Host) -> None:
    """All get the real module, whose verbs work: from a relative path, even when that leads elsewhere later."""
    shutil.copy(host.archive, host.folder / "work/d.pyz")
    script = f"""
        import os, sys, threading; sys.path.insert(0, "./d.pyz/")
        def echo():
            import dicom_echo
            os.chdir("/")
            print(dicom_echo.send({host.peer!r}), dicom_echo.EchoResult.__module__ + "\\n", end="")
        threads = [threading.Thread(target=echo) for number in range(8)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
    """
    assert host.script(script) == (0, "0 dicom_echo\n" * 8, "")


@on_each
def test_import_leaves_the_process_alone(python: str, host: Host) -> None:
    """Signals and modules are somebody else's; pydicom is whole there, and the versions are of what is in use."""
    script = f"""
        import signal, sys
        from importlib.metadata import version
        before = signal.getsignal(signal.SIGINT), sys.meta_path[-1], sys.dont_write_bytecode
        import dicom_echo
        dicom_echo.main(["-q", {host.peer!r}])
        import pydicom, pynetdicom
        print(pydicom.dcmread.__module__, pynetdicom.AE.__module__, version("pynetdicom"), version("pydicom"))
        assert version("dicom-echo") == dicom_echo.__version__
        assert before == (signal.getsignal(signal.SIGINT), sys.meta_path[-1], sys.dont_write_bytecode)
    """
    said = "pydicom.filereader pynetdicom.ae {pynetdicom} {pydicom}\n".format(**locked(python))
    assert host.script(script, PYTHONPATH=str(host.archive)) == (0, said, "")
    assert host.execute(host.python, "-m", "dicom_echo", "--self-test", PYTHONPATH=str(host.archive)) == WELL


# --- What the build wrote --------------------------------------------------------------------------------------------


def test_size_and_checksums() -> None:
    """As `sha256sum -c SHA256SUMS` would find them."""
    assert ARCHIVE.stat().st_size <= 5_000_000
    sums = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in (ARCHIVE, BILL, PAGE, *WHEELS)}
    lines = ARCHIVE.with_name("SHA256SUMS").read_text(encoding="ascii").splitlines()
    assert sorted(lines) == sorted(f"{digest}  {name}" for name, digest in sums.items())


def test_bill_of_materials() -> None:
    """CycloneDX, with all that is inside, and no more, in the versions of the lock files."""
    bill = json.loads(BILL.read_text(encoding="utf-8"))
    assert (bill["bomFormat"], bill["metadata"]["component"]["name"]) == ("CycloneDX", ARCHIVE.name)
    listed = {f"{component['name']}-{component['version']}" for component in bill["components"]}
    found = set(re.findall(r"([^/\n]+)\.dist-info/METADATA$", "\n".join(ZipFile(ARCHIVE).namelist()), re.M))
    assert listed == {name.replace("_", "-") for name in found}
    pinned = {f"{name}-{version}" for python in (GOOD[0], GOOD[-1]) for name, version in locked(python).items()}
    assert {name for name in listed if not name.startswith("dicom-echo-")} == pinned
    needs = {entry["ref"]: entry["dependsOn"] for entry in bill["dependencies"]}
    assert set(needs) == {component["bom-ref"] for component in bill["components"]} | {ARCHIVE.name}
    needed = {ref.partition("@")[0] for ref in needs[ARCHIVE.name]}
    assert needed == {"pkg:pypi/dicom-echo", "pkg:pypi/shiv", "pkg:pypi/shtab"}


def test_contents() -> None:
    """Licences of all; no test suites, sample data, apps or scripts; bytecode for each Python that it names."""
    pyz = ZipFile(ARCHIVE)
    names = pyz.namelist()
    holders = {re.sub("-.*", "", name) for name in names if re.search(r"^[^/]+dist-info/.*LICEN[CS]E", name)}
    assert holders == {"dicom_echo", "pydicom", "pynetdicom", "shiv", "shtab"}
    unwanted = r"(^|/)(tests?|test_files|apps|benchmarks|cli|bin|__pycache__)/|\.(dcm|gz|csv|json\.gz|pyd|so)$|/RECORD$"
    assert [name for name in names if re.search(unwanted, name)] == []
    facts = json.loads(pyz.read("site-packages/dicom_echo_build.json"))
    tags = {"cpython-" + "".join(version.split(".")[:2]) for version in facts["bytecode"]}
    assert {name[len("bytecode/") : -len("-12345678")] for name in names if name.startswith("bytecode/")} == tags


@on_both
def test_man_page(host: Host) -> None:
    """Each option of --help is in it, and man has nothing against it; the wheel has the same."""
    page = PAGE.read_text(encoding="ascii").replace("\\-", "-")
    options = re.findall(r"^  (-[^ ,]+)", host.run("--help").out, flags=re.MULTILINE)
    assert len(options) > 30
    assert [option for option in options if f"\\fB{option}\\fR" not in page] == ["--help"]  # which a man page replaces
    for wheel in WHEELS:
        data = wheel.name.replace("-py3-none-any.whl", ".data/data")
        assert ZipFile(wheel).read(f"{data}/share/man/man1/{PAGE.name}") == PAGE.read_bytes()
    if shutil.which("man"):
        shown = subprocess.run(["man", "--warnings", "-l", PAGE], capture_output=True, text=True, check=True)
        assert shown.stderr == ""
        assert "EXIT STATUS" in shown.stdout
