"""Build the API documentation: `python -W error docs/api.py FOLDER`."""

import sys
import typing
from pathlib import Path

import pdoc

import dicom_echo

for name in dicom_echo.__all__:
    if hasattr(value := getattr(dicom_echo, name), "_fields"):  # typing.NamedTuple leaves its types as text
        value.__new__.__annotations__ = typing.get_type_hints(value)
pdoc.doc_pyi.find_stub_file = lambda _name: None  # the wheel has stubs, which are the module once more
pdoc.render.configure(docformat="numpy")
pdoc.pdoc("dicom_echo", output_directory=Path(sys.argv[1]))
