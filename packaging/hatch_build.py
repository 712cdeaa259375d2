"""Give the wheel the module's types: the module once more, as a stub package (PEP 561).

A single module has no place for a ``py.typed`` marker, and hatchling's ``force-include`` moves a file rather than
including it twice; so this hands it a copy from elsewhere.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class StubsFromModule(BuildHookInterface[Any]):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        self._folder = TemporaryDirectory()
        stub = shutil.copyfile(Path(self.root, "dicom_echo.py"), Path(self._folder.name, "__init__.pyi"))
        build_data["force_include"][str(stub)] = "dicom_echo-stubs/__init__.pyi"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        self._folder.cleanup()
