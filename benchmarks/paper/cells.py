"""A cell of the grid: a full set of settings."""

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from itertools import combinations
from typing import Literal

SWIGLU = ("mixtral", "qwen2_moe", "smollm2")
ACTIVE = 2  # experts that a token is routed to
UPCYCLING_NOISE = 0.1  # standard deviation, in units of that of the weights (arXiv:2212.05055 uses none)
BACKBONE_FIELDS = (
    *("model", "data", "depth", "hidden", "heads", "ffn", "batch"),
    *("pretrain_steps", "pretrain_lr", "pretrain_decay"),
)


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
        model: "vit", "gpt2" (the paper's variants), "mixtral", "qwen2_moe", or the pretrained "smollm2".
        data: see `benchmarks.paper.data.load`; of "a+b", the backbone learns both, and copies of a meet copies of b.
        variant: "dense", "sparse" or "shared"; of the paper's variants only.
        place: the layers whose FFN is replaced: "first", "last", "all" or a number, the first layer being 1.
        experts: n; a token is routed to two of them, or to all in the dense variant.
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
        all_orders: whether every expert order is evaluated too, where there is a barrier to lower.
        temperature: whether temperature-calibrated losses are measured too.
    """

    name: str
    model: Literal["vit", "gpt2", "mixtral", "qwen2_moe", "smollm2"]
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
        if (self.start != "fresh" and self.model not in SWIGLU) or (self.variant != "sparse" and self.model in SWIGLU):
            raise ValueError(f"{self.name}: no {self.model} is {self.variant} and starts {self.start}")

    @property
    def layers(self) -> list[int]:
        """Indices of the replaced layers."""
        named = {"first": [0], "last": [self.depth - 1], "all": list(range(self.depth))}
        return [self.place - 1] if isinstance(self.place, int) else named[self.place]

    @property
    def is_cut(self) -> bool:
        """Whether the layers in front of the first replaced one are computed once, for they are trained by no copy."""
        return self.backbone == "frozen" and self.model in ("vit", "smollm2") and self.layers[0] > 0

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
        swiglu = ("expert_width",) if self.model in SWIGLU else ()
        return _key(self, [*BACKBONE_FIELDS, *swiglu, *(("experts",) if self.pretrains_experts else ())])

    @property
    def pretrains_experts(self) -> bool:
        """Whether the backbone has Mixtures of Experts, as every Mixtral has, rather than dense FFNs."""
        return self.model in SWIGLU and self.start != "upcycled"

    def endpoint_key(self, endpoint: Endpoint) -> str:
        """The same for all cells that hold the same trained copy."""
        ignored = {"name", "seeds", "points", "all_orders", "temperature", "place"}
        wanted = [field.name for field in fields(self) if field.name not in ignored]
        return _key(self, wanted, layers=self.layers, seed=endpoint.seed, source=endpoint.source)


def _key(cell: Cell, names: list[str], **further: object) -> str:
    settings = {name: value for name, value in asdict(cell).items() if name in names} | further
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
