"""The same commit makes the same archive: `pytest tests/reproducible.py`. It takes a minute and uses the network.

Two copies of the sources, one with a space and an é in its path, are built by the oldest and the newest Python here,
with different homes, umasks, locales, time zones, hash seeds and dates. As with nox, the virtual environment that the
build runs in comes first on PATH; its Python is no reason to compile for another one than the host's.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from smoke import GOOD, PYTHONS, ROOT

BUILDERS = [python for python in GOOD if python != "3.9"]  # what the build's own tools ask for

SOURCES = ("dicom_echo.py", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "packaging")
BUILT = ("dicom-echo.1", "dicom-echo.cdx.json", "dicom-echo.pyz")  # SOURCE_DATE_EPOCH is for the wheel to honour


def build(python: str, folder: Path, umask: int, **settings: str) -> dict[str, str]:
    """What a build in `folder` makes: the digest of each file."""
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name)
        else:
            shutil.copy(ROOT / name, folder)
    home = folder.with_name(f"home of {folder.name}")
    home.mkdir()
    # pip's cache is shared, and holds only what the lock file's hashes agree with.
    environment = os.environ | {
        "PIP_CACHE_DIR": os.environ.get("PIP_CACHE_DIR", str(Path("~/.cache/pip").expanduser()))
    }
    tools = home / "tools/bin/python"
    environment |= {"HOME": str(home), "PATH": os.pathsep.join([str(tools.parent), os.environ["PATH"]]), **settings}

    def run(*command: str | Path) -> None:
        subprocess.run(command, cwd=folder, env=environment, umask=umask, check=True)

    run(PYTHONS[python], "-m", "venv", home / "tools")
    run(tools, "-m", "pip", "install", "-q", "--require-hashes", "-r", "packaging/build.lock")
    for other in {f"python{other}" for other in GOOD} - {f"python{python}"}:
        (tools.parent / other).symlink_to(shutil.which("false") or "false")
    run(tools, "-m", "build", "--wheel", "--no-isolation", "--outdir", home)
    run(tools, "packaging/build_pyz.py", *home.glob("*.whl"), "dist")
    return {name: hashlib.sha256((folder / "dist" / name).read_bytes()).hexdigest() for name in BUILT}


def test_the_same_bytes_come_out(tmp_path: Path) -> None:
    """Whoever builds, where and when."""
    here, there = tmp_path / "here", tmp_path / "over thére"
    here.mkdir()
    there.mkdir()
    one = {"LC_ALL": "C", "TZ": "UTC", "PYTHONHASHSEED": "1", "SOURCE_DATE_EPOCH": "1000000000"}
    other = {"LC_ALL": "C.UTF-8", "TZ": "Asia/Tokyo", "PYTHONHASHSEED": "2", "SOURCE_DATE_EPOCH": "1700000000"}
    with ThreadPoolExecutor() as pool:
        builds = [
            pool.submit(build, BUILDERS[0], here, 0o022, **one),
            pool.submit(build, BUILDERS[-1], there, 0o077, **other),
        ]
    assert builds[0].result() == builds[1].result()
