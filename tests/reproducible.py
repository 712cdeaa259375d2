"""The same commit makes the same archive: `pytest tests/reproducible.py`. It takes two minutes and uses the network.

Two copies of the sources, one with a space and an é in its path, are built by the oldest and the newest Python here,
with different homes, umasks, locales, time zones and hash seeds.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from smoke import GOOD, ROOT, Python

SOURCES = ("dicom_echo.py", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "packaging")
BUILT = ("SHA256SUMS", "dicom-echo.cdx.json", "dicom-echo.pyz")


def build(python: Python, folder: Path, umask: int, **settings: str) -> dict[str, str]:
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
    environment |= {"HOME": str(home), **settings}
    tools = home / "tools/bin/python"

    def run(*command: str | Path) -> None:
        subprocess.run(command, cwd=folder, env=environment, umask=umask, check=True)

    run(python.path, "-m", "venv", home / "tools")
    run(tools, "-m", "pip", "install", "-q", "--require-hashes", "-r", "packaging/build.lock")
    run(tools, "-m", "build", "--wheel", "--no-isolation", "--outdir", home)
    run(tools, "packaging/build_pyz.py", *home.glob("*.whl"), "--out", "dist")
    return {name: hashlib.sha256((folder / "dist" / name).read_bytes()).hexdigest() for name in BUILT}


def test_the_same_bytes_come_out(tmp_path: Path) -> None:
    """Whoever builds, where and when."""
    here, there = tmp_path / "here", tmp_path / "over thére"
    here.mkdir()
    there.mkdir()
    with ThreadPoolExecutor() as pool:
        one = pool.submit(build, GOOD[0], here, 0o022, LC_ALL="C", TZ="UTC", PYTHONHASHSEED="1")
        other = pool.submit(build, GOOD[-1], there, 0o077, LC_ALL="C.UTF-8", TZ="Asia/Tokyo", PYTHONHASHSEED="2")
    assert one.result() == other.result()
