"""Comparing two models that should compute the same."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hf_moe_lmc.adapters import MoeLayerSpec, alignable_layers
from hf_moe_lmc.errors import BadInputError, IncompatiblePairError
from hf_moe_lmc.progress import Progress
from hf_moe_lmc.short_help import ShortHelp
from hf_moe_lmc.workers import threads_for

from .block_comparison import BlockComparison, row_differences
from .expert_probe import experts_difference
from .inputs import random_batches

Batches = Sequence[Mapping[str, Tensor]]

# Measured on random rewrites of all families with weights of order 1: blocks up to 5e-7 in both dtypes (routers compute
# in float32 even in a float64 model), outputs, through which that grows layer by layer, up to 1e-4 and 2e-5.
BLOCK_TOLERANCE = 1e-5
OUTPUT_TOLERANCES = {torch.float64: 1e-4, torch.float32: 1e-3}


@dataclass(frozen=True)
class OutputDifference:
    """Difference of the logits: `max |after - before| / max |before|` at each position, that of a token or an image.

    Rounding may decide a near tie of a router anew; then a few positions differ by far more than rounding.

    Args:
        median: over all positions.
        largest: the worst of all positions.
    """

    median: float
    largest: float


@dataclass(frozen=True)
class LayerVerification:
    """One Mixture-of-Experts layer, or a dense one among them, both versions fed with what `before` feeds it.

    Args:
        name: module name of the block.
        difference: `max |after(x) - before(x)| / max |before(x)|` of the block's outputs, the worst of all batches.
        experts_difference: relative difference of the experts by weight, reached or not, together with their router
            rows, up to their order and that of their units (`experts_difference`).
        routing_agreement: share of (token, expert) choices that one renumbering of the experts explains; None without
            router.
        experts_reached: number of experts that at least one token chose; None without router.
        num_experts: E.
    """

    name: str
    difference: float
    experts_difference: float
    routing_agreement: float | None
    experts_reached: int | None
    num_experts: int


@dataclass(frozen=True)
class Verification(metaclass=ShortHelp):
    """The differences of two models, and whether they count as rounding.

    Args:
        outputs: kind of input -> difference of the logits over all batches.
        layers: the Mixture-of-Experts layers and the dense ones among them, in module order.
        changed_tensors: names of tensors outside those layers that are not the same bit for bit.
        output_tolerance, block_tolerance: the largest differences that count as rounding.
    """

    outputs: dict[str, OutputDifference]
    layers: tuple[LayerVerification, ...]
    changed_tensors: tuple[str, ...]
    output_tolerance: float
    block_tolerance: float = BLOCK_TOLERANCE

    @property
    def equal(self) -> bool:
        """Whether nothing but the layers has changed, and they, and typical outputs, differ by rounding only."""
        return (
            not self.changed_tensors
            and all(output.median <= self.output_tolerance for output in self.outputs.values())
            and all(max(layer.difference, layer.experts_difference) <= self.block_tolerance for layer in self.layers)
        )


@torch.no_grad()
def verify(before: nn.Module, after: nn.Module, batches: Mapping[str, Batches] | None = None) -> Verification:
    """Whether `after`, a rewrite of `before`, computes the same.

    Args:
        before, after: models of Transformers or others, of one class, on one device, both float32 or both float64;
            float64 needs `set_experts_implementation("eager")` on a CPU. They are put in evaluation mode.
        batches: kind of input -> keyword arguments of the models; None draws random ones (`random_batches`), for a
            model of Transformers.

    Raises:
        IncompatiblePairError: the models differ in class, dtype, or the shape of a tensor.
        BadInputError: a dtype without tolerance, inputs that cannot be made, or a layer that no input reaches.
        UnsupportedArchitectureError: as `alignable_layers`.
    """
    specs = _check_pair(before, after)
    if (dtype := _dtype(before)) not in OUTPUT_TOLERANCES:
        raise BadInputError(f"models are compared in float32 or float64, not in {dtype}; convert them first")
    before.eval()
    after.eval()
    kinds = {"random": random_batches(before)} if batches is None else batches
    with threads_for(sum(tensor.numel() for tensor in before.parameters())), ExitStack() as stack:
        blocks = [stack.enter_context(BlockComparison(spec, before, after)) for spec in specs]
        outputs = {kind: _output_difference(before, after, Progress(of, desc=kind)) for kind, of in kinds.items()}
    for block in blocks:
        if not block.was_run:
            raise BadInputError(f"layer {block.spec.name}: no input reaches it; give batches that do")
    a, b = before.state_dict(), after.state_dict()
    layers = tuple(
        LayerVerification(
            name=block.spec.name,
            difference=block.difference,
            experts_difference=experts_difference(block.spec.read(a), block.spec.read(b)),
            routing_agreement=block.agreement,
            experts_reached=block.experts_reached,
            num_experts=block.spec.num_experts,
        )
        for block in blocks
    )
    return Verification(outputs, layers, _changed_outside(specs, a, b), OUTPUT_TOLERANCES[dtype])


def _dtype(model: nn.Module) -> torch.dtype:
    return next(tensor.dtype for tensor in model.parameters() if tensor.is_floating_point())


def _check_pair(before: nn.Module, after: nn.Module) -> tuple[MoeLayerSpec, ...]:
    if type(before) is not type(after):
        raise IncompatiblePairError(
            f"before is a {type(before).__name__}, after a {type(after).__name__}; give two models of one class"
        )
    if _dtype(before) != _dtype(after):
        raise IncompatiblePairError(f"before is {_dtype(before)}, after {_dtype(after)}; convert one of them")
    shapes, others = ({name: tuple(x.shape) for name, x in model.state_dict().items()} for model in (before, after))
    for name in sorted(shapes.keys() | others.keys()):
        if shapes.get(name) != others.get(name):
            raise IncompatiblePairError(
                f"tensor {name} has the shape {shapes.get(name)} before and {others.get(name)} after; "
                "give two models of one size"
            )
    return alignable_layers(before)


def _changed_outside(
    specs: tuple[MoeLayerSpec, ...], before: Mapping[str, Tensor], after: Mapping[str, Tensor]
) -> tuple[str, ...]:
    inside = {name for spec in specs for name in spec.tensor_names}
    return tuple(name for name in before if name not in inside and not torch.equal(before[name], after[name]))


def _output_difference(
    before: nn.Module, after: nn.Module, batches: Iterable[Mapping[str, Tensor]]
) -> OutputDifference:
    """Over all positions of all `batches`, keyword arguments of the models."""
    positions = torch.cat([row_differences(_output(before, batch), _output(after, batch)) for batch in batches])
    return OutputDifference(float(positions.median()), float(positions.max()))


def _output(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """The logits, else the first output; the last of a backbone's feature maps."""
    no_cache = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    result = model(**batch, **no_cache)
    if isinstance(result, Tensor):
        return result
    output = result["logits"] if "logits" in result else result[0]
    return output if isinstance(output, Tensor) else output[-1]
