"""`hf-moe-lmc inspect`."""

import argparse
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arguments import MODEL, add_command, add_hub, hub_options
from .results import CommandResult, text_table

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hf_moe_lmc.adapters import Inspection, LayerInspection

HEAD = ("layers", "E", "F", "H", "K", "groups", "shared", "router", "parameters", "bytes", "symmetries")


def add_parser(commands: "argparse._SubParsersAction[Any]") -> None:
    """The options of `inspect`."""
    inspect = add_command(
        commands,
        "inspect",
        run,
        "show the Mixture-of-Experts layers of a model, from its config.json alone",
        "Show every Mixture-of-Experts layer, and the dense ones among them: E experts of F units, hidden "
        "size H, K experts per token, shared experts, router, size, and the symmetries that leave its function "
        "unchanged. Of weights in a folder, it reads names only.",
    )
    inspect.add_argument("model", metavar="MODEL", help=MODEL)
    add_hub(inspect)


def run(options: argparse.Namespace) -> CommandResult:
    """Print the layers."""
    from hf_moe_lmc.adapters import inspect
    from hf_moe_lmc.alignment import open_skeleton
    from hf_moe_lmc.checkpoints import quantisation

    model = open_skeleton(options.model, hub_options(options))
    inspection, method = inspect(model), (quantisation(model.config) or {}).get("quant_method")
    carried = _carried(Path(options.model), model)
    document = asdict(inspection) | {"log10_symmetries": inspection.log10_symmetries, "quantisation": method}
    return CommandResult(render(inspection, method, carried), document | {"carried": carried})


def _carried(folder: Path, model: "PreTrainedModel") -> list[str]:
    """Tensors in a folder that Transformers ignores; none where its weights are not there, or do not fit."""
    from hf_moe_lmc.checkpoints import Checkpoint
    from hf_moe_lmc.errors import BadInputError

    try:
        return sorted(Checkpoint.open(folder, model).ignored)
    except (BadInputError, OSError):
        return []


def render(inspection: "Inspection", quantisation: str | None = None, carried: Sequence[str] = ()) -> str:
    """Lines about the whole model, and the table; layers that differ in their number only are one row."""
    from hf_moe_lmc.alignment import notes

    rows = [
        (
            name,
            layer.num_experts,
            layer.num_units,
            layer.hidden_size,
            layer.experts_per_token,
            layer.expert_groups,
            f"{layer.shared_experts} x {layer.shared_units}" if layer.shared_experts else "-",
            layer.router or "-",
            _short(layer.parameters),
            f"{_short(layer.bytes)}B",
            ", ".join(layer.symmetries),
        )
        for name, layer in fold(inspection.layers)
    ]
    routed = sum(layer.router is not None for layer in inspection.layers)
    dense = f" and {len(inspection.layers) - routed} dense" if routed < len(inspection.layers) else ""
    lines = [
        f"{inspection.model_class}: {routed} Mixture-of-Experts{dense} layers, {_short(inspection.parameters)} "
        f"parameters, {_short(inspection.bytes)}B, 10^{inspection.log10_symmetries:.0f} expert orders, unit orders and "
        "signs"
    ]
    if inspection.unaligned:
        lines.append(f"dense, class not known: merged as they are: {', '.join(inspection.unaligned)}")
    if quantisation:
        from hf_moe_lmc.checkpoints.dequantised import METHODS, REMEDY

        hint = "bytes are those after they are dequantised" if quantisation in METHODS else f"not read here: {REMEDY}"
        lines.append(f"the weights are quantised ({quantisation}); {hint}")
    lines += notes(carried, {})
    return "\n".join([*lines, "", text_table(HEAD, rows)]) + "\n"


def fold(layers: Sequence["LayerInspection"]) -> list[tuple[str, "LayerInspection"]]:
    """Layers that differ in the first number of their name only, under one name such as `model.layers.3-60.mlp`."""
    folded: dict[tuple[str, LayerInspection], list[int]] = {}
    for layer in layers:
        number = re.search(r"(?<=\.)\d+(?=\.|$)", layer.name)
        pattern = f"{layer.name[: number.start()]}{{}}{layer.name[number.end() :]}" if number else layer.name
        folded.setdefault((pattern, replace(layer, name="")), []).extend([int(number[0])] if number else [])
    return [(pattern.format(_ranges(numbers)), layer) for (pattern, layer), numbers in folded.items()]


def _ranges(numbers: Sequence[int]) -> str:
    """`[0, 1, 2, 5]` -> `0-2,5`; equal steps of more than one -> `1,3,...,9`."""
    steps = {b - a for a, b in pairwise(numbers)}
    if len(numbers) > 3 and len(steps) == 1 and steps != {1}:
        return f"{numbers[0]},{numbers[1]},...,{numbers[-1]}"
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _short(count: int) -> str:
    """Three digits and a decimal prefix: 46.7 G."""
    for size, prefix in ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.3g} {prefix}"
    return f"{count} "
