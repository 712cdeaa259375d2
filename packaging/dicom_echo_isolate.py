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
    kept = {*sys.path[:2], os.path.dirname(os.__file__)}
    if sys.platform == "win32":
        kept.add(sys.base_exec_prefix)  # the embeddable Python's extension modules
    names = {"lib-dynload", "DLLs", "python{}{}.zip".format(*sys.version_info)}
    sys.path[:] = [entry for entry in sys.path if entry in kept or os.path.basename(entry) in names]
    sys.meta_path[:] = [f for f in sys.meta_path if getattr(f, "__module__", "").startswith("_frozen_importlib")]
    for module in list(sys.modules):
        if module.partition(".")[0] in CARRIED:  # imported by a .pth file
            del sys.modules[module]
    sys.modules["numpy"] = None  # type: ignore[assignment]  # reads as "not installed", which pydicom is content with
