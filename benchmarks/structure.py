"""Count what a reader of the package has to hold: files, lines, circles, hidden modules, imports past a folder's face.

python -m benchmarks.structure [--root FOLDER]

A circle is a strongly connected component of the import graph with two files or more, lazy imports included. A
module is hidden where its folder's face exports a function or class of the module's own name. An import goes past a
face where a file of another folder names a module inside `hf_moe_lmc/FOLDER/` instead of `hf_moe_lmc.FOLDER`.
"""

import argparse
import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import networkx

SMALL = 25  # lines


def modules_of(package: Path) -> dict[str, Path]:
    """Dotted name -> file."""
    names = {}
    for file in sorted(package.rglob("*.py")):
        parts = file.relative_to(package.parent).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return names


def imports_of(name: str, file: Path) -> Iterator[tuple[str, str]]:
    """(module, imported name) of every `from ... import ...`, lazy ones included, those for type checkers left out."""
    tree = ast.parse(file.read_text("utf-8"))
    typing_only = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.walk(node)
    }
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and id(node) not in typing_only:
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            yield from ((".".join([*above, *filter(None, [node.module])]), alias.name) for alias in node.names)


def main() -> None:
    """Print one figure a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[1])
    package = parser.parse_args().root / "hf_moe_lmc"
    modules = modules_of(package)
    lines = {name: len(file.read_text("utf-8").splitlines()) for name, file in modules.items()}
    graph, past_faces, hidden = networkx.DiGraph(), set(), set()
    for name, file in modules.items():
        for module, imported in imports_of(name, file):
            target = f"{module}.{imported}" if f"{module}.{imported}" in modules else module
            if target in modules and target != name:
                graph.add_edge(name, target)
            folder = ".".join(module.split(".")[:2])
            if module in modules and module.count(".") >= 2 and not name.startswith(folder):
                past_faces.add((name, module, imported))
            if file.name == "__init__.py" and module == f"{name}.{imported}":
                hidden.add(module)
    circles = [part for part in networkx.strongly_connected_components(graph) if len(part) > 1]
    small = [name for name, count in lines.items() if count < SMALL and modules[name].name != "__init__.py"]
    figures = {
        "files": len(lines),
        "lines": sum(lines.values()),
        "median lines of a file": median(lines.values()),
        "files per 1,000 lines": round(1000 * len(lines) / sum(lines.values()), 1),
        f"files under {SMALL} lines, faces left out": f"{len(small)} {' '.join(small)}",
        "modules hidden by a name of their own": f"{len(hidden)} {' '.join(sorted(hidden))}",
        "import circles": len(circles),
        "files in circles": sum(map(len, circles)),
        "names imported past a folder's face": len(past_faces),
    }
    for what, count in figures.items():
        sys.stdout.write(f"{what:42} {count}\n")


if __name__ == "__main__":
    main()
