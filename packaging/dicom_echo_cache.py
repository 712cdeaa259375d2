"""Where the archive may unpack to: directories that this user alone can change. Checked at every start.

Code that others can plant there is code that we run. So the directory itself must be a real one, ours and closed
to others, and each one above it must belong to us or to root and be closed to the writing of others (or be
sticky, like /tmp, where one cannot rename what is another's).
"""

from __future__ import annotations

import atexit
import errno
import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress

NAME = "dicom-echo"
ONCE = f"{NAME}-once-"  # begins the name of a directory for one run
HOUR, DAY = 60 * 60, 24 * 60 * 60
KEPT = 30 * DAY  # how long we leave what nobody uses
if sys.platform != "win32":
    ME = os.geteuid()
else:
    ME = 0


def places() -> Iterator[tuple[str, str]]:
    """(directory, name of ours in it), the best first; one without a name is for this run only."""
    ours = f"{NAME}-{ME}"
    if wanted := os.environ.get("SHIV_ROOT"):  # who sets it wants that, or to hear why not
        yield os.path.expanduser(wanted), ours
        return
    if cache := user_cache():
        yield cache, NAME
    bases = [os.environ.get(name, "") for name in ("TMPDIR", "TEMP", "TMP")]
    if sys.platform != "win32":
        bases += ["/tmp", "/var/tmp"]
    bases = [base for base in dict.fromkeys(bases) if os.path.isabs(base) and os.path.isdir(base)]
    if sys.platform != "win32":  # there, we cannot tell whose a directory is that waits in a common TEMP
        yield from ((base, ours) for base in bases)
    yield from ((base, "") for base in bases)


def user_cache() -> str:
    """This user's directory for what can be made again, by the custom of the system; "" without one."""
    home = os.path.expanduser("~") if os.environ.get("HOME", "~") else ""
    if sys.platform == "win32":
        cache = os.environ.get("LOCALAPPDATA", "")
    elif sys.platform == "darwin":
        cache = os.path.join(home, "Library", "Caches")
    else:
        named = os.environ.get("XDG_CACHE_HOME", "")
        cache = named if os.path.isabs(named) else os.path.join(home, ".cache")
    return cache if os.path.isabs(cache) else ""


def private(base: str, name: str) -> str:
    """The directory NAME in BASE, there already or made now; OSError if it is not this user's alone."""
    base = os.path.realpath(base)
    if not os.path.isdir(base):
        os.mkdir(base)  # ~/.cache, but never the home itself
    if sys.platform != "win32":  # there, profile and temporary directory are closed to others as they come
        check_way(base)
    if not name:
        return fresh(base)
    path = os.path.join(base, name)
    if not os.path.lexists(path):
        with suppress(FileExistsError):  # another first start, just now
            os.mkdir(path, 0o700)
    found = os.lstat(path)
    if (sys.platform != "win32" and (found.st_uid != ME or found.st_mode & 0o077)) or not stat.S_ISDIR(found.st_mode):
        raise PermissionError(errno.EACCES, f"the {name} there is not private to this user")
    return path


FRESH: list[str] = []  # to be removed at the end


def fresh(base: str) -> str:
    """A directory for this run. The old ones of runs that could not remove theirs go now."""
    with suppress(OSError):
        for entry in os.scandir(base):
            if entry.name.startswith(ONCE) and entry.stat(follow_symlinks=False).st_uid == ME and unused(entry) > KEPT:
                shutil.rmtree(entry.path, ignore_errors=True)
    atexit.register(remove_fresh)
    FRESH.append(tempfile.mkdtemp(prefix=ONCE, dir=base))
    return FRESH[-1]


def remove_fresh() -> None:
    while FRESH:
        shutil.rmtree(FRESH.pop(), ignore_errors=True)


def unused(entry: os.DirEntry[str]) -> float:
    """For how many seconds."""
    return time.time() - entry.stat(follow_symlinks=False).st_mtime


def check_way(path: str) -> None:
    """Refuse a place where somebody else can put another directory in the stead of ours."""
    owners = {0, ME}
    with suppress(OSError), open("/proc/self/uid_map", encoding="ascii") as ids:
        if "4294967295" not in ids.read():
            owners.add(65534)  # in a user namespace, where files of the real root show as nobody's
    above = ""
    while path != above:
        found = os.stat(path)
        if found.st_uid not in owners or (found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX):
            raise PermissionError(errno.EACCES, f"others can change {shown(path)}")
        path, above = os.path.dirname(path), path


def shown(path: str) -> str:
    """A path that leaves a message on its one line."""
    return path if path.isprintable() else repr(path)
