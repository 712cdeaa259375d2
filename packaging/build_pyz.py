"""Builds dicom-echo.pyz with shiv, its checksums and its bill of materials: `build_pyz.py WHEEL [--out dist]`.

shiv packs the wheel and what pyz.lock pins, less what an echo never needs. Its archive then gets our start-up
(see dicom_echo_start.py) and, for each of PYTHONS on PATH, all modules as bytecode (see dicom_echo_bytecode.py).
The same bytes come out whenever the commit and the interpreters found are the same: not the running Python,
the directory, the umask or the time of day has a say.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib import metadata
from io import BytesIO
from pathlib import Path

from dicom_echo_bytecode import Files, sealed, unzipped, zipped

HERE = Path(__file__).resolve().parent
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
START_UP = (
    "__main__.py",
    "dicom_echo.py",
    "dicom_echo_bytecode.py",
    "dicom_echo_cache.py",
    "dicom_echo_isolate.py",
    "dicom_echo_start.py",
)
UNNEEDED = (
    "bin",
    "dicom_echo-stubs",
    "pydicom/cli",
    "pydicom/data/[!_]*",
    "pydicom/fileset.py",
    "pydicom/overlays",
    "pydicom/sr",
    "pydicom/util/codify.py",
    "pydicom/util/dump.py",
    "pydicom/util/fixer.py",
    "pydicom/util/leanread.py",
    "pynetdicom/apps",
    "pynetdicom/benchmarks",
    "pynetdicom/tests",
    "*.dist-info/INSTALLER",  # this and what follows tells of an installation with pip that is none any more
    "*.dist-info/RECORD",
    "*.dist-info/REQUESTED",
    "*.dist-info/direct_url.json",
)
EMPTIED = {  # imported by pydicom in vain here: sample data and their downloader, tags of makers of scanners
    "pydicom/_private_dict.py": "private_dictionaries = {}\n",
    "pydicom/data/__init__.py": "def get_palette_files(pattern):\n    return []\n",
    "pydicom/examples/__init__.py": "",
}
# A set in bytecode is written in the order of its hashes; the rest is about whose settings count: none.
FOREIGN = ("PYTHON", "SHIV_", "SOURCE_DATE_EPOCH")
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith(FOREIGN)} | {
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONHASHSEED": "0",
}


def main() -> None:
    """The whole recipe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path, help="of dicom-echo")
    parser.add_argument("--out", type=Path, default=Path("dist"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    pyz, sbom = options.out / "dicom-echo.pyz", options.out / "dicom-echo.cdx.json"
    with tempfile.TemporaryDirectory() as scratch:
        stage = Path(scratch, "site-packages")
        install(options.wheel, stage)
        prune(stage)
        pythons = found_pythons()
        build_id = describe(stage, pythons)
        files = packed_by_shiv(stage, build_id) | {name: (HERE / name).read_bytes() for name in START_UP}
        files |= bytecode(files, pythons)
        list_materials(stage, sbom)
    pyz.write_bytes(zipped(files, zipfile.ZIP_DEFLATED, b"#!/usr/bin/env python3\n"))
    pyz.chmod(0o755)
    sums = "".join(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in (sbom, pyz))
    (options.out / "SHA256SUMS").write_text(sums, encoding="ascii", newline="\n")
    print(f"{pyz}: {pyz.stat().st_size:,} bytes, build {build_id}, with bytecode for {', '.join(pythons)}")


def run(*command: str | Path, python: str = sys.executable, path: Path | None = None) -> str:
    """What PYTHON prints; its complaints, where it fails, are ours."""
    environment = ENVIRONMENT | ({"PYTHONPATH": str(path)} if path else {})
    return subprocess.run([python, *command], env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout


def install(wheel: Path, stage: Path) -> None:
    pip = ("-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-deps", "--no-compile", "--target", stage)
    run(*pip, "--only-binary=:all:", "--require-hashes", "-r", HERE / "pyz.lock")
    run(*pip, "--no-index", wheel)
    for file in metadata.files("shiv") or []:  # its bootstrap comes along
        if file.name in ("METADATA", "LICENSE"):
            (stage / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(str(file.locate()), stage / file)


def prune(stage: Path) -> None:
    """Leave code, metadata and licences. A pattern that finds nothing is of another release: look again."""
    for pattern in UNNEEDED:
        if not (found := list(stage.glob(pattern))):
            sys.exit(f"nothing to leave out is called {pattern} any more")
        for path in found:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name, left in EMPTIED.items():
        (stage / name).write_text('"""Left out of dicom-echo.pyz."""\n' + left, encoding="ascii", newline="\n")
    for path in stage.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def found_pythons() -> dict[str, str]:
    """Version and interpreter of those that we compile for."""
    found = {}
    path = os.pathsep.join(filter(is_of_the_host, os.environ.get("PATH", "").split(os.pathsep)))
    for wanted in PYTHONS:
        try:
            python = shutil.which(f"python{wanted}", path=path) or ""
            found[run("-c", "import platform; print(platform.python_version())", python=python).strip()] = python
        except (OSError, subprocess.CalledProcessError):
            print(f"no python{wanted} on PATH: it will compile on its first run", file=sys.stderr)
    return found


def is_of_the_host(directory: str) -> bool:
    """Not of a virtual environment, such as nox runs this in: there, the Python is whichever runs nox."""
    return not Path(directory).with_name("pyvenv.cfg").exists()


def describe(stage: Path, pythons: dict[str, str]) -> str:
    """Put down what is inside, for `--version -v`; the id stands for all of it."""
    contents = {of.name: of.version for of in metadata.distributions(path=[str(stage)])}
    facts = {"contents": dict(sorted(contents.items())), "bytecode": list(pythons)}
    parts = [*(stage / name for name in files_in(stage)), *(HERE / name for name in START_UP)]
    digest = hashlib.sha256(json.dumps(facts).encode())
    for part in parts:
        digest.update(hashlib.sha256(part.read_bytes()).digest())
    build_id = digest.hexdigest()[:16]
    (stage / "dicom_echo_build.json").write_text(json.dumps({"build_id": build_id, **facts}), encoding="ascii")
    return build_id


def list_materials(stage: Path, sbom: Path) -> None:
    """The archive is the root of what is listed: it needs us and shiv, and so on."""
    (version,) = (of.version for of in metadata.distributions(path=[str(stage)]) if of.name == "dicom-echo")
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch, "pyproject.toml")
        project = {"name": "dicom-echo.pyz", "version": version, "dependencies": ["dicom-echo", "shiv"]}
        lines = (f"{key} = {json.dumps(value)}\n" for key, value in project.items())
        root.write_text("[project]\n" + "".join(lines), encoding="ascii")
        tool = ("-m", "cyclonedx_py", "environment", "-S", "--output-reproducible", "--pyproject", root, "-o", sbom)
        run(*tool, sys.executable, path=stage)


def packed_by_shiv(stage: Path, build_id: str) -> Files:
    with tempfile.TemporaryDirectory() as scratch:
        pyz = Path(scratch, "shiv.pyz")
        run(
            *["-m", "shiv", "--reproducible", "--compile-pyc", "-c", "dicom-echo", "--build-id"],
            build_id,
            "--site-packages",
            stage,
            "-o",
            pyz,
        )
        with zipfile.ZipFile(pyz) as archive:
            return unzipped(archive)


def bytecode(files: Files, pythons: dict[str, str]) -> Files:
    """For each Python: one zip file of all the packages, to unpack; and what runs before that, as it is."""
    packages = {
        name.removeprefix("site-packages/"): of for name, of in files.items() if name.startswith("site-packages/")
    }
    start_up = {name: of for name, of in files.items() if name.startswith(("_bootstrap/", "dicom_echo_"))}
    made = {}
    for python in pythons.values():
        tag = run("-c", "import dicom_echo_start; print(dicom_echo_start.TAG)", python=python, path=HERE).strip()
        made[f"bytecode/{tag}.zip"] = sealed(packed_by(python, packages))
        with zipfile.ZipFile(BytesIO(packed_by(python, start_up))) as compiled:
            made |= {f"start/{tag}/{name}": of for name, of in unzipped(compiled).items()}
    return made


def packed_by(python: str, files: Files) -> bytes:
    command = [python, "-S", "-X", "no_debug_ranges", str(HERE / "dicom_echo_bytecode.py")]
    given = zipped(files, zipfile.ZIP_STORED)
    return subprocess.run(command, env=ENVIRONMENT, check=True, input=given, stdout=subprocess.PIPE).stdout


def files_in(directory: Path) -> list[str]:
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
