"""Build dicom-echo.pyz, its checksums and its bill of materials: `build_pyz.py WHEEL FOLDER`.

shiv packs the wheel and what pyz.lock pins, without what an echo never needs, into `site-packages/`; the versions for
Python 3.9 (pyz39.lock) are in `py39/` there. We add our start-up (__main__.py, dicom_echo.py) and, for each of PYTHONS
on PATH, all modules as bytecode. The same commit and interpreters give the same bytes, whoever builds, where and when.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).resolve().parent
PYTHONS = re.findall(r"Python :: (3\.\d+)", (HERE.parent / "pyproject.toml").read_text())
START_UP = (HERE / "__main__.py", HERE / "dicom_echo.py")
UNNEEDED = (
    *("*/*/direct_url.json", "*/*/INSTALLER", "*/*/RECORD", "*/*/REQUESTED", "*/bin", "*/dicom_echo-stubs", "*/share"),
    *("*/pydicom/cli", "*/pydicom/data/[!_]*", "*/pydicom/fileset.py", "*/pydicom/sr", "*/pydicom/util/codify.py"),
    *("*/pydicom/util/dump.py", "*/pydicom/util/fixer.py", "*/pydicom/util/leanread.py", "newest/pydicom/overlays"),
    *("*/pynetdicom/apps", "*/pynetdicom/benchmarks", "*/pynetdicom/tests"),
)
EMPTIED = {  # imported by pydicom without need: makers' private tags, sample data and their downloader
    "pydicom/_private_dict.py": "private_dictionaries = {}\n",
    "pydicom/data/__init__.py": "def get_palette_files(pattern):\n    return []\n",
    "pydicom/examples/__init__.py": "",
}
PTH = "import sys; sys.version_info < (3, 10) and sys.path.insert(sys.path.index(sitedir), sitedir + '/py39')\n"
# The builder's settings must not matter. Sets in bytecode are written in the order of their hashes.
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "SHIV_", "SOURCE_DATE_EPOCH"))}
ENVIRONMENT |= {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONHASHSEED": "0"}
ENVIRONMENT["PATH"] = os.pathsep.join(
    entry for entry in os.environ["PATH"].split(os.pathsep) if not Path(entry, "../pyvenv.cfg").exists()
)  # without a virtual environment, such as nox runs this in


def main(wheel: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    pyz, bill, page = (out / f"dicom-echo.{kind}" for kind in ("pyz", "cdx.json", "1"))
    with tempfile.TemporaryDirectory() as scratch:
        newest, for_39 = stages = Path(scratch, "newest"), Path(scratch, "3.9")
        stage(newest, wheel, "pyz.lock")
        stage(for_39, wheel, "pyz39.lock", "--python-version=3.9")
        shutil.copyfile(newest / "share/man/man1" / page.name, page)
        prune(stages)
        pythons = found_pythons()
        build_id = describe(stages, list(pythons))
        files = {path.name: path.read_bytes() for path in START_UP}
        for version, python in pythons.items():
            files |= bytecode(python, for_39 if version.startswith("3.9.") else newest)
        bill.write_text(bill_of_materials(stages, wheel.name.split("-")[1]), encoding="ascii", newline="\n")
        for path in for_39.glob("py*"):
            shutil.copytree(path, newest / "py39" / path.name)
        (newest / "py39.pth").write_text(PTH, encoding="ascii", newline="\n")  # where shiv has unpacked
        files |= packed_by_shiv(newest, build_id)
    write_archive(pyz, files)
    made = (page, bill, pyz, Path(shutil.copy(wheel, out)))
    sums = "".join(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in made)
    (out / "SHA256SUMS").write_text(sums, encoding="ascii", newline="\n")
    print(f"{pyz}: {pyz.stat().st_size:,} bytes, build {build_id}, with bytecode for {', '.join(pythons)}")


def run(*command: str | Path) -> str:
    return subprocess.run(command, env=ENVIRONMENT, check=True, stdout=subprocess.PIPE, text=True).stdout


def stage(folder: Path, wheel: Path, lock: str, *options: str) -> None:
    """Install the wheel and what LOCK pins; and shiv's metadata, as its bootstrap is included."""
    pip = (sys.executable, "-m", "pip", "install", "-qq", "--no-deps", "--no-compile", "--target", folder)
    run(*pip, "--only-binary=:all:", *options, "--require-hashes", "-r", HERE / lock)
    run(*pip, "--no-index", wheel)
    for file in metadata.files("shiv") or []:
        if file.name in ("METADATA", "LICENSE"):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(str(file.locate()), folder / file)


