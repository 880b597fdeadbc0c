"""`hf-moe-lmc learn`."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .answer import Answer
from .arguments import add_command, add_pair
from .data_arguments import add_data, add_loading, calibration_of, examples_of, loaded, source_of

if TYPE_CHECKING:
    from hf_moe_lmc.alignment import Alignment, OpenedModel
    from hf_moe_lmc.connectivity import LearnedMatching

RECORD_NAME = "learned.json"


def add_parser(commands: "argparse._SubParsersAction[Any]") -> None:
    """The options of `learn`."""
    learn = add_command(
        commands,
        "learn",
        run,
        "improve an alignment by the loss of the merge on data; needs memory for training steps",
        "Rearrange experts and units by the loss near the midpoint, beginning with weight matching; no weight is "
        "trained. The alignment is only replaced where another lowers the loss of the midpoint on held-out examples. "
        "The same learning from shuffled weights is run beside it: what that gains is no alignment.",
    )
    add_pair(learn)
    learn.add_argument("--alignment", metavar="FOLDER", required=True, help="made by `align`: what has to be improved")
    learn.add_argument("-o", "--output", type=Path, metavar="FOLDER", required=True, help="folder of the new alignment")
    learn.add_argument("--overwrite", action="store_true", help="replace an earlier alignment")
    learn.add_argument("--steps", type=int, default=30, help="the budget (default: 30)")
    add_data(learn, "train", "the first ones; half of the batches to learn from, half to judge by")
    add_loading(learn)


def run(options: argparse.Namespace) -> Answer:
    """Learn, and save the alignment; a killed run goes on."""
    from hf_moe_lmc.alignment import Alignment, check_pair, open_checkpoint
    from hf_moe_lmc.alignment.config import CONFIG_NAME
    from hf_moe_lmc.alignment.stream import identity, read_paths
    from hf_moe_lmc.alignment.versions import versions
    from hf_moe_lmc.checkpoints import output_folder

    reference, other = open_checkpoint(options.reference), open_checkpoint(options.other)
    check_pair(reference, other)
    alignment, source = Alignment.from_pretrained(options.alignment), source_of(options)
    recipe = {
        "command": "learn",
        "alignment": alignment.digest,
        "steps": options.steps,
        "source": source,
        "inputs": [identity(side) for side in (reference, other)],
        "versions": versions(),
    }
    paths = read_paths(reference, other)
    with output_folder(options.output, recipe, paths, 0, options.overwrite, CONFIG_NAME) as staged:
        learned, control = _learned(reference, other, alignment, staged.path, options)
        learned.alignment.save_pretrained(staged.path)
        record = {
            "steps": options.steps,
            "held_out_loss": learned.held_out_loss,
            "from_shuffled_weights": control.held_out_loss,
            "source": source,
        }
        (staged.path / RECORD_NAME).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    improved = learned.alignment.digest != alignment.digest
    said = (
        f"{'improved' if improved else 'not improved, the alignment stays as it was'}: midpoint's loss on held-out "
        f"examples {learned.held_out_loss[0]:.4f} before, {min(learned.held_out_loss):.4f} at best; from shuffled "
        f"weights, which have nothing to align, {control.held_out_loss[0]:.4f} and {min(control.held_out_loss):.4f}\n"
    )
    return Answer(
        f"{said}Written to {options.output}\n", {"output": str(options.output), "improved": improved} | record
    )


def _learned(
    reference: "OpenedModel", other: "OpenedModel", alignment: "Alignment", folder: Path, options: argparse.Namespace
) -> "tuple[LearnedMatching, LearnedMatching]":
    """What is learned from the other model, and from its shuffled weights; states are kept in `folder` meanwhile."""
    from hf_moe_lmc.alignment.apply import check_layers
    from hf_moe_lmc.connectivity import learn_from_shuffled, learn_matching
    from hf_moe_lmc.connectivity.calibrate import halved

    check_layers(alignment, other)
    model = loaded(reference, options)
    examples = examples_of(model, options, options.calibration_examples)
    batches, held_out = halved(list(calibration_of(examples, options)))
    states = [folder / "learning.pt", folder / "control.pt"]
    learned = learn_matching(model, other.tensors, alignment, batches, held_out, options.steps, state=states[0])
    control = learn_from_shuffled(model, other.tensors, batches, held_out, options.steps, state=states[1])
    for state in states:
        state.unlink(missing_ok=True)
    return learned, control
