"""Replace all modules below a folder by bytecode for the Python that runs this: `bytecode.py FOLDER`.

Like `compileall -b`, but with paths relative to FOLDER, and without other people's docstrings, a third of the archive.
(-OO would take the asserts, too, with which pynetdicom checks values.)
"""

import ast
import importlib.util
import marshal
import sys
import warnings
from pathlib import Path

folder = Path(sys.argv[1])
warnings.simplefilter("ignore")  # about escapes in pynetdicom 2
for path in sorted(folder.rglob("*.py")):
    source, name = path.read_bytes(), path.relative_to(folder).as_posix()
    tree = ast.parse(source, name)
    for node in ast.walk(tree) if path.stem != "dicom_echo" else ():
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            node.value.value = ""  # a string that stands by itself does nothing else
    code = marshal.dumps(compile(tree, name, "exec", dont_inherit=True, optimize=0))
    unchecked = b"\1\0\0\0" + importlib.util.source_hash(source)  # PEP 552: not to be compared with a source
    path.with_suffix(".pyc").write_bytes(importlib.util.MAGIC_NUMBER + unchecked + code)
    path.unlink()
print(f"{sys.implementation.cache_tag}-{importlib.util.MAGIC_NUMBER.hex()}")  # see dicom_echo.py
