"""Programs in completions: where they are, and when two of them are the same."""

from __future__ import annotations

import ast
import hashlib
import re
import warnings

MAX_PARSED = 20_000
"""Characters. A longer program runs, but is compared as text."""
_MAX_SHOWN = 1_000

_FENCED = re.compile(r"```([^\n`]*)\n(.*?)```", re.DOTALL)
_TAGS = frozenset({"", "py", "python", "python3"})


def python_blocks(completion: str) -> list[str]:
    """Return the contents of fenced blocks marked as Python or not marked, in order; one left open is none."""
    return [block for tag, block in _FENCED.findall(completion) if tag.strip().lower() in _TAGS]


def normalised_tree(code: str) -> ast.Module | None:
    """Return the syntax tree with names of the code's own numbered, without docstrings and types of parameters.

    None: it does not parse, or is longer than :data:`MAX_PARSED`.
    """
    if len(code) > MAX_PARSED:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            tree = ast.parse(code)
        names: dict[str, str] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.setdefault(node.id, f"n{len(names)}")
            elif isinstance(node, ast.arg):
                names.setdefault(node.arg, f"n{len(names)}")
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names.setdefault(node.name, f"n{len(names)}")
                if ast.get_docstring(node, clean=False) is not None:
                    node.body = node.body[1:] or [ast.Pass()]
        for node in ast.walk(tree):
            if isinstance(node, ast.Name):
                node.id = names.get(node.id, node.id)
            elif isinstance(node, ast.arg):
                node.arg, node.annotation = names[node.arg], None
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                node.name = names[node.name]
                if not isinstance(node, ast.ClassDef):
                    node.returns = None
        return tree
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # a null byte is a ValueError
        return None


def syntax_tree(code: str) -> str | None:
    """Return the dump of :func:`normalised_tree`; None where there is none."""
    tree = normalised_tree(code)
    try:
        return None if tree is None else ast.dump(tree)
    except (RecursionError, MemoryError):
        return None


def normalised_program(code: str) -> str:
    """Return the text that stands for a program as an answer: equal for programs that differ in names and layout only.

    The source written from :func:`normalised_tree`, or the program itself where it has none; a long one is cut and
    ends with a digest of the whole.
    """
    tree = normalised_tree(code)
    text = code
    if tree is not None:
        try:
            text = ast.unparse(tree)
        except (RecursionError, MemoryError, ValueError):
            tree = None
    if len(text) <= _MAX_SHOWN:
        return text
    return f"{text[:_MAX_SHOWN]} ... sha256:{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"
