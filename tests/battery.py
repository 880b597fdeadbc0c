"""What is checked of every family; `python -m tests.battery` writes the result into the README's table."""

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from hf_moe_lmc import align
from hf_moe_lmc.adapters import MoeLayerSpec, moe_layers
from hf_moe_lmc.alignment import apply_symmetries
from hf_moe_lmc.errors import UnsupportedArchitectureError
from hf_moe_lmc.symmetry import MoeSymmetry, Permutation, SignedPermutation
from tests import families
from tests.layers import derangement

README = Path(__file__).parents[1] / "README.md"
Tensors = dict[str, Tensor]

# Transformers computes routers in float32 even for a float64 model.
PRESERVED = 1e-5
CHANGED = 1e-3


@dataclass(frozen=True)
class FamilyResult:
    """What was measured of one family, every figure the largest change of an output relative to the largest output.

    Args:
        family: its name in `tests/families.py`.
        spec: one of its Mixture-of-Experts layers.
        preserved: name of a symmetry -> change under it; all must be small.
        changed: name of a control -> change under it; all must be large.
        recovered: expert order -> whether scrambled weights came back bit for bit in float32.
    """

    family: str
    spec: MoeLayerSpec
    preserved: dict[str, float]
    changed: dict[str, float]
    recovered: dict[str, bool]

    @property
    def failures(self) -> list[str]:
        """What does not hold, in words."""
        return [
            *(f"{name} changes the output by {x:.0e}" for name, x in self.preserved.items() if not x < PRESERVED),
            *(f"control: {name} changes it by only {x:.0e}" for name, x in self.changed.items() if not x > CHANGED),
            *(f"{order} does not recover scrambled weights" for order, back in self.recovered.items() if not back),
        ]


def check(family: str, experts: int = 12) -> FamilyResult:
    """All checks of one family, on a tiny real model with weights of order 1.

    Raises:
        UnsupportedArchitectureError: the family is refused.
    """
    model = families.build(family, experts=experts, dtype=torch.float64)
    specs = moe_layers(model)
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = families.outputs(model, family)

    def change(moved: Tensors) -> float:
        model.load_state_dict(moved)
        return float((families.outputs(model, family) - before).abs().max() / before.abs().max())

    scrambled = apply_symmetries(tensors, specs, _derangements(specs, tensors))
    preserved = {"a random symmetry": change(scrambled)}
    changed = {"experts without their router": change(scrambled | _router_tensors(specs, tensors))}
    if any(spec.group.router_translation for spec in specs):
        preserved["a router translation"] = change(_translated(specs, tensors))
    else:
        changed["a router translation"] = change(_translated(specs, tensors))
    if biases := _router_tensors(specs, tensors, "selection_bias"):
        changed["selection biases left behind"] = change(scrambled | biases)
        if all(spec.group.selection_bias_constant for spec in specs):
            preserved["a selection bias constant"] = change(tensors | {name: b + 2.0 for name, b in biases.items()})
    if any(spec.group.expert_groups > 1 for spec in specs):
        changed["an order that breaks groups"] = change(_moved(specs, tensors, _breaks_groups))
    if any(spec.experts.is_gated and not spec.group.unit_signs for spec in specs):
        changed["signs where none is free"] = change(_moved(specs, tensors, _flips))
    return FamilyResult(family, specs[-1], preserved, changed, _recovered(family, experts))


def _derangements(specs: tuple[MoeLayerSpec, ...], tensors: Tensors) -> dict[str, MoeSymmetry]:
    return {spec.name: derangement(spec.read(tensors), seed) for seed, spec in enumerate(specs)}


def _router_tensors(specs: tuple[MoeLayerSpec, ...], tensors: Tensors, only: str | None = None) -> Tensors:
    names = [name for spec in specs for field, name in spec.router.tensors if only in (None, field)]
    return {name: tensors[name] for name in names}


