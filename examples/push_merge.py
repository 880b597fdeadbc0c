"""Merges two checkpoints and publishes the merge with a card that proves it.

    python examples/push_merge.py vit-moe/seed-5 vit-moe/seed-6 me/digits-merged --license mit --dry_run
    python examples/push_merge.py copy-1 copy-2 me/merged --dataset book.txt --license apache-2.0 --private
    python examples/push_merge.py org/a@v1 org/b me/a-and-b --dataset Salesforce/wikitext \
        --dataset_config wikitext-2-raw-v1 --block_size 512 --create_pr

Two repositories come of it: REPOSITORY, an ordinary checkpoint, and REPOSITORY-alignment, a few kB by which others can
align the second model themselves. The license is the one that the cards of the parents allow, if they state any.
Log in before (`hf auth login`). `--dry_run` does all but send, and lists what it would.
"""

import sys
from copy import deepcopy
from dataclasses import dataclass, field

import torch
from align_and_merge import PAIR, EvaluationArguments, measure_path
from example_parser import ExampleParser

from hf_moe_lmc import Alignment, MoeAligner, Verification, push_to_hub, verify
from hf_moe_lmc.hub import check_push, plan_push, write_card
from hf_moe_lmc.verification import load_plainly


@dataclass
class PublishingArguments:
    """The merge, and how it is published."""

    output: str = field(default="to-push", metadata={"help": "the merge on this machine; a new folder"})
    t: float = 0.5
    license: str | None = field(default=None, metadata={"help": "as the Hub calls it"})
    private: bool = False
    force: bool = field(default=False, metadata={"help": "merge models of which layers are unrelated, too"})
    create_pr: bool = field(default=False, metadata={"help": "propose it as a pull request"})
    dry_run: bool = field(default=False, metadata={"help": "do all but send"})


def prove(alignment: Alignment, name: str) -> Verification:
    """Compare the model `name` before and after the alignment."""
    model = load_plainly(name, torch.float32)
    return verify(model, alignment.apply(deepcopy(model)))


def main(arguments: list[str] | None = None) -> None:
    """Align, prove, measure, merge, publish."""
    positional = PAIR | {"repository": "name or organisation/name on the Hub"}
    parser = ExampleParser(PublishingArguments, EvaluationArguments, description=__doc__, positional=positional)
    options, evaluation, given = parser.parse_args_into_dataclasses(arguments)
    pair, repository = (given.reference, given.other), given.repository

    aligner = MoeAligner.from_pretrained(*pair)
    alignment = aligner.align()
    known = {
        "report": measure_path(aligner, alignment, evaluation),
        "verification": prove(alignment, given.other),
        "dataset": evaluation.dataset,
        "license": options.license,
    }
    if not options.dry_run:
        check_push(repository, options.license)  # before the work
    aligner.merge(alignment, options.t, output=options.output, force=options.force)
    write_card(options.output, alignment, **known)
    if options.dry_run:
        sys.stdout.write(plan_push(options.output, repository).text)
        return
    how = {"private": options.private, "create_pr": options.create_pr, "license": options.license}
    merge = push_to_hub(options.output, repository, **how)
    permutations = push_to_hub(alignment, f"{repository}-alignment", **how)
    sys.stdout.write(f"Pushed: {merge}\nPushed: {permutations}\n")


if __name__ == "__main__":
    main()
