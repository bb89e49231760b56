"""Print the tree of source files with a few words each, for the README: python scripts/source_tree.py."""

import ast
import re
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src" / "ltmia"


def first_words(path: Path) -> str:
    """Return a module's docstring up to the first colon or the first end of a sentence."""
    first = (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").split("\n")[0]
    return re.split(r":|;|\.(?:\s|$)|(?<=\?)\s", first)[0]


def source_tree() -> str:
    """Lay out every Python file of the package, folders after files."""
    lines = ["src/ltmia/"]
    folders = [SOURCE, *sorted(p.parent for p in SOURCE.glob("*/__init__.py"))]
    for folder in folders:
        if folder != SOURCE:
            lines.append(f"  {folder.name}/")
        indent = "  " if folder == SOURCE else "    "
        for path in sorted(folder.glob("*.py")):
            if path.name != "__init__.py" or folder == SOURCE:
                lines.append(f"{indent}{path.name:<20} {first_words(path)}".rstrip())
    return "\n".join(lines)


if __name__ == "__main__":
    print(source_tree())
