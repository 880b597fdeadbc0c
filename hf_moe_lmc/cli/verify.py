"""`hf-moe-lmc verify`."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arguments import MODEL, add_command
from .results import GREEN, RED, CommandResult, coloured, text_table

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hf_moe_lmc.verification import Verification

EQUAL, NOT_EQUAL = 0, 1
CAUSES = 3  # sentences of the comparison
HEAD = ("layer", "block difference", "experts difference", "routing agreement", "experts reached")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


def add_parser(commands: "argparse._SubParsersAction[Any]") -> None:
    """The options of `verify`."""
    verify = add_command(
        commands,
        "verify",
        run,
        "show that a rewritten model computes the same function",
        "Compare the logits of two models on random inputs and on text, every Mixture-of-Experts or dense "
        "block on the same inputs, and all other weights bit for bit. Exit code 0: equal up to rounding; 1: not equal.",
    )
    verify.add_argument("before", metavar="BEFORE", help=MODEL)
    verify.add_argument("after", metavar="AFTER", help="the same model rewritten")
    verify.add_argument(
        "--dtype", choices=("float32", "float64"), default="float32", help="of the computation (default: float32)"
    )
    verify.add_argument(
        "--text", type=Path, metavar="FILE", help="text to compare on (default: a short one of our own)"
    )


def run(options: argparse.Namespace) -> CommandResult:
    """Compare, and print the differences."""
    import torch

    from hf_moe_lmc.comparison import compare
    from hf_moe_lmc.verification import load_plainly, random_batches, verify

    text = _read_text(options.text)
    dtype = getattr(torch, options.dtype)
    before, after = load_plainly(options.before, dtype), load_plainly(options.after, dtype)
    batches = {"random": random_batches(before)} | _text_batches(before, text)
    found = verify(before, after, batches)
    causes = () if found.equal else compare(before, after).sentences[:CAUSES]
    document = asdict(found) | {"equal": found.equal, "causes": causes}
    return CommandResult(render(found, options.dtype, causes), document, EQUAL if found.equal else NOT_EQUAL)


def render(found: "Verification", dtype: str, causes: Sequence[str]) -> str:
    """The verdict, its causes, a line for each kind of input, what else has changed, and the table of the layers."""
    rows = [
        (
            layer.name,
            f"{layer.difference:.1e}",
            f"{layer.experts_difference:.1e}",
            "-" if layer.routing_agreement is None else f"{layer.routing_agreement:.2%}",
            "-" if layer.experts_reached is None else f"{layer.experts_reached} of {layer.num_experts}",
        )
        for layer in found.layers
    ]
    outputs = "".join(
        f"outputs on {kind} inputs: {x.median:.1e} at the median position, {x.largest:.1e} at the worst\n"
        for kind, x in found.outputs.items()
    )
    changed = f"changed outside these layers: {', '.join(found.changed_tensors)}\n" if found.changed_tensors else ""
    equal, colour = ("equal up to rounding", GREEN) if found.equal else ("NOT EQUAL", RED)
    verdict = coloured(equal, colour, sys.stdout)
    lines = "".join(f"{line}\n" for line in causes)
    return (
        f"{verdict} (relative differences in {dtype}; tolerance {found.output_tolerance:.0e} for the median output, "
        f"{found.block_tolerance:.0e} for layers)\n{lines}{outputs}{changed}\n{text_table(HEAD, rows)}\n"
    )


def _read_text(file: Path | None) -> str | None:
    from hf_moe_lmc.errors import BadInputError

    try:
        return file.read_text(encoding="utf-8") if file else None
    except (OSError, ValueError) as error:
        raise BadInputError(f"the text {file} cannot be read: {error}; give a UTF-8 file") from error


def _text_batches(model: "PreTrainedModel", text: str | None) -> dict[str, Any]:
    """The text in tokens, if there is a tokenizer beside the model."""
    from transformers import AutoTokenizer

    from hf_moe_lmc.errors import BadInputError
    from hf_moe_lmc.verification import SAMPLE_TEXT, text_batch

    folder = Path(str(model.name_or_path))
    if not any((folder / name).exists() for name in TOKENIZER_FILES):
        if text is not None:
            raise BadInputError(f"no tokenizer in {folder} to read the text with; leave --text out")
        return {}
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # settings come from a file, and may break anything
        raise BadInputError(f"the tokenizer in {folder} cannot be read: {' '.join(str(error).split())}") from error
    return {"text": [text_batch(model, tokenizer, SAMPLE_TEXT if text is None else text)]}
