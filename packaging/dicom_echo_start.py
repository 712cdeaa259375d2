"""From `python dicom-echo.pyz` to shiv's bootstrap: a private cache, one file in it.

shiv unpacks all files of `site-packages` and compiles them on the first run, in processes of their own. This archive
also carries them as bytecode, in one zip file per Python. The one that fits goes where shiv looks for the unpacked
directory: Python imports from a zip file as from a directory, so shiv finds its work done. A Python that we carry no
bytecode for makes the same file for itself. A single file is written aside, then renamed: it is there whole or not at
all, whoever starts, is killed or fills the disk meanwhile.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path
from types import ModuleType

from dicom_echo_cache import DAY, HOUR, KEPT, NAME, places, private, remove_fresh, shown, unused

TAG = f"{sys.implementation.cache_tag}-{importlib.util.MAGIC_NUMBER.hex()}"  # which bytecode this Python reads


def run() -> None:
    """`python dicom-echo.pyz`: shiv calls the entry point and exits with what it returns."""
    leave_in_order()
    try:
        site_packages = unpack(sys.argv[0])
        for name in [name for name in os.environ if name.startswith("SHIV_")]:
            del os.environ[name]  # they would run something else, or with other packages, or unpack again
        os.environ["SHIV_ROOT"] = os.path.dirname(os.path.dirname(site_packages))
        from _bootstrap import bootstrap

        sys.path[:2] = [site_packages]  # in place of the archive, and before what is installed in Python's own folder
        bootstrap()
    except CannotUnpack as err:
        print(f"{NAME}: {err}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def leave_in_order() -> None:
    """Where a signal ends us, remove the directory of this run first. (dicom_echo takes SIGTERM itself, later.)"""
    for number in (getattr(signal, name, None) for name in ("SIGTERM", "SIGHUP")):
        if number and signal.getsignal(number) == signal.SIG_DFL:  # else nohup, say
            signal.signal(number, leave)


def leave(number: int, _frame: object) -> None:
    """At once, as without us: an exception would wait for threads, and get lost in a destructor."""
    remove_fresh()
    os._exit(128 + number)


def give_way(name: str, archive: str) -> ModuleType:
    """`import dicom_echo` with ARCHIVE on sys.path: put its packages there, and the real module in place of ours."""
    place = sys.path.index(archive) if archive in sys.path else 0  # not there: with a slash at its end, for example
    try:
        sys.path.insert(place, unpack(archive))
    except CannotUnpack as err:
        raise ImportError(f"{NAME}: {err}") from None
    sys.modules.pop(name, None)
    return importlib.import_module(name)


class CannotUnpack(Exception):
    """No directory to unpack into is private to this user, and has room; or the archive is a copy that went wrong."""


DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, KeyError, RuntimeError, ValueError)  # as zipfile tells of it


def unpack(archive: str) -> str:
    """The `site-packages` of ARCHIVE, found whole or made so now, in the first place that will do."""
    refused = []
    umask = os.umask(0o077)
    try:
        with zipfile.ZipFile(archive) as pyz:
            for base, name in places():
                try:
                    return fill(private(base, name), archive, pyz)
                except OSError as err:
                    refused.append(f"{shown(base)}: {err.strerror}")
    except DAMAGE as err:
        raise CannotUnpack(f"{shown(archive)} is damaged: {str(err) or type(err).__name__}") from err
    finally:
        os.umask(umask)
    why = "; ".join(dict.fromkeys(refused)) or "no temporary directory"
    raise CannotUnpack(f"nowhere to unpack to ({why}); set SHIV_ROOT to a directory that only you can write to")


def fill(root: str, archive: str, pyz: zipfile.ZipFile) -> str:
    """The `site-packages` of PYZ at the place below ROOT where shiv expects them."""
    build = json.loads(pyz.read("environment.json"))["build_id"]
    used = os.path.join(root, f"{build}-{TAG}")
    target = os.path.join(used, f"{os.path.basename(os.path.realpath(archive))}_{build}", "site-packages")
    os.makedirs(used, exist_ok=True)
    if time.time() - os.stat(used).st_mtime > DAY:
        with suppress(OSError):  # a home that is read-only today
            os.utime(used)
    if not is_whole(target):
        packages = bytecode(pyz)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        put(packages, target, root)
        prune(root)
    return target


def bytecode(pyz: zipfile.ZipFile) -> bytes:
    """All packages for this Python: as PYZ carries them, else compiled now."""
    carried = f"bytecode/{TAG}.zip"
    if carried in pyz.namelist():
        return pyz.read(carried)
    from dicom_echo_bytecode import packed, sealed, unzipped

    return sealed(packed(unzipped(pyz, "site-packages/")))


def is_whole(path: str) -> bool:
    """By the checksum before it: against accidents, such as a power cut; people cannot get at it."""
    try:
        data = memoryview(Path(path).read_bytes())
    except OSError:
        return False
    return len(data) > 4 and zlib.crc32(data[4:]).to_bytes(4, "big") == data[:4]


def put(data: bytes, target: str, aside: str) -> None:
    """TARGET holds DATA, or is as it was; never a part."""
    handle, part = tempfile.mkstemp(".part", dir=aside)
    try:
        with open(handle, "wb") as file:
            file.write(data)
        os.replace(part, target)
    except BaseException as err:
        os.unlink(part)
        if not isinstance(err, PermissionError) or not is_whole(target):
            raise  # else: Windows keeps a file that another start has put there, and reads just now


def prune(root: str) -> None:
    """Remove what no run has used for long: caches of other builds, and parts that a killed run left."""
    for entry in os.scandir(root):
        with suppress(OSError):
            if entry.name.endswith(".part") and unused(entry) > HOUR:
                os.unlink(entry.path)
            elif unused(entry) > KEPT:
                shutil.rmtree(entry.path)
