"""Files and functions stay short enough to read at once."""

import ast
from importlib.resources import files
from pathlib import Path

FILE_LINES, FUNCTION_LINES = 320, 60
SOURCE = Path(str(files("ltmia")))


def test_no_file_and_no_function_is_too_long() -> None:
    found = []
    for file in SOURCE.rglob("*.py"):
        text, name = file.read_text("utf-8"), file.relative_to(SOURCE)
        if (n := len(text.splitlines())) > FILE_LINES:
            found.append(f"{name}: {n} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                n = node.end_lineno - node.lineno + 1
                found += [f"{name}: {node.name}: {n} lines"] if n > FUNCTION_LINES else []
    assert found == []
