"""The grid: a YAML file -> cells, each a full set of settings."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from fnmatch import fnmatch
from itertools import combinations, product
from pathlib import Path
from typing import Literal

import yaml

GRID = Path(__file__).with_name("grid.yaml")


@dataclass(frozen=True)
class Endpoint:
    """One fine-tuned copy: its seed, and the source that it was trained on."""

    seed: int
    source: str

    def __str__(self) -> str:
        return f"{self.source}, seed {self.seed}"


@dataclass(frozen=True)
class Cell:
    """One configuration: what is trained, and how its pairs of endpoints are compared.

    Args:
        name: its table, and its place on every axis of it.
        model: "vit", "gpt2" (the paper's variants), "mixtral" or "qwen2_moe".
        data: see `benchmarks.paper.data.load`; of "a+b", the backbone learns both, and copies of a meet copies of b.
        variant: "dense", "sparse" or "shared"; of the paper's variants only.
        place: the layers whose FFN is replaced: "first", "last", "all" or a number, the first layer being 1.
        experts: n; two of them answer a token, or all in the dense variant.
        backbone: "trainable" or "frozen" while the copies are trained.
        start: experts are drawn anew in every copy ("fresh"), are noisy copies of one dense FFN ("upcycled"), or those
            of the backbone itself ("checkpoint").
        depth, hidden, heads, ffn, expert_width: layers, H, heads, units of the dense FFN, units F of an expert.
        pretrain_steps, pretrain_lr, pretrain_decay: of the one backbone that all copies start from.
        steps, batch, lr, moe_lr, weight_decay: of the copies; `moe_lr` is that of the replaced layers.
        init_scale: factor on the fresh experts' weights.
        balance: weight of the load-balancing loss.
        seeds: one copy each; all pairs are compared.
        points: evaluated points of every path.
        all_orders: whether every expert order is evaluated too.
        temperature: whether the barrier of temperature-calibrated losses is measured too.
    """

    name: str
    model: Literal["vit", "gpt2", "mixtral", "qwen2_moe"]
    data: str
    variant: Literal["dense", "sparse", "shared"]
    place: str | int
    experts: int
    backbone: Literal["trainable", "frozen"]
    start: Literal["fresh", "upcycled", "checkpoint"]
    depth: int
    hidden: int
    heads: int
    ffn: int
    expert_width: int
    pretrain_steps: int
    pretrain_lr: float
    pretrain_decay: float
    steps: int
    batch: int
    lr: float
    moe_lr: float
    weight_decay: float
    init_scale: float
    balance: float
    seeds: tuple[int, ...]
    points: int
    all_orders: bool
    temperature: bool

    def __post_init__(self) -> None:
        paper = self.model in ("vit", "gpt2")
        if (paper and self.start != "fresh") or (not paper and self.variant != "sparse"):
            raise ValueError(f"{self.name}: no {self.model} is {self.variant} and starts {self.start}")

    @property
    def table(self) -> str:
        """The table that the cell belongs to."""
        return self.name.partition("/")[0]

    @property
    def layers(self) -> list[int]:
        """Indices of the replaced layers."""
        named = {"first": [0], "last": [self.depth - 1], "all": list(range(self.depth))}
        return [self.place - 1] if isinstance(self.place, int) else named[self.place]

    @property
    def pairs(self) -> list[tuple[Endpoint, Endpoint]]:
        """All pairs of seeds; where two sources meet, one pair per seed."""
        sources = self.data.split("+")
        if len(sources) == 2:
            return [(Endpoint(seed, sources[0]), Endpoint(seed, sources[1])) for seed in self.seeds]
        return list(combinations([Endpoint(seed, self.data) for seed in self.seeds], 2))

    @property
    def backbone_key(self) -> str:
        """The same for all cells that start from the same trained backbone."""
        return _key(self, [*BACKBONE_FIELDS, *(EXPERT_FIELDS if self.pretrains_experts else ())])

    @property
    def pretrains_experts(self) -> bool:
        """Whether the backbone has Mixtures of Experts, as every Mixtral has, rather than dense FFNs."""
        return self.model in ("mixtral", "qwen2_moe") and self.start != "upcycled"

    def endpoint_key(self, endpoint: Endpoint) -> str:
        """The same for all cells that hold the same trained copy."""
        ignored = {"name", "seeds", "points", "all_orders", "temperature", "place"}
        wanted = [field.name for field in fields(self) if field.name not in ignored]
        return _key(self, wanted, layers=self.layers, seed=endpoint.seed, source=endpoint.source)


BACKBONE_FIELDS = (
    *("model", "data", "depth", "hidden", "heads", "ffn", "batch"),
    *("pretrain_steps", "pretrain_lr", "pretrain_decay"),
)
EXPERT_FIELDS = ("experts", "expert_width")


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


def _key(cell: Cell, names: list[str], **further: object) -> str:
    settings = {name: value for name, value in asdict(cell).items() if name in names} | further
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
