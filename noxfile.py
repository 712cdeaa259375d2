"""The workshop: check, test, build and try dicom-echo."""

from pathlib import Path

import nox

PYTHONS = ["3.10", "3.11", "3.12", "3.13", "3.14"]
ARCHIVE = Path("dist/dicom-echo.pyz")

nox.needs_version = ">=2025.5"
nox.options.error_on_missing_interpreters = False  # an interpreter that this machine lacks is skipped with a notice
nox.options.reuse_existing_virtualenvs = True


def dependencies(group: str) -> list[str]:
    return list(nox.project.dependency_groups(nox.project.load_toml(), group))


def run_tests(session: nox.Session) -> None:
    # Most tests wait for a peer or for a time limit, so that more of them than cores go on at once.
    session.run("coverage", "run", "-m", "pytest", "-n", "6", *session.posargs)
    session.notify("coverage")


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, format and types."""
    session.install("-e", ".", *dependencies("lint"))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("mypy")


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the tests against real peers."""
    session.install(".", *dependencies("test"))
    run_tests(session)


@nox.session(python="3.10")
def lowest(session: nox.Session) -> None:
    """Run the tests with the lowest versions of what we build on."""
    session.install(".", "pynetdicom==3.0.0", "pydicom==3.0.0", *dependencies("test"))
    run_tests(session)


@nox.session
def coverage(session: nox.Session) -> None:
    """Report what the tests of all Pythons together have reached."""
    session.install(*dependencies("test"))
    session.run("coverage", "combine")
    session.run("coverage", "report")


@nox.session
def build(session: nox.Session) -> None:
    """Build the archive that runs anywhere."""
    session.install("shiv")
    ARCHIVE.parent.mkdir(exist_ok=True)
    session.run("shiv", "--console-script", "dicom-echo", "--output-file", str(ARCHIVE), "--reproducible", ".")


@nox.session(python=PYTHONS, venv_backend="venv")
def smoke(session: nox.Session) -> None:
    """Run the built archive, from a directory that holds nothing else."""
    archive = str(ARCHIVE.resolve())
    session.chdir(session.create_tmp())
    session.run("python", archive, "--version")
    session.run("python", archive, "--self-test")
    session.run("python", archive, "127.0.0.1:1", success_codes=[3])
