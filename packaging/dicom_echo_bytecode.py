"""Turns modules into bytecode, for the Python that runs this, and packs them: at the build, or else at a first start.

The build has each Python do it: `dicom_echo_bytecode.py < ZIP > ZIP`. A Python that it did not find does it for
itself, in memory and in the process of its first start: workers would import what lies about, and could outlive us.

`compileall -b` with two differences: the docstrings of what is not ours go, which makes the archive a third
smaller (`-OO` would, but takes the asserts with them, and pynetdicom checks its peer with those); and the paths
in it are short ones, whatever directory this is. Nothing is left to be checked against a source at run time.
"""

from __future__ import annotations

import ast
import importlib.util
import marshal
import os
import sys
import warnings
import zipfile
import zlib
from io import BytesIO

UNCHECKED = (1).to_bytes(4, "little")  # PEP 552: known by the hash of its source, and not to be compared with it
Files = dict[str, bytes]


def compiled(source: bytes, name: str) -> bytes:
    tree = ast.parse(source, name)
    if not name.startswith("dicom_echo"):
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Expr)
                and isinstance(node.value, ast.Constant)
                and isinstance(node.value.value, str)
            ):
                node.value.value = ""  # a text that stands by itself does nothing else
    code = compile(tree, name, "exec", dont_inherit=True, optimize=0)
    return importlib.util.MAGIC_NUMBER + UNCHECKED + importlib.util.source_hash(source) + marshal.dumps(code)


def compiled_files(files: Files) -> Files:
    """Each module as bytecode, where Python looks for it that has no source; any other file as it is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `-W error` is about the user's code, not about this
        modules = {f"{name}c": compiled(of, name) for name, of in files.items() if name.endswith(".py")}
    return modules | {name: of for name, of in files.items() if not name.endswith(".py")}


def packed(files: Files) -> bytes:
    """All of them in one zip file that Python imports from; stored, since inflating takes longer than reading."""
    return zipped(compiled_files(files), zipfile.ZIP_STORED)


def sealed(data: bytes) -> bytes:
    """A zip file that shows by itself whether it is whole: it may have anything before it, such as its checksum."""
    return zlib.crc32(data).to_bytes(4, "big") + data


def zipped(files: Files, method: int, before: bytes = b"") -> bytes:
    """Sorted, dated 1980 and readable by all, whatever they were on disk."""
    data = BytesIO(before)
    data.seek(0, os.SEEK_END)
    with zipfile.ZipFile(data, "w") as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name)
            entry.external_attr = 0o100644 << 16
            entry.create_system = 3
            archive.writestr(entry, files[name], method, 9)
    return data.getvalue()


def unzipped(archive: zipfile.ZipFile, below: str = "") -> Files:
    """All files in a folder of ARCHIVE, by their names there."""
    return {name.removeprefix(below): archive.read(name) for name in archive.namelist() if name.startswith(below)}


if __name__ == "__main__":
    with zipfile.ZipFile(BytesIO(sys.stdin.buffer.read())) as given:
        sys.stdout.buffer.write(packed(unzipped(given)))
