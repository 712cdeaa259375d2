"""Compile all modules below a folder for the Python that runs this, into one file: `bytecode.py FOLDER OUT`.

Other people's docstrings, a third of the archive, are left out. (-OO would take the asserts, too, with which pynetdicom
checks values.)
"""

import ast
import importlib.util
import marshal
import sys
import warnings
import zlib
from pathlib import Path

folder, compiled = Path(sys.argv[1]), {}
warnings.simplefilter("ignore")  # about escapes in pynetdicom 2
for path in sorted(folder.rglob("*.py")):
    name = path.relative_to(folder).as_posix()
    tree = ast.parse(path.read_bytes(), name)
    for node in ast.walk(tree) if path.stem != "dicom_echo" else ():
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            node.value.value = ""  # a string that stands by itself does nothing else
    code = compile(tree, name, "exec", dont_inherit=True, optimize=0)
    module = name[: -len(".py")].replace("/", ".")
    compiled[module.removesuffix(".__init__")] = zlib.compress(marshal.dumps(code), 9)
tag = f"{sys.implementation.cache_tag}-{importlib.util.MAGIC_NUMBER.hex()}"  # see dicom_echo.py
Path(sys.argv[2], tag).write_bytes(marshal.dumps(compiled))
