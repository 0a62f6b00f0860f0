"""Measure how densely code is packed: ``python tools/density.py src sweeps``.

It is a thermometer, not a gate: nothing checks these figures. Per folder or file it prints

* syntax-tree nodes per line of code, without operators and contexts; blank lines, comments and
  docstrings are not code,
* assignments of a tuple to a tuple (``a, b = x, y``) per 1,000 lines of code,
* conditional expressions per 1,000 lines of code,
* lines over 100 characters,
* docstrings of functions that do not begin with a verb.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

#: The longest line.
LINE_LENGTH = 100
#: Nodes that only say how another node is meant.
UNCOUNTED = (ast.expr_context, ast.operator, ast.cmpop, ast.boolop, ast.unaryop)
#: Nodes that may have a docstring.
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
#: How a docstring begins that is not a sentence with a verb.
NO_VERB = re.compile(r"(What|Whether|How|Where|Who|Which|Of|The|A|An)\b")


@dataclass
class Density:
    """Counts over some files."""

    #: Lines of code.
    code: int = 0
    nodes: int = 0
    tuple_assignments: int = 0
    conditional_expressions: int = 0
    long_lines: int = 0
    docstrings_without_verb: int = 0

    def add(self, source: str) -> None:
        """Count what is in a module."""
        tree = ast.parse(source)
        lines = source.split("\n")
        self.code += sum(1 for _ in code_lines(tree, lines))
        self.long_lines += sum(len(line) > LINE_LENGTH for line in lines)
        for node in ast.walk(tree):
            if not isinstance(node, UNCOUNTED):
                self.nodes += 1
            if isinstance(node, ast.IfExp):
                self.conditional_expressions += 1
            if is_tuple_assignment(node):
                self.tuple_assignments += 1
            if is_function_without_verb(node):
                self.docstrings_without_verb += 1

    def row(self, name: str) -> str:
        """Return the figures in a line."""
        if self.code == 0:
            return f"{name:28}  no code"
        thousands = self.code / 1_000
        return (
            f"{name:28}"
            f"{self.code:10,}"
            f"{self.nodes / self.code:10.1f}"
            f"{self.tuple_assignments / thousands:10.1f}"
            f"{self.conditional_expressions / thousands:14.1f}"
            f"{self.long_lines:12}"
            f"{self.docstrings_without_verb:14}"
        )


#: Heading of :meth:`Density.row`.
HEADING = (
    f"{'':28}{'code':>10}{'nodes':>10}{'a, b =':>10}{'if else':>14}{'too long':>12}{'no verb':>14}"
)


def code_lines(tree: ast.Module, lines: list[str]) -> Iterator[str]:
    """Yield the lines of a module that are neither blank nor comments nor docstrings."""
    inside_docstrings = set(docstring_lines(tree))
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if text and not text.startswith("#") and number not in inside_docstrings:
            yield line


def docstring_lines(tree: ast.Module) -> Iterator[int]:
    """Yield the numbers of all lines of docstrings."""
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node) is not None:
            docstring = node.body[0]
            yield from range(docstring.lineno, (docstring.end_lineno or docstring.lineno) + 1)


def is_tuple_assignment(node: ast.AST) -> bool:
    """Return whether a statement assigns several values to several names at once."""
    return (
        isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Tuple)
        and isinstance(node.value, ast.Tuple)
    )


def is_function_without_verb(node: ast.AST) -> bool:
    """Return whether a node is a function whose docstring does not begin with a verb."""
    if not isinstance(node, ast.FunctionDef):
        return False
    return NO_VERB.match(ast.get_docstring(node) or "") is not None


def modules(path: Path) -> list[Path]:
    """Return a file, or all modules below a folder."""
    if path.is_file():
        return [path]
    return sorted(path.rglob("*.py"))


def main(names: Iterable[str]) -> None:
    """Print the figures of every folder or file that is named."""
    print(HEADING)
    for name in names:
        density = Density()
        for module in modules(Path(name)):
            density.add(module.read_text(encoding="utf-8"))
        print(density.row(name))


if __name__ == "__main__":
    main(sys.argv[1:] or ["src", "sweeps"])
