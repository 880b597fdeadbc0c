"""Two whole models, layer by layer."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_moe_lmc.adapters import MoeLayerSpec
from hf_moe_lmc.adapters.detection import LINEARS
from hf_moe_lmc.adapters.layouts import DenseMlp
from hf_moe_lmc.alignment import OpenedModel, Pretrained, open_model
from hf_moe_lmc.alignment.config_differences import config_differences
from hf_moe_lmc.alignment.live_weights import LiveWeights
from hf_moe_lmc.alignment.opened_model import Model
from hf_moe_lmc.checkpoints import Checkpoint, HubOptions, find_source, meta_model, read_config, tied_names
from hf_moe_lmc.errors import UnsupportedArchitectureError
from hf_moe_lmc.moe import MoeLayer, SymmetryGroup
from hf_moe_lmc.progress import Progress
from hf_moe_lmc.symmetry import Permutation
from hf_moe_lmc.workers import one_thread_per_operation

from .comparison import Comparison
from .correspondence import Correspondence
from .experts import ExpertComparison, compare_experts
from .layers import LayerComparison, compare_layers, new_layer
from .routers import RouterComparison, all_rows
from .sentences import Evidence, describe
from .tensors import TensorComparison, compare_tensors

_SHOWN_BY_WEIGHTS = (
    *("expert", "hidden_layers", "num_layers", "layer_types", "n_layer", "moe_layers", "architectures", "shared"),
    "tie_word_embeddings",
)


def compare(a: Model, b: Model, a_options: HubOptions | None = None, b_options: HubOptions | None = None) -> Comparison:
    """What became of every expert, router and tensor: model `b` in terms of model `a`.

    Neither is changed. Checkpoints are read layer by layer, so they may be larger than memory. The models may differ in
    numbers of experts and layers, dtype, sharding and layout, and in class where their layers stand at the same places.

    Args:
        a, b: live models, folders, or repositories on the Hub (`org/model@revision`).
        a_options, b_options: revision, subfolder, token, cache_dir, local_files_only.

    Raises:
        BadInputError: a checkpoint is damaged or incomplete.
        HubError: the Hub does not give it.
    """
    return compare_opened(_open(a, a_options), _open(b, b_options))


@one_thread_per_operation()
def compare_opened(a: OpenedModel, b: OpenedModel) -> Comparison:
    """As `compare`, for models that are open already."""
    work = _Work(a, b, Correspondence.of(a, b))
    with Progress(
        total=sum(a.sizes.values()) + sum(b.sizes.values()),
        desc="comparing",
        unit="B",
        unit_scale=True,
        unit_divisor=1000,
    ) as bar:
        work.run(bar)
    for side in (a, b):
        side.check_unchanged()
    return work.result()


@dataclass
class _Work:
    """A comparison under way."""

    a: OpenedModel
    b: OpenedModel
    correspondence: Correspondence
    layers: list[LayerComparison] = field(default_factory=list)
    tensors: list[TensorComparison] = field(default_factory=list)
    dense: list[ExpertComparison] = field(default_factory=list)
    seen_in_a: set[str] = field(default_factory=set)

    def run(self, bar: Progress) -> None:
        seen_in_b: set[str] = set()
        own = {spec.name: spec for spec in self.a.layers}
        for spec in self.b.layers:
            source = self._source(spec, own)
            if source is None:
                if spec.router:
                    self.layers.append(new_layer(spec))
                continue
            tensors_a, tensors_b = self.a.read(source.tensor_names), self.b.read(spec.tensor_names)
            self._layer(source, tensors_a, spec, tensors_b)
            self.seen_in_a |= set(source.tensor_names) - _without_counterpart(source, spec)
            seen_in_b |= set(spec.tensor_names)
            bar.update(self._nbytes(self.a, source) + self._nbytes(self.b, spec))
            bar.set_postfix_str(f"{len(self.layers)} of {len(self.b.layers)} layers", refresh=False)
        for name in self.b.sizes:
            if name not in seen_in_b:
                self._tensor(name, bar)
        for name in [name for name in self.a.sizes if name not in self.seen_in_a]:
            held = self._held(self.b, name)
            if held is None or held == name:  # by its own name B has another layer's
                self.tensors.append(TensorComparison(name, "missing", missing_in="B"))
            else:
                self._add(compare_tensors(name, self.a.read([name])[name], self.b.read([held])[held]))

    def _source(self, spec: MoeLayerSpec, own: Mapping[str, MoeLayerSpec]) -> MoeLayerSpec | None:
        """The layer of A at the place of one of B: of that name or block, or else, of as many, of that number."""
        name = self.correspondence.name_in_a(spec.name)
        if name in own:
            return own[name]
        block = [layer for layer in own.values() if name and layer.name.rpartition(".")[0] == name.rpartition(".")[0]]
        if len(block) == 1:
            return block[0]
        if name is not None and len(self.a.layers) == len(self.b.layers):
            return self.a.layers[self.b.layers.index(spec)]
        return None

    def _layer(
        self,
        spec_a: MoeLayerSpec,
        tensors_a: Mapping[str, Tensor],
        spec_b: MoeLayerSpec,
        tensors_b: Mapping[str, Tensor],
    ) -> None:
        if spec_a.router is None and spec_b.router is None:
            self._dense(spec_b, spec_a.read(tensors_a), spec_b.read(tensors_b))
            return
        layer, router = compare_layers(spec_a, tensors_a, spec_b, tensors_b)
        self.layers.append(layer)
        if spec_a.router is None or spec_b.router is None:
            return
        names, sides = dict(spec_b.router.tensors), ((spec_a.router, tensors_a), (spec_b.router, tensors_b))
        a, b = (all_rows(router.read(tensors), router.read_further(tensors)) for router, tensors in sides)
        self._router_tensors(names, router, a.tensors(), b.tensors())
        if a.expert_table is not None and b.expert_table is not None:
            self._add(_compare_tables(names["expert_table"], a.expert_table, b.expert_table, router), is_router=True)

    def _dense(self, spec: MoeLayerSpec, a: MoeLayer, b: MoeLayer) -> None:
        """A dense MLP among the layers: its units may stand in another order, which its tensors then say."""
        shapes = [{name: tensor.shape for name, tensor in layer.experts.tensors().items()} for layer in (a, b)]
        if shapes[0] != shapes[1]:
            self.tensors += [TensorComparison(name, "shape") for name in spec.tensor_names]
            return
        expert = compare_experts(a.experts, b.experts, b.group)[0]
        self.dense.append(expert)
        kind = "moved" if expert.units == "reordered" and expert.kind in ("identical", "changed") else expert.kind
        related = expert.source is not None
        self.tensors += [
            TensorComparison(name, kind, expert.change, is_matrix=True, is_related=related)
            for name in spec.tensor_names
        ]

    def _router_tensors(
        self, names: Mapping[str, str], router: RouterComparison, a: Mapping[str, Tensor], b: Mapping[str, Tensor]
    ) -> None:
        order = list(router.rows)
        for own, tensor in b.items():
            if own not in a:
                self._add(TensorComparison(names[own], "missing", missing_in="A"), is_router=True)
                continue
            plain = compare_tensors(names[own], a[own], tensor)
            if order == list(range(len(a[own]))) or max(order) >= len(a[own]):
                self._add(plain, is_router=True)
                continue
            moved = compare_tensors(names[own], a[own][order], tensor)
            kind, as_it_was = moved.kind, plain.kind == "identical"
            if kind in ("identical", "rounded", "changed") and not as_it_was:
                kind = "moved"
            if kind == "unrelated" and router.verdict != "unrelated":  # some of its rows
                kind = "changed"
            self._add(replace(moved, kind=kind, stayed=as_it_was and kind != "identical"), is_router=True)

    def _tensor(self, name: str, bar: Progress) -> None:
        source = self.correspondence.name_in_a(name)
        held = None if source is None else self._held(self.a, source)
        if held is None:
            self._add(TensorComparison(name, "missing", missing_in="A"))
            bar.update(self.b.sizes[name])
            return
        if held == source:
            self.seen_in_a.add(held)
        a, b = self.a.read([held])[held], self.b.read([name])[name]
        self._add(compare_tensors(name, a, b))
        bar.update(a.nbytes + b.nbytes)

    def _add(self, tensor: TensorComparison, is_router: bool = False) -> None:
        self.tensors.append(replace(tensor, is_router=is_router))

    @staticmethod
    def _held(side: OpenedModel, name: str) -> str | None:
        """The name under which a model holds a tensor: its own, or that of one that it is tied to."""
        if name in side.sizes:
            return name
        tied = tied_names(side.model).get(name, set()) if isinstance(side.model, PreTrainedModel) else set()
        return min(tied & side.sizes.keys(), default=None)

    @staticmethod
    def _nbytes(side: OpenedModel, spec: MoeLayerSpec) -> int:
        return sum(side.sizes[name] for name in spec.tensor_names if name in side.sizes)

    def result(self) -> Comparison:
        """The comparison, once all is read."""
        experts = [e for layer in self.layers for e in (*layer.experts, *layer.shared_experts)] + self.dense
        scores = [expert.z for expert in experts if expert.z is not None]
        related = any(e.source is not None for e in experts) or any(tensor.is_related for tensor in self.tensors)
        settings = self._settings()
        same = (
            not settings
            and not self.correspondence.layers
            and all(layer.keeps_function for layer in self.layers)
            and all(_keeps_function(tensor) for tensor in self.tensors)
        )
        evidence = Evidence(
            tuple(self.layers),
            tuple(self.tensors),
            settings,
            layers_told=tuple(self.correspondence.told()),
            told=frozenset(tensor.name for tensor in self.tensors if self._is_of_missing_layer(tensor)),
            same_function=same,
            quantised=self._quantised(),
        )
        return Comparison(
            self.a.name,
            self.b.name,
            describe(evidence),
            evidence.layers,
            evidence.tensors,
            related,
            same,
            sum(scores) / math.sqrt(len(scores)) if scores else None,  # Stouffer
        )

    def _quantised(self) -> Literal["A", "B"] | None:
        a, b = (bool(side.checkpoint and side.checkpoint.is_quantised) for side in (self.a, self.b))
        return None if a == b else "A" if a else "B"

    def _is_of_missing_layer(self, tensor: TensorComparison) -> bool:
        if tensor.missing_in == "A":
            return self.correspondence.name_in_a(tensor.name) is None
        stacks = self.correspondence.layers
        lost = [f"{stack}.{number}." for stack in stacks for number in self.correspondence.missing(stack)]
        return tensor.missing_in == "B" and tensor.name.startswith(tuple(lost))

    def _settings(self) -> tuple[str, ...]:
        """Differences of the configurations that change the function, but for what the weights show."""
        if type(self.a.model) is not type(self.b.model):
            return (f"A is a {type(self.a.model).__name__}, B a {type(self.b.model).__name__}",)
        return tuple(
            difference.text.replace(" in the reference", " in A").replace(" in the other", " in B")
            for difference in config_differences(self.a.model, self.b.model)
            if difference.harmful and not _is_shown(difference.name)
        )


def _without_counterpart(a: MoeLayerSpec, b: MoeLayerSpec) -> set[str]:
    """Names of tensors of a layer of A that the one of B has nothing for: shared experts, biases of the router."""
    shared = set(a.shared_experts.tensor_names) if a.shared_experts and not b.shared_experts else set()
    if a.router is None or b.router is None:
        return shared
    held = dict(b.router.tensors)
    return shared | {name for field, name in a.router.tensors if field not in held}


def _compare_tables(name: str, a: Tensor, b: Tensor, router: RouterComparison) -> TensorComparison:
    """The experts that a table names for every token, by the slots that they moved to."""
    plain = compare_tensors(name, a, b)
    if plain.kind != "identical" and sorted(router.rows) == list(range(len(router.rows))):
        slots = Permutation(torch.tensor(router.rows)).inverse().index
        if len(slots) > int(a.max()) and torch.equal(slots[a.long()], b.long()):
            return TensorComparison(name, "moved")
    return plain


def _is_shown(field_name: str) -> bool:
    return (
        any(part in field_name for part in _SHOWN_BY_WEIGHTS)
        and "per_tok" not in field_name
        and "top" not in field_name
    )


def _keeps_function(tensor: TensorComparison) -> bool:
    if tensor.is_router:  # the layer has judged it
        return True
    return tensor.kind in ("identical", "moved", "rounded") and (tensor.change or 0.0) < 1e-6


def _open(model: Model, options: HubOptions | None = None) -> OpenedModel:
    """As `open_model`, and models without any Mixture of Experts, or with one that is not known: of these the MLPs."""
    try:
        return open_model(model, options)
    except UnsupportedArchitectureError:
        if isinstance(model, nn.Module):
            return OpenedModel(type(model).__name__, model, LiveWeights(model), _dense_layers(model))
        if isinstance(model, Pretrained):
            options, model = cast(HubOptions, {**(options or {}), **model.options}), model.name
        source = find_source(model, options)
        skeleton = meta_model(read_config(source.folder))
        checkpoint = Checkpoint.open(source.folder, skeleton)
        return OpenedModel(source.name, skeleton, checkpoint, _dense_layers(skeleton), source)


def _dense_layers(model: nn.Module) -> tuple[MoeLayerSpec, ...]:
    """Every module with the linears of an MLP and nothing else that has weights, as a layer without router.

    Its class need not be known: nothing is rewritten, and what its units admit is asked of the other model.
    """
    layers = []
    for name, module in model.named_modules():
        linears = {child for child, part in module.named_children() if isinstance(part, nn.Linear)}
        for gate, up, down in LINEARS:
            if linears and linears == {linear for linear in (gate, up, down) if linear}:
                has_bias = module.get_submodule(down).bias is not None
                layout = DenseMlp(name, up, down, gate, has_bias)
                layers.append(MoeLayerSpec(name, None, layout, None, SymmetryGroup(fixed_experts=True)))
    return tuple(layers)