def _translated(specs: tuple[MoeLayerSpec, ...], tensors: Tensors) -> Tensors:
    """One vector added to the router rows of all routed experts."""
    generator, moved = torch.Generator().manual_seed(3), dict(tensors)
    for spec in specs:
        name = dict(spec.router.tensors)["weight"]
        moved[name] = tensors[name].clone()
        moved[name][: spec.router.num_experts] += torch.randn(tensors[name].shape[1], generator=generator).to(
            moved[name]
        )
    return moved


def _moved(
    specs: tuple[MoeLayerSpec, ...], tensors: Tensors, move: Callable[[MoeSymmetry, int], MoeSymmetry]
) -> Tensors:
    identities = {spec.name: MoeSymmetry.identity(*spec.read(tensors).symmetry_shape) for spec in specs}
    groups = {spec.name: spec.group.expert_groups for spec in specs}
    return apply_symmetries(tensors, specs, {name: move(g, groups[name]) for name, g in identities.items()})


def _breaks_groups(identity: MoeSymmetry, groups: int) -> MoeSymmetry:
    """Deals the experts out to the groups in turn."""
    order = Permutation(torch.arange(identity.experts.size).reshape(-1, groups).T.flatten())
    return MoeSymmetry(order, identity.units, identity.shared_units)


def _flips(identity: MoeSymmetry, groups: int) -> MoeSymmetry:
    units = identity.units
    return MoeSymmetry(identity.experts, SignedPermutation(units.permutation, -units.signs), identity.shared_units)


def _recovered(family: str, experts: int) -> dict[str, bool]:
    reference, other = (families.build(family, experts=experts, dtype=torch.float32) for _ in range(2))
    tensors, specs = reference.state_dict(), moe_layers(reference)
    other.load_state_dict(apply_symmetries(tensors, specs, _derangements(specs, tensors)))
    scrambled = other.state_dict()
    found = {order: align(reference, other, order).symmetries for order in ("gate", "gram", "joint")}
    back = {order: apply_symmetries(scrambled, specs, symmetries) for order, symmetries in found.items()}
    return {order: all(torch.equal(moved[name], tensors[name]) for name in tensors) for order, moved in back.items()}


def row(family: str) -> str:
    """One row of the README's table."""
    try:
        result = check(family)
    except UnsupportedArchitectureError as refusal:
        reason = str(refusal).partition(": ")[2].removeprefix("a ")
        return f"| {family} | | | | refused: {reason} |"
    spec, group = result.spec, result.spec.group
    experts = spec.experts
    layout = ["gated" if experts.is_gated else "MLP", type(experts).__name__.removesuffix("Experts").lower()]
    layout += [name for name in ("transposed", "interleaved") if getattr(experts, f"is_{name}", False)]
    layout += ["biases"] if getattr(experts, "has_bias", False) else []
    layout += ["shared"] if spec.shared_experts else []
    router = ["softmax" if group.router_translation else "not shift-invariant"]
    router += [field.replace("_", " ") for field, _ in spec.router.tensors if field != "weight"]
    symmetries = ["experts" if group.expert_groups == 1 else "experts in groups", "units"]
    symmetries += ["signs"] if group.unit_signs else []
    symmetries += ["translation"] if group.router_translation else []
    status = "; ".join(result.failures) or f"holds ({max(result.preserved.values()):.0e})"
    return f"| {family} | {', '.join(layout)} | {', '.join(router)} | {', '.join(symmetries)} | {status} |"


def main() -> None:
    """Check every family, and renew the table between the README's markers."""
    rows = [row(family) for family in families.available()]
    held = sum("| holds" in line for line in rows)
    head = [
        f"Transformers {version('transformers')}: all checks hold for {held} of {len(rows)}.",
        "",
        "| family | experts | router | symmetries | all checks |",
        "| --- | --- | --- | --- | --- |",
    ]
    table = "\n".join([*head, *rows])
    text = README.read_text(encoding="utf-8")
    text = re.sub(r"(?<=<!-- families -->\n).*(?=\n<!-- /families -->)", lambda _: table, text, flags=re.DOTALL)
    README.write_text(text, encoding="utf-8")
    sys.stdout.write(table + "\n")


if __name__ == "__main__":
    main()
