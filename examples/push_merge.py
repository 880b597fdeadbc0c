"""Merges two checkpoints and publishes the merge with a card that says what was done, and how well it does.

    python examples/push_merge.py vit-moe/seed-5 vit-moe/seed-6 me/digits-merged --license mit --dry_run
    python examples/push_merge.py copy-1 copy-2 me/merged --dataset book.txt --license apache-2.0 --private
    python examples/push_merge.py org/a@v1 org/b me/a-and-b --dataset Salesforce/wikitext \
        --dataset_config wikitext-2-raw-v1 --block_size 512 --create_pr

Two repositories come of it: REPOSITORY, an ordinary checkpoint, and REPOSITORY-alignment, a few kB by which others can
align the second model themselves. The licence is the one that the cards of the parents allow, if they state any.
Log in before (`hf auth login`). `--dry_run` does all but send, and lists what it would.
"""

import argparse
import sys
from copy import deepcopy
from pathlib import Path

import torch
from align_and_merge import add_data_arguments, measure_path

from hf_moe_lmc import Alignment, MoeAligner, Verification, verify
from hf_moe_lmc.hub import plan_push, write_card
from hf_moe_lmc.verification import load_plainly


def prove(alignment: Alignment, name: str) -> Verification:
    """Whether the model `name` computes the same before and after the alignment."""
    model = load_plainly(name, torch.float32)
    return verify(model, alignment.apply(deepcopy(model)))


def main(arguments: list[str] | None = None) -> None:
    """Align, prove, measure, merge, publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reference", help="a folder, or repo or repo@revision on the Hub: t = 0")
    parser.add_argument("other", help="the same: t = 1, once aligned")
    parser.add_argument("repository", help="name or organisation/name on the Hub")
    parser.add_argument("--output", type=Path, default=Path("to-push"), help="the merge on this machine")
    parser.add_argument("--t", type=float, default=0.5)
    parser.add_argument("--license", help="as the Hub calls it")
    parser.add_argument("--private", action="store_true")
    parser.add_argument("--create_pr", action="store_true", help="propose it as a pull request")
    parser.add_argument("--dry_run", action="store_true")
    add_data_arguments(parser)
    options = parser.parse_args(arguments)

    aligner = MoeAligner.from_pretrained(options.reference, options.other)
    alignment = aligner.align()
    known = {
        "report": measure_path(alignment, options),
        "verification": prove(alignment, options.other),
        "dataset": options.dataset,
        "licence": options.license,
    }
    if options.dry_run:
        aligner.merge(alignment, options.t, options.output)
        write_card(options.output, alignment, **known)
        sys.stdout.write(plan_push(options.output, options.repository).text)
        return
    sent = {"private": options.private, "create_pr": options.create_pr}
    merge = aligner.push_to_hub(options.repository, options.output, alignment, options.t, **known, **sent)
    permutations = alignment.push_to_hub(f"{options.repository}-alignment", licence=options.license, **sent)
    sys.stdout.write(f"Pushed: {merge}\nPushed: {permutations}\n")


if __name__ == "__main__":
    main()
