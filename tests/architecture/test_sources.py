"""What every source file of the project keeps to."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.support.project import files, is_script, name_of, python_files

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60

# Written in pieces, so that this file keeps to its own rule. Each with why it has no place in the project.
FORBIDDEN = {
    r"/wo" r"rk/": "a path of one machine",
    r"/ro" r"ot/": "a path of one machine",
    r"python"
    r"hosted\.org|py"
    r"pi\.org|deb\."
    r"debian\.org|npm"
    r"js\.(?:org|com)": "the host of a package registry",
    r"design pa" r"ges?|design/\w+\.md": "text that is not in the project",
    r"\bissue #?\d|\(#\d+\)": "the number of an issue",
    r"\b(?:TO" r"DO|FIX" r"ME|XX" r"X)\b": "work that is not done",
    r"\b(?:Cl" r"aude|Chat" r"GPT|L" r"LM)\b": "how the text was written",
}


def code() -> Iterator[Path]:
    """Yield Python files and scripts."""
    yield from (path for path in files() if path.suffix == ".py" or is_script(path))


def test_no_source_file_is_long() -> None:
    long = {name_of(path): lines for path in code() if (lines := len(path.read_text().splitlines())) > MAX_FILE_LINES}
    assert not long


def test_no_function_is_long() -> None:
    long = {}
    for path in python_files():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    long[f"{name_of(path)}:{node.lineno} {node.name}"] = lines
    assert not long


def test_every_module_says_what_it_is() -> None:
    trees = {name_of(path): ast.parse(path.read_text()) for path in python_files()}
    silent = [name for name, tree in trees.items() if tree.body and not ast.get_docstring(tree)]
    assert not silent


def test_every_script_can_be_run_and_nothing_else() -> None:
    wrong = [name_of(path) for path in files() if bool(path.stat().st_mode & 0o111) != is_script(path)]
    assert not wrong


def test_the_project_speaks_of_itself_alone() -> None:
    found = []
    for path in files():
        text = path.read_text(errors="replace")
        for pattern, why in FORBIDDEN.items():
            for match in re.finditer(pattern, text):
                line = text.count("\n", 0, match.start()) + 1
                found.append(f"{name_of(path)}:{line}: {match[0]!r} is {why}")
    assert not found
