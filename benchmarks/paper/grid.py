"""The grid: a YAML file -> tables of cells."""

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import product
from pathlib import Path

import yaml

from .cells import Cell

GRID = Path(__file__).with_name("grid.yaml")


@dataclass(frozen=True)
class Table:
    """A table of the report: its kind of columns, its title, and a reason why it may not be run everywhere."""

    name: str
    shape: str
    title: str
    needs: str
    cells: tuple[Cell, ...]


def load_grid(path: Path = GRID) -> list[Table]:
    """The tables of a grid.

    A table is a set of settings over those of its model. A list of values is an axis, and all combinations are cells;
    under `vary`, a list changes one setting at a time from the table's base cell.
    """
    grid = yaml.safe_load(path.read_text(encoding="utf-8"))
    return [_table(name, dict(table), grid) for name, table in grid["tables"].items()]


def introduction(path: Path = GRID) -> str:
    """The text that stands before the tables of a grid."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))["introduction"]


def quick_cells(path: Path = GRID) -> list[Cell]:
    """The cells that `quick` of the grid names, in its order; `*` stands for anything."""
    patterns = yaml.safe_load(path.read_text(encoding="utf-8"))["quick"]
    return chosen([cell for table in load_grid(path) for cell in table.cells], patterns)


def chosen(cells: list[Cell], patterns: list[str]) -> list[Cell]:
    """The cells whose names match a pattern, in the order of the patterns, each once."""
    found = {cell.name: cell for pattern in patterns for cell in cells if fnmatch(cell.name, pattern)}
    return list(found.values())


def _table(name: str, table: dict, grid: dict) -> Table:
    shape, title, needs = table.pop("shape"), table.pop("title"), table.pop("needs", "")
    vary = table.pop("vary", {})
    cells = []
    for label, settings in (*_axes(table), *_one_at_a_time(table, vary)):
        full = grid["settings"]["common"] | grid["settings"][settings["model"]] | settings
        cells.append(Cell(**full | {"name": f"{name}/{label}", "seeds": tuple(full["seeds"])}))
    return Table(name, shape, title, needs, tuple(cells))


def _axes(table: dict) -> Iterator[tuple[str, dict]]:
    axes = {key: values for key, values in table.items() if isinstance(values, list) and key != "seeds"}
    for values in product(*axes.values()):
        labels = [
            value if isinstance(value, str) else f"{key}={value}" for key, value in zip(axes, values, strict=True)
        ]
        yield "-".join(labels) or "base", table | dict(zip(axes, values, strict=True))


def _one_at_a_time(table: dict, vary: dict) -> Iterator[tuple[str, dict]]:
    for key, values in vary.items():
        for value in values:
            yield f"{key}={value}", table | {key: value}
