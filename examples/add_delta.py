"""Adds to one base what a fine-tune of another base learned: `BASE + scale (FINE_TUNE - OTHER_BASE)`, aligned.

    python examples/add_delta.py base other-base fine-tune-of-other-base --output added

The two bases are aligned once; the fine-tune, which is in the order of its own base, takes the same alignment. The same
on the command line is in docs/on-a-base.md.
"""

import sys
from dataclasses import dataclass, field

from example_parser import ExampleParser

from hf_moe_lmc import Alignment, align, merge

MODELS = {
    "base": "a folder, or repo or repo@revision on the Hub; gives the result its settings and its tokenizer",
    "other_base": "the same class; what the fine-tune began as",
    "fine_tune": "of the other base",
}


@dataclass
class DeltaArguments:
    """The result."""

    output: str = field(default="added", metadata={"help": "a new folder"})
    scale: float = field(default=1.0, metadata={"help": "of what the fine-tune learned"})


def main(arguments: list[str] | None = None) -> None:
    """Align the bases, add the difference, write."""
    parser = ExampleParser(DeltaArguments, description=__doc__, positional=MODELS)
    options, given = parser.parse_args_into_dataclasses(arguments)
    alignment = align(given.base, given.other_base)
    assert isinstance(alignment, Alignment)
    merge(
        given.base,
        [given.fine_tune, given.other_base],
        [alignment, alignment],
        shares=[1, options.scale, -options.scale],
        extrapolate=True,
        allow_other_weights=True,
        output=options.output,
    )
    sys.stdout.write(f"{alignment}\nWritten to {options.output}\n")


if __name__ == "__main__":
    main()
