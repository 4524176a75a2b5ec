# SPDX-License-Identifier: GPL-2.0-only
"""At which line of a source each struct, field and number is: the place to mend."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from pyharness.abi.mirror import snake_case

_C_STRUCT = re.compile(r"^(?:typedef\s+)?struct\b[^;{}()]*?\b(\w+)\s*\{")
_C_FIELD = re.compile(r"^\s[^*/(]*?\b(\w+)(?:\[[^\]]*\])*;")
_C_NUMBER = re.compile(r"^\s*(?:#\s*define\s+(\w+)|([A-Z]\w*)\s*(?:=[^=]|,))")


def places_of(path: Path) -> dict[str, int]:
    """Lines by name: `struct`, `struct.field`, `NUMBER`, `Enum.MEMBER`. Empty for a file that cannot be read."""
    try:
        text = path.read_text()
        return dict(_in_python(text) if path.suffix == ".py" else _in_c(text))
    except (OSError, SyntaxError):
        return {}


def _in_c(text: str) -> Iterator[tuple[str, int]]:
    struct = ""
    for number, line in enumerate(text.splitlines(), 1):
        if opened := _C_STRUCT.match(line):
            struct = opened[1]
            yield struct, number
        elif line.startswith("}"):
            struct = ""
        elif struct and (field := _C_FIELD.match(line)):
            yield f"{struct}.{field[1]}", number
        elif named := _C_NUMBER.match(line):
            yield named[1] or named[2], number


def _in_python(text: str) -> Iterator[tuple[str, int]]:
    for node in ast.parse(text).body:
        if isinstance(node, ast.ClassDef):
            yield from _in_class(node)
            continue
        for name in _targets(node):
            yield name, node.lineno
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            # A Layout: the struct's name, then a format and a name for each field.
            struct, *fields = [*_texts(node.value.args), ("", 0)]
            yield struct[0], struct[1]
            yield from ((f"{struct[0]}.{field.split()[-1]}", line) for field, line in fields if field)


def _in_class(node: ast.ClassDef) -> Iterator[tuple[str, int]]:
    struct = snake_case(node.name)
    yield struct, node.lineno
    for inner in node.body:
        for name in _targets(inner):
            yield f"{node.name}.{name}", inner.lineno
            if name == "_fields_" and isinstance(inner, ast.Assign) and isinstance(inner.value, ast.Tuple | ast.List):
                pairs = [pair.elts[0] for pair in inner.value.elts if isinstance(pair, ast.Tuple)]
                yield from ((f"{struct}.{field}", line) for field, line in _texts(pairs))


def _targets(node: ast.stmt) -> list[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _texts(nodes: list[ast.expr]) -> list[tuple[str, int]]:
    return [(node.value, node.lineno) for node in nodes if isinstance(node, ast.Constant) and type(node.value) is str]
