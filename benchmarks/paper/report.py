"""The report: rows -> tables, the rows themselves and plots: `paper.md`, `paper.jsonl`, `paper-*.png`.

python -m benchmarks.paper.report [--out benchmarks/results]
python -m benchmarks.paper.report --grid benchmarks/paper/scale.yaml [--out benchmarks/results]   # paper-scale.*
"""

import argparse
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from hf_moe_lmc.merging import AUTOMATIC

from .grid import GRID, Table, introduction, load_grid
from .plots import PLOTS
from .run import RUNS, holds
from .tables import SHAPES, accuracy_gains, merging


def render(introduction: str, tables: Sequence[Table], rows: Mapping[str, dict], pictures: Mapping[str, str]) -> str:
    """The whole report; `rows` by name of their cell, the files of `pictures` by name of their table."""
    parts = [introduction, _versions(rows)]
    for table in tables:
        found = [rows[cell.name] for cell in table.cells if cell.name in rows]
        if found:
            parts.append(f"## {table.title}\n\n`{table.name}`\n\n{SHAPES[table.shape](found)}")
            if table.name in pictures:
                parts.append(f"![{table.title}]({pictures[table.name]})\n")
    parts.append(
        "## Does merging pay?\n\nMidpoint or mean of predictions, minus the endpoints; below 0 is better in loss.\n"
    )
    reported = [row for name, row in rows.items() if not name.startswith("study")]
    parts += [accuracy_gains([row for row in reported if "+" not in row["cell"]["data"]]), merging(reported)]
    parts += [_not_run(tables, rows), _chosen_otherwise(rows)]
    return "\n".join(parts)


def load_rows(tables: Sequence[Table], folder: Path, committed: Path) -> dict[str, dict]:
    """The rows below `folder`, or else in the file `committed`, that belong to the grid as it is now, in its order."""
    lines = committed.read_text(encoding="utf-8").splitlines() if committed.exists() else []
    known = {row["cell"]["name"]: row for row in map(json.loads, lines)}
    rows = {}
    for cell in (cell for table in tables for cell in table.cells):
        file = folder / "rows" / f"{cell.name}.json"
        row = json.loads(file.read_text(encoding="utf-8")) if file.exists() else known.get(cell.name)
        if row and holds(row, cell, reduced=True):
            rows[cell.name] = row
    return rows


def draw(tables: Sequence[Table], rows: Mapping[str, dict], out: Path) -> dict[str, str]:
    """Draws every table that has a picture into `out`; the files by name of their table."""
    files = {}
    for table in tables:
        if table.shape in PLOTS and (figure := PLOTS[table.shape](table, rows)):
            files[table.name] = f"paper-{table.name}.png"
            figure.savefig(out / files[table.name], dpi=110)
    return files


def _versions(rows: Mapping[str, dict]) -> str:
    kinds = sorted({", ".join(f"{name} {v}" for name, v in row["versions"].items()) for row in rows.values()})
    cpu = sum(row["cpu_seconds"]["copies"] + row["cpu_seconds"]["comparison"] for row in rows.values())
    return f"{len(rows)} cells, {cpu / 60:.0f} CPU minutes without the backbones; {'; '.join(kinds)}.\n"


def _not_run(tables: Sequence[Table], rows: Mapping[str, dict]) -> str:
    lines = []
    for table in tables:
        missing = [cell.name.partition("/")[2] for cell in table.cells if cell.name not in rows]
        if missing:
            why = f"needs {table.needs}" if table.needs else "no time yet"
            lines.append(
                f"- `{table.name}`, not run: {why}; {len(missing)} of {len(table.cells)}: {', '.join(missing)}"
            )
    return "## Not run\n\n" + ("\n".join(lines) or "Nothing.") + "\n"


def _chosen_otherwise(rows: Mapping[str, dict]) -> str:
    """Where *aligned + chosen repairs* had other repairs to choose from than there are now."""
    found = Counter(name.partition("/")[0] for name, row in rows.items() if row.get("repairs") != list(AUTOMATIC))
    cells = ", ".join(f"{number} of `{table}`" for table, number in found.items())
    text = f"*aligned + chosen repairs* had another set to choose from than {', '.join(AUTOMATIC)} in {cells}."
    return f"## Earlier repairs\n\n{text}\n" if found else ""


def main() -> None:
    """Write all files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", type=Path, default=GRID, help="the file of cells: grid.yaml, or scale.yaml beside it")
    parser.add_argument("--out", type=Path, default=RUNS, help="the folder that they go to")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / ("paper" if options.grid.stem == "grid" else f"paper-{options.grid.stem}")
    tables = load_grid(options.grid)
    rows = load_rows(tables, RUNS, file.with_suffix(".jsonl"))
    pictures = draw(tables, rows, options.out)
    text = render(introduction(options.grid), tables, rows, pictures)
    file.with_suffix(".md").write_text(text, encoding="utf-8")
    lines = (json.dumps(row, separators=(",", ":")) + "\n" for row in rows.values())
    file.with_suffix(".jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
