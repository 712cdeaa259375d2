"""Build dicom-echo.pyz, its checksums and its bill of materials: `build_pyz.py WHEEL FOLDER`.

shiv packs the wheel and what pyz.lock pins, without what an echo never needs, into `site-packages/`; the versions for
Python 3.9 (pyz39.lock) are in `py39/` there. We add our start-up (__main__.py, dicom_echo.py) and, for each of PYTHONS
on PATH, all modules as bytecode. The same commit and interpreters give the same bytes, whoever builds, where and when.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from hashlib import sha256
from importlib.metadata import Distribution, distributions
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

HERE = Path(__file__).resolve().parent
PYTHONS = re.findall(r"Python :: (3\.\d+)", (HERE.parent / "pyproject.toml").read_text())
UNNEEDED = (  # what is left is code, metadata and licences
    *("*.dist-info/[!MLl]*", "*.data", "bin", "dicom_echo-stubs", "pynetdicom/apps", "pynetdicom/benchmarks"),
    *("pynetdicom/tests", "pydicom/cli", "pydicom/data/[!_]*", "pydicom/fileset.py", "pydicom/sr", "shiv"),
)
EMPTIED = {  # imported by pydicom without need: makers' private tags, sample data and their downloader
    "pydicom/_private_dict.py": "private_dictionaries = {}\n",
    "pydicom/data/__init__.py": "def get_palette_files(pattern):\n    return []\n",
    "pydicom/examples/__init__.py": "",
}
PTH = "import sys; sys.version_info < (3, 10) and sys.path.insert(sys.path.index(sitedir), sitedir + '/py39')\n"
# The builder's settings must not matter, nor nox's virtual environment. Bytecode has sets in the order of their hashes.
PATH = [entry for entry in os.environ["PATH"].split(os.pathsep) if not Path(entry, "../pyvenv.cfg").exists()]
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "SHIV_", "SOURCE_DATE_EPOCH"))}
ENVIRONMENT |= {"PATH": os.pathsep.join(PATH), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONHASHSEED": "0"}


def main(wheel: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    pyz, bill, page = (out / f"dicom-echo.{kind}" for kind in ("pyz", "cdx.json", "1"))
    with tempfile.TemporaryDirectory() as scratch:
        newest, for_39 = Path(scratch, "stage/newest"), Path(scratch, "stage/3.9")
        installed = [install(newest, wheel, "pyz.lock"), install(for_39, wheel, "pyz39.lock", "--python-version=3.9")]
        bill.write_text(bill_of_materials(wheel, *installed), encoding="ascii", newline="\n")
        contents = {name: of.version for name, of in installed[0].items()}
        others = {name: of.version for name, of in installed[1].items() if of.version != contents[name]}
        contents |= {name: f"{contents[name]} ({version} for 3.9)" for name, version in others.items()}
        shutil.copy(next(newest.glob("*.data/data/share/man/man1/*")), page)
        for pattern in UNNEEDED:
            for path in list(newest.parent.glob(f"*/{pattern}")) or sys.exit(f"nothing is called {pattern} any more"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for name, left in EMPTIED.items():
            for path in newest.parent.glob(f"*/{name}"):
                path.write_text(left, encoding="ascii", newline="\n")

        bytecode, pythons = Path(scratch, "bytecode"), []
        bytecode.mkdir()
        for version in PYTHONS:
            python = shutil.which(f"python{version}", path=ENVIRONMENT["PATH"])
            if not python or subprocess.call([python, "-c", ""], env=ENVIRONMENT):  # a shim without a Python behind it
                print(f"no python{version} on PATH: it will compile at each start", file=sys.stderr)
                continue
            command = (python, "-S", "-X", "no_debug_ranges", HERE / "bytecode.py")
            pythons.append(run(*command, for_39 if version == "3.9" else newest, bytecode))
        for path in for_39.glob("py*"):
            shutil.copytree(path, newest / "py39" / path.name)
        (newest / "py39.pth").write_text(PTH, encoding="ascii", newline="\n")  # for where shiv unpacks
        shiv = (sys.executable, "-m", "shiv", "--reproducible", "-e", "dicom_echo:_command")
        run(*shiv, "--site-packages", newest, "-o", scratch + "/shiv.pyz")
        with ZipFile(scratch + "/shiv.pyz") as archive:
            packed = {name: archive.read(name) for name in archive.namelist()}
        packed |= {f"bytecode/{path.name}": path.read_bytes() for path in bytecode.iterdir()}
    packed |= {name: (HERE / name).read_bytes() for name in ("__main__.py", "dicom_echo.py")}
    build_id = sha256(repr(sorted(packed.items())).encode()).hexdigest()[:16]
    facts = {"build_id": build_id, "contents": contents, "bytecode": pythons}
    packed["site-packages/dicom_echo_build.json"] = json.dumps(facts).encode()  # for `--version -v`

    with pyz.open("wb") as file:
        file.write(b"#!/usr/bin/env python3\n")
        with ZipFile(file, "w") as archive:
            for name in sorted(packed):  # importlib.metadata looks for metadata at the top of an archive
                entry = ZipInfo(re.sub(r"^site-packages/([^/]*\.dist-info/)", r"\1", name))  # dated 1980
                entry.external_attr, entry.create_system = 0o100644 << 16, 3  # readable by all
                stored = name.startswith("bytecode/")  # which is compressed already
                archive.writestr(entry, packed[name], ZIP_STORED if stored else ZIP_DEFLATED, 9)
    pyz.chmod(0o755)
    made = (page, bill, pyz, Path(shutil.copy(wheel, out)))
    sums = "".join(f"{sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in made)
    (out / "SHA256SUMS").write_text(sums, encoding="ascii", newline="\n")
    print(f"{pyz}: {pyz.stat().st_size:,} bytes, build {build_id}, with bytecode for {', '.join(pythons)}")


def run(*command: str | Path) -> str:
    return subprocess.run(command, env=ENVIRONMENT, check=True, stdout=subprocess.PIPE, text=True).stdout


def install(folder: Path, wheel: Path, lock: str, *options: str) -> dict[str, Distribution]:
    """Install the wheel and what LOCK pins. Of shiv, whose bootstrap is included, that must be the one in use here."""
    pip = (sys.executable, "-m", "pip", "install", "-qq", "--no-deps", "--no-compile", "--only-binary=:all:")
    run(*pip, *options, "--target", folder, "--require-hashes", "-r", HERE / lock, "-c", HERE / "build.lock")
    ZipFile(wheel).extractall(folder)
    return {of.name: of for of in sorted(distributions(path=[str(folder)]), key=lambda of: of.name)}


def bill_of_materials(wheel: Path, *installed: dict[str, Distribution]) -> str:
    """CycloneDX. The archive needs us and shiv; we need pynetdicom and pydicom, each in two releases."""
    root = {"type": "application", "name": "dicom-echo.pyz", "bom-ref": "dicom-echo.pyz"}
    components: dict[str, dict[str, str]] = {}
    needs: dict[str, set[str]] = {root["bom-ref"]: set()}
    for each in installed:
        refs = {name: f"pkg:pypi/{name}@{of.version}" for name, of in each.items()}
        needs[root["bom-ref"]] |= {refs[name] for name in ("dicom-echo", "shiv", "shtab")}
        for ref, of in zip(refs.values(), each.values()):
            components[ref] = {"type": "library", "name": of.name, "version": of.version, "purl": ref, "bom-ref": ref}
            wanted = re.findall(r"^[\w-]+(?!.*extra)", "\n".join(of.requires or ()), re.M)
            needs.setdefault(ref, set()).update(refs[name] for name in wanted if name in refs)
    bill = {"bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1}
    bill["metadata"] = {"component": root | {"version": wheel.name.split("-")[1]}}
    bill["components"] = list(components.values())
    bill["dependencies"] = [{"ref": ref, "dependsOn": sorted(needs[ref])} for ref in sorted(needs)]
    return json.dumps(bill, indent=1)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
