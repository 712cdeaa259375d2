"""Give the wheel the module's types and the man page, which is made from the command's own parser.

The types are the module once more, as a stub package (PEP 561): a single module has no place for a ``py.typed`` marker,
and hatchling's ``force-include`` moves a file rather than including it twice; so this hands it a copy from elsewhere.
"""

import runpy
import shutil
from argparse import HelpFormatter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class WheelExtras(BuildHookInterface[Any]):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        self._folder = TemporaryDirectory()
        module = Path(self.root, "dicom_echo.py")
        stub = shutil.copyfile(module, Path(self._folder.name, "__init__.pyi"))
        build_data["force_include"][str(stub)] = "dicom_echo-stubs/__init__.pyi"
        if version == "standard":  # not "editable"
            page = Path(self._folder.name, "dicom-echo.1")
            page.write_bytes(man_page(module).encode("ascii"))
            build_data["shared_data"][str(page)] = "share/man/man1/dicom-echo.1"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        self._folder.cleanup()


def man_page(module: Path) -> str:
    """The parser as roff. The date is left out, so that a commit gives the same page on any day."""
    from argparse_manpage.manpage import Manpage  # here, as an editable install does not need it

    command = runpy.run_path(str(module), run_name="dicom_echo")
    parser = command["_parser"]()
    parser.epilog = None  # it becomes sections of their own
    parser.formatter_class = lambda prog: HelpFormatter(prog, width=9999)  # whose line breaks would split words
    page = Manpage(parser, {"project_name": "dicom-echo", "version": command["__version__"]})
    page.manual, page.date = "User Commands", ""
    page.description = "send a DICOM C-ECHO and report what happened"
    for heading, text in ("EXAMPLES", command["_EXAMPLES"]), ("EXIT STATUS", command["_EXIT_CODES"]):
        _, lines = page.mf.format_text(text).split("\n", 1)  # without its heading
        page.add_section(heading, "=", f".nf\n{lines}\n.fi")
    return str(page)
