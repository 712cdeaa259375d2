"""Turns each module below a directory into bytecode, for the Python that runs this: `bytecode.py DIRECTORY`.

`compileall -b` with two differences: the docstrings of what is not ours go, which makes the archive a third
smaller (`-OO` would, but takes the asserts with them, and pynetdicom checks its peer with those); and the paths
in it are short ones, whatever directory this is. Nothing is left to be checked against a source at run time.
"""

import ast
import importlib.util
import marshal
import sys
from pathlib import Path

UNCHECKED = (1).to_bytes(4, "little")  # PEP 552: known by the hash of its source, and not to be compared with it


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


if __name__ == "__main__":
    top = Path(sys.argv[1])
    for path in sorted(top.rglob("*.py")):
        path.with_suffix(".pyc").write_bytes(compiled(path.read_bytes(), path.relative_to(top).as_posix()))
        path.unlink()