def prune(stages: tuple[Path, ...]) -> None:
    """Keep only code, metadata and licences. A pattern that finds nothing is out of date, and an error."""
    for pattern in UNNEEDED:
        for path in list(stages[0].parent.glob(pattern)) or sys.exit(f"nothing is called {pattern} any more"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name, left in EMPTIED.items():
        for path in stages[0].parent.glob(f"*/{name}"):
            path.write_text(left, encoding="ascii", newline="\n")


def found_pythons() -> dict[str, str]:
    """Version and path of each that we compile for."""
    found = {}
    for wanted in PYTHONS:
        try:
            python = shutil.which(f"python{wanted}", path=ENVIRONMENT["PATH"]) or ""
            found[run(python, "-c", "import platform; print(platform.python_version())").strip()] = python
        except (OSError, subprocess.CalledProcessError):
            print(f"no python{wanted} on PATH: it will compile at each start", file=sys.stderr)
    return found


def describe(stages: tuple[Path, ...], pythons: list[str]) -> str:
    """Write into each stage what is in the archive, for `--version -v`. The ID is a hash of all of it."""
    paths = (*START_UP, *(path for folder in stages for path in sorted(folder.rglob("*.*"))))
    parts = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths if path.is_file()]
    build_id = hashlib.sha256(json.dumps([parts, pythons]).encode()).hexdigest()[:16]
    newest, for_39 = ({of.name: of.version for of in distributions(folder)} for folder in stages)
    contents = {name: of if of == for_39[name] else f"{of} ({for_39[name]} for 3.9)" for name, of in newest.items()}
    facts = json.dumps({"build_id": build_id, "contents": contents, "bytecode": pythons})
    for folder in stages:
        (folder / "dicom_echo_build.json").write_text(facts, encoding="ascii")
    return build_id


def distributions(folder: Path) -> list[metadata.Distribution]:
    return sorted(metadata.distributions(path=[str(folder)]), key=lambda of: of.name)


def bill_of_materials(stages: tuple[Path, ...], version: str) -> str:
    """CycloneDX. The archive needs us and shiv; we need pynetdicom and pydicom, each in two releases."""
    listed: dict[str, dict[str, str]] = {}
    needs: dict[str, set[str]] = {"dicom-echo.pyz": set()}
    for folder in stages:
        refs = {of.name: f"pkg:pypi/{of.name}@{of.version}" for of in distributions(folder)}
        needs["dicom-echo.pyz"] |= {refs[name] for name in ("dicom-echo", "shiv", "shtab")}
        for of in distributions(folder):
            ref = refs[of.name]
            listed[ref] = {"type": "library", "name": of.name, "version": of.version, "purl": ref, "bom-ref": ref}
            wanted = re.findall(r"^[\w-]+(?!.*extra)", "\n".join(of.requires or []), re.M)
            needs.setdefault(ref, set()).update(refs[name] for name in wanted if name in refs)
    root = {"type": "application", "name": "dicom-echo.pyz", "version": version, "bom-ref": "dicom-echo.pyz"}
    bill = {"bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1, "metadata": {"component": root}}
    dependencies = [{"ref": ref, "dependsOn": sorted(needs[ref])} for ref in sorted(needs)]
    return json.dumps({**bill, "components": [*listed.values()], "dependencies": dependencies}, indent=1)


def bytecode(python: str, folder: Path) -> dict[str, bytes]:
    """A stage, compiled by PYTHON."""
    with tempfile.TemporaryDirectory() as out:
        run(python, "-S", "-X", "no_debug_ranges", HERE / "bytecode.py", folder, out)
        return {f"bytecode/{path.name}": path.read_bytes() for path in Path(out).iterdir()}


def packed_by_shiv(folder: Path, build_id: str) -> dict[str, bytes]:
    """A stage as shiv packs it; the metadata move to the top, where importlib.metadata looks for them in an archive."""
    pyz = folder.with_name("shiv.pyz")
    shiv = (sys.executable, "-m", "shiv", "--reproducible", "-c", "dicom-echo", "--build-id", build_id)
    run(*shiv, "--site-packages", folder, "-o", pyz)
    with zipfile.ZipFile(pyz) as archive:
        files = {name: archive.read(name) for name in archive.namelist() if name != "__main__.py"}
    return {re.sub("^site-packages/([^/]*[.]dist-info/)", r"\1", name): of for name, of in files.items()}


def write_archive(pyz: Path, files: dict[str, bytes]) -> None:
    """Write files sorted, dated 1980 and readable by all, however they were on disk."""
    with pyz.open("wb") as file:
        file.write(b"#!/usr/bin/env python3\n")
        with zipfile.ZipFile(file, "w") as archive:
            for name in sorted(files):
                entry = zipfile.ZipInfo(name)
                entry.external_attr, entry.create_system = 0o100644 << 16, 3
                stored = name.startswith("bytecode/")  # that is compressed already
                archive.writestr(entry, files[name], zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED, 9)
    pyz.chmod(0o755)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
