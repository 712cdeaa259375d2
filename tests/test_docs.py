"""The docstrings are the manual: of `help(dicom_echo)` and of the pages that `nox -s docs` builds."""

from __future__ import annotations

import ast
import builtins
import enum
import inspect
import pydoc
import re
from typing import Any

import dicom_echo

PUBLIC = {name: getattr(dicom_echo, name) for name in dicom_echo.__all__}
FUNCTIONS = {name: of for name, of in PUBLIC.items() if inspect.isfunction(of)} | {"main": dicom_echo.main}
CLASSES = {name: of for name, of in PUBLIC.items() if inspect.isclass(of)}


def sections(documented: Any) -> dict[str, str]:
    """A numpydoc docstring by its headings; what stands before the first is under ""."""
    parts = re.split(r"^(\w[\w ]*)\n-{3,}\n", inspect.getdoc(documented) or "", flags=re.MULTILINE)
    return {"": parts[0], **{parts[i]: parts[i + 1] for i in range(1, len(parts), 2)}}


def entries(section: str) -> set[str]:
    """What a section lists: `name : type` or `first, second : type`, each with a description below."""
    heads = re.findall(r"^([*\w][\w*, .]*?)(?: : .+)?\n +\S", section, flags=re.MULTILINE)
    return {name.strip(" *") for head in heads for name in head.split(",")}


def test_a_function_says_what_it_takes_returns_and_raises() -> None:
    for name, function in FUNCTIONS.items():
        told = sections(function)
        assert told[""].strip(), name
        assert inspect.signature(function).parameters.keys() <= entries(told.get("Parameters", "")), name
        assert "Returns" in told or "Yields" in told, name
        if name != "main":  # which raises nothing
            raised = re.findall(r"^(\w+)", told["Raises"], flags=re.MULTILINE)
            assert raised, name
            assert all(issubclass(PUBLIC.get(error) or getattr(builtins, error), Exception) for error in raised), name


def test_a_class_says_what_it_holds() -> None:
    for name, of in CLASSES.items():
        told, members = sections(of), vars(of)
        assert told[""].strip(), name
        assert not told[""].startswith(f"{name}("), "Python makes one up for named tuples"
        if issubclass(of, enum.Enum):
            fields = {member.name for member in of}
        else:
            fields = {field for field in members.get("__annotations__", ()) if not field.startswith("_")}
            fields |= {field for field, value in members.items() if isinstance(value, property)}
        documented = {field for field, value in members.items() if isinstance(value, property) and value.__doc__}
        assert fields - documented <= entries(told.get("Attributes", "") + told.get("Parameters", "")), name
        methods = {each: value for each, value in members.items() if inspect.isfunction(value) and each[0] != "_"}
        assert [each for each, value in methods.items() if not inspect.getdoc(value)] == [], name


def test_constants_have_a_docstring() -> None:
    """A string below an assignment, which pdoc and editors show."""
    body = ast.parse(inspect.getsource(dicom_echo)).body
    documented = {
        target.id
        for statement, below in zip(body, body[1:])
        for target in getattr(statement, "targets", [getattr(statement, "target", None)])
        if isinstance(target, ast.Name) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
    }
    assert PUBLIC.keys() - FUNCTIONS.keys() - CLASSES.keys() <= documented


def test_the_standard_is_cited() -> None:
    assert "PS3.7" in (dicom_echo.send.__doc__ or "")
    for error in (dicom_echo.Rejected, dicom_echo.Aborted, dicom_echo.ProtocolError):
        assert "PS3.8" in (error.__doc__ or "")


def test_help_starts_with_the_verbs() -> None:
    """On the first screen, before the classes, which pydoc puts before the functions."""
    screen = "\n".join(pydoc.plain(pydoc.render_doc(dicom_echo)).splitlines()[:24])
    assert re.findall(r"\b(send|probe|probe_many)\(", screen)[:3] == ["send", "probe", "probe_many"]


def test_help_on_errors_is_not_buried_under_what_python_has_anyway() -> None:
    for name in filter(lambda name: name.endswith("Error"), dicom_echo.__all__):
        shown = pydoc.plain(pydoc.render_doc(PUBLIC[name]))
        assert re.findall(r"inherited from builtins\.(?!object)\S+", shown) == []
