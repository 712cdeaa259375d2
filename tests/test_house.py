"""The module's own order: chapters name private names only of those that they may use."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import dicom_echo as echo

SOURCE = Path(echo.__file__).read_text(encoding="utf-8")

# Which chapters a chapter may use, beside itself. What it names of others by exception stands behind it.
MAY_USE: dict[str, tuple[set[int], set[str]]] = {
    "vocabulary": (set(), set()),
    "errors": ({1}, set()),
    "address": ({1, 2}, set()),
    "request": ({1, 2, 3}, set()),
    "verbs": (set(range(1, 12)), set()),
    "echo": ({1, 2, 3, 4, 7, 8, 9}, set()),
    "wire": ({1, 2}, {"_host_port", "_ip_version", "_ascii_name"}),
    "dialogue": ({1, 2, 3, 4, 9}, set()),
    "codec": ({1, 2}, set()),
    "turns": (set(), {"_Wait", "_Waiting"}),
    "campaign": (set(range(1, 11)), set()),
    "reports": ({1, 2, 3, 4, 11}, set()),
    "other end": ({1, 2, 3, 7, 8, 9, 10, 12}, set()),
    "command": (set(range(1, 14)), set()),
}


@functools.cache
def chapters() -> dict[str, list[ast.stmt]]:
    """The statements of each chapter; those before the first are left out."""
    heads = {
        number: match[1]
        for number, line in enumerate(SOURCE.splitlines(), 1)
        if (match := re.fullmatch(r"# -- \d+\. ([a-z ]+) -+", line))
    }
    found: dict[str, list[ast.stmt]] = {name: [] for name in heads.values()}
    for statement in ast.parse(SOURCE).body:
        if before := [number for number in heads if number < statement.lineno]:
            found[heads[max(before)]].append(statement)
    return found


def nodes(name: str) -> Iterator[ast.AST]:
    """All that a chapter is made of."""
    for statement in chapters()[name]:
        yield from ast.walk(statement)


def names_given(statement: ast.stmt) -> Iterator[str]:
    """The names that a statement of the module binds."""
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
        yield statement.name
    elif isinstance(statement, (ast.Assign, ast.AnnAssign, ast.If, ast.Try, ast.With)):
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield node.id


def test_the_chapters_are_those_of_the_map_in_the_head() -> None:
    head = SOURCE[: SOURCE.index("# -- 1. ")]
    assert re.findall(r"^# +\d+\. ([a-z ]+?)  ", head, re.MULTILINE) == list(chapters()) == list(MAY_USE)


def test_a_chapter_names_private_names_only_of_chapters_that_it_may_use() -> None:
    home = {
        given: number
        for number, statements in enumerate(chapters().values(), 1)
        for statement in statements
        for given in names_given(statement)
        if given.startswith("_")
    }
    for own, (name, (allowed, exceptions)) in enumerate(MAY_USE.items(), 1):
        strangers = {
            f"{node.id}, line {node.lineno}, of chapter {home[node.id]}"
            for node in nodes(name)
            if isinstance(node, ast.Name)
            and home.get(node.id, own) not in {*allowed, own}
            and node.id not in exceptions
        }
        assert strangers == set()
        assert exceptions <= home.keys(), "an exception that no longer exists"


def test_only_the_codec_imports_pynetdicom() -> None:
    for name in MAY_USE.keys() - {"codec"}:
        modules = [node.module or "" for node in nodes(name) if isinstance(node, ast.ImportFrom)]
        modules += [each.name for node in nodes(name) if isinstance(node, ast.Import) for each in node.names]
        assert not {"pynetdicom", "pydicom"} & {module.partition(".")[0] for module in modules}, name


def test_nothing_depends_on_asserts() -> None:
    assert not [node.lineno for node in ast.walk(ast.parse(SOURCE)) if isinstance(node, ast.Assert)]


def test_pure_chapters_do_no_input_or_output() -> None:
    used = {
        f"{node.value.id}.{node.attr}"
        for name in ("dialogue", "codec", "address", "errors", "vocabulary")
        for node in nodes(name)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        if node.value.id in ("socket", "ssl", "selectors", "time", "os", "threading", "argparse")
    }
    known = {"socket.inet_pton", "socket.AF_INET", "socket.AF_INET6"}  # an address without asking anybody
    assert used <= known | {"threading.Lock", "os.listdir", "os.path"}  # the codec's import, and its versions
