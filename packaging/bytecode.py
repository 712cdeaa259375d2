"""Compile the modules below a folder for the Python that runs this, into one file: `bytecode.py FOLDER OUT`.

Others' docstrings are left out; -OO would drop pynetdicom's asserts, too. Prints the version of the Python.
"""

import ast
import sys
import warnings
from importlib.util import MAGIC_NUMBER
from marshal import dumps
from pathlib import Path
from zlib import compress

folder, out, compiled = Path(sys.argv[1]), Path(sys.argv[2]), {}
warnings.simplefilter("ignore")  # about escapes in pynetdicom 2
for path in sorted(folder.rglob("*.py")):
    name = path.relative_to(folder).as_posix()
    tree = ast.parse(path.read_bytes(), name)
    for node in ast.walk(tree) if name != "dicom_echo.py" else ():
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            node.value.value = ""  # a string that stands by itself does nothing else
    module = name[: -len(".py")].replace("/", ".").removesuffix(".__init__")
    compiled[module] = compress(dumps(compile(tree, name, "exec", dont_inherit=True, optimize=0)), 9)
(out / f"{sys.implementation.cache_tag}-{MAGIC_NUMBER.hex()}").write_bytes(dumps(compiled))  # see dicom_echo.py
print(sys.version.split()[0], end="")
