"""Takes what the host has installed out of the way: before anything is imported that it could stand in for.

A `json.py` in a directory on PYTHONPATH is enough to break a Python program. So this module needs only what Python has
imported by the time that it runs us.
"""

from __future__ import annotations

import os
import sys

CARRIED = {"dicom_echo", "pydicom", "pynetdicom"}


def forget_host_packages() -> None:
    """Leave the archive and the standard library: not PYTHONPATH, not site-packages, nor what these brought."""
    kept = {os.path.normcase(entry) for entry in (*sys.path[:2], *standard_library())}
    sys.path[:] = [entry for entry in sys.path if os.path.normcase(entry) in kept]
    sys.meta_path[:] = [f for f in sys.meta_path if getattr(f, "__module__", "").startswith("_frozen_importlib")]
    for module in list(sys.modules):
        if module.partition(".")[0] in CARRIED:  # imported by a .pth file
            del sys.modules[module]
    sys.modules["numpy"] = None  # type: ignore[assignment]  # reads as "not installed", which pydicom is content with


def standard_library() -> list[str]:
    """Where Python's own modules may be. By the whole path, since anybody can call a folder lib-dynload."""
    base = sys.base_exec_prefix
    home = os.path.dirname(getattr(os, "__file__", ""))  # some Pythons have all of it in a zip file, and os frozen
    name = os.path.basename(home)
    places = [os.path.join(base, library, name, "lib-dynload") for library in (sys.platlibdir, "lib")]
    if home:
        zipped = os.path.join(os.path.dirname(home), name.replace(".", "") + ".zip")
        places += [home, zipped, os.path.join(home, "lib-dynload")]
    if sys.platform == "win32":
        places += [os.path.join(base, "DLLs"), os.path.join(base, "python{}{}.zip".format(*sys.version_info))]
        if not os.path.isdir(home):
            places.append(base)  # the embeddable Python has its extension modules there
    return places
