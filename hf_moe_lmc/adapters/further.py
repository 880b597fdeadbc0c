"""Mixture-of-Experts layers among tensors that Transformers ignores, told by their likeness to those of the model."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import replace
from os.path import commonprefix

from .detection import LINEARS
from .layouts import DenseMlp, ExpertLayout, HeadedMlp, ListedExperts
from .spec import MoeLayerSpec

Shapes = Mapping[str, tuple[int, ...]]


def further_layers(
    layers: Sequence[MoeLayerSpec], keys: Mapping[str, Sequence[str]], shapes: Shapes, ignored: Sequence[str]
) -> tuple[MoeLayerSpec, ...]:
    """The layers with a router among tensors that are no part of the model, as in a layer that predicts further tokens.

    One is a block that has every tensor of the block of one of `layers`, under the same keys but for their beginning,
    in the same shapes, and no other. It is taken to compute the same, and so has its symmetries. What is not read as
    experts here is left out.

    Args:
        layers: of the model.
        keys: module name -> the keys of the checkpoint that make up the tensor.
        shapes: key -> shape.
        ignored: keys of tensors that are no part of the model.

    Returns:
        the layers, whose names, and those of their tensors, are keys.
    """
    found, ordered = dict[str, MoeLayerSpec](), sorted(shapes)
    for spec in layers if ignored else ():
        if not spec.router or spec.kept_rows or not keys.keys() >= {*spec.tensor_names}:
            continue
        place = _place([key for name in spec.tensor_names for key in keys[name]])
        block = _below(place, ordered, shapes)
        end = min(block, key=len)
        for other in (key.removesuffix(end) for key in ignored if key.endswith(end)):
            if other not in found and _below(other, ordered, shapes) == block:
                own = {name: [other + key.removeprefix(place) for key in keys[name]] for name in spec.tensor_names}
                if further := _renamed(spec, other, own):
                    found[other] = further
    return tuple(found[name] for name in sorted(found))


def _renamed(spec: MoeLayerSpec, name: str, keys: Mapping[str, Sequence[str]]) -> MoeLayerSpec | None:
    """A layer like `spec` in other tensors: module name in `spec` -> keys; None if they cannot be read as its parts."""
    assert spec.router
    router = tuple((field, key) for field, tensor in spec.router.tensors for key in keys[tensor])
    stored = [[key for tensor in part.tensor_names for key in keys[tensor]] for part in spec.parts]
    layouts = [_layout(part, own, spec.num_experts) for part, own in zip(spec.parts, stored, strict=True)]
    experts, *shared = [layout for layout in layouts if layout] or [None]
    if not experts or None in layouts or len(router) > len(spec.router.tensors):
        return None
    return replace(
        spec,
        name=name,
        router=replace(spec.router, tensors=router),
        experts=experts,
        shared_experts=next(iter(shared), None),
    )


def _layout(like: ExpertLayout, keys: Sequence[str], num_experts: int) -> ExpertLayout | None:
    """The layout of experts stored under `keys`: that of `like`, or a list of MLPs; None if it is another."""
    name = _place(keys)
    known: list[ExpertLayout] = [] if isinstance(like, HeadedMlp | ListedExperts) else [replace(like, name=name)]
    for gate, up, down in LINEARS:
        one = DenseMlp(name, up, down, gate, has_bias=False)
        several = tuple(replace(one, name=f"{name}.{expert}") for expert in range(num_experts))
        known.append(one if isinstance(like, DenseMlp) else ListedExperts(name, several))
    fit = (own for own in known if sorted(own.tensor_names) == sorted(keys) and own.is_gated == like.is_gated)
    return next(fit, None)


def _place(keys: Sequence[str]) -> str:
    """The longest module name that all of them are below."""
    return commonprefix(keys).rpartition(".")[0]  # noqa: RUF071 (names are no paths)


def _below(place: str, ordered: Sequence[str], shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """The keys below a module name, without it -> their shapes."""
    first, last = (bisect_left(ordered, f"{place}{end}") for end in "./")
    return {key.removeprefix(place): shapes[key] for key in ordered[first:last]}
