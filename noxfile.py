"""The workshop: check, test, build and try dicom-echo."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import nox

PYTHONS = nox.project.python_versions(nox.project.load_toml())  # as classified there
ARCHIVE = Path("dist/dicom-echo.pyz")

nox.needs_version = ">=2025.5"
nox.options.error_on_missing_interpreters = False  # an interpreter that this machine lacks is skipped with a notice
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["lint", "tests", "coverage", "docs", "build", "smoke"]


def runs(version: str) -> bool:
    """Whether a Python can be run: pyenv has shims on PATH even for those that are not selected, which fail."""
    path = shutil.which(f"python{version}")
    return path is not None and subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode == 0


NEWEST = next(filter(runs, reversed(PYTHONS)), "{}.{}".format(*sys.version_info))


def dependencies(group: str) -> list[str]:
    return list(nox.project.dependency_groups(nox.project.load_toml(), group))


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, format and types."""
    session.install("-e", ".", *dependencies("lint"))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("mypy")
    session.run("mypy", "--platform", "win32", "dicom_echo.py")


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the tests: all of them on the lowest and the newest Python, real peers and the command on those between."""
    # 3.9 is tested with the lowest versions of our dependencies, which are also the last that support it.
    last = re.findall(r"^py\S+", Path("packaging/pyz39.lock").read_text(), re.MULTILINE)
    pinned = last if session.python == PYTHONS[0] else []
    session.install(".", *pinned, *dependencies("test"))
    # Most tests wait for a peer or for a time limit, so more of them run in parallel than there are cores.
    pytest = ("-m", "pytest", "-n", "6", *session.posargs)
    if session.python == NEWEST and not session.posargs:  # the coverage of some of the tests tells nothing
        # The processes that tests start are not measured: they are signalled, run out of files, or fill a disk.
        session.run("python", *pytest, "--cov", "--cov-report=", "--cov-fail-under=0")
        session.notify("coverage")
    elif session.python == PYTHONS[0] or session.posargs:
        session.run("python", *pytest)
    else:
        session.run("python", *pytest, "tests/test_peers.py", "tests/test_command.py")


@nox.session
def coverage(session: nox.Session) -> None:
    """Report what the tests on the newest Python have reached."""
    session.install(*dependencies("test"))
    session.run("coverage", "report")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the API documentation into build/docs, and README's picture; pdoc's warnings are errors."""
    session.install(".", *dependencies("docs"))
    session.run("python", "docs/terminal.py", "build/docs/terminal.svg")
    session.run("python", "-W", "error", "docs/api.py", "build/docs")


@nox.session
def build(session: nox.Session) -> None:
    """Build dist/dicom-echo.pyz, the archive that runs anywhere, its man page, checksums and bill of materials."""
    session.install("--require-hashes", "-r", "packaging/build.lock")
    wheels = Path(session.create_tmp())
    shutil.rmtree(wheels)
    session.run("python", "-m", "build", "--wheel", "--no-isolation", "--outdir", str(wheels), silent=True)
    session.run("python", "packaging/build_pyz.py", *map(str, wheels.glob("*.whl")), str(ARCHIVE.parent))


@nox.session
def smoke(session: nox.Session) -> None:
    """Try the built archive on each Python, as its users would run it."""
    session.install(".", *dependencies("test"))
    session.run("python", "-m", "pytest", "-n", "4", "tests/smoke.py", *session.posargs)


@nox.session
def reproducible(session: nox.Session) -> None:
    """Build the archive twice, from two folders and by two Pythons: the same bytes must come out."""
    session.install(".", *dependencies("test"))
    session.run("python", "-m", "pytest", "tests/reproducible.py", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure: not a test, and not run unless asked for."""
    session.install(".", *dependencies("test"))
    session.run("python", "tests/bench.py", *session.posargs)
    session.run("python", "tests/bench_start.py", *session.posargs)
