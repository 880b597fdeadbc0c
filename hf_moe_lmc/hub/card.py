"""The card of a folder that this package wrote."""

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import ModelCard

from hf_moe_lmc.alignment import Alignment
from hf_moe_lmc.checkpoints import read_json
from hf_moe_lmc.connectivity import PathReport
from hf_moe_lmc.errors import BadInputError, MoeLmcError
from hf_moe_lmc.verification import Verification

from .figures import read_path_figures, store_report
from .licenses import License
from .markdown import Markdown, render, shell_command
from .metadata import card_metadata
from .output_record import OutputRecord, open_output, parents_of
from .parent_card import ParentCard, allowed_license, read_parent_card

CARD_NAME = "README.md"
OWN_MODELS = ("moe_vit", "moe_gpt2")


def write_card(
    folder: str | Path,
    alignment: Alignment | Sequence[Alignment | None] | None = None,
    report: PathReport | str | Path | None = None,
    verification: Verification | None = None,
    dataset: str | None = None,
    license: str | None = None,
    token: str | bool | None = None,
) -> ModelCard:
    """Write the README.md of a folder that `merge`, `apply` or `align` wrote.

    What is not given is left out, except a report that `folder` holds already. The license is the one that the cards
    of the parents allow; if none is found, the card names none.

    Args:
        folder: gets README.md, and the report in `report/`.
        alignment: shown layer by layer; of a merge of several models, one for each but the reference. The folder of an
            alignment is read by itself.
        report: of `evaluate` between the parents, or the folder where it was saved.
        verification: of `other` before and after the alignment.
        dataset: that `report` was measured on; a repository on the Hub, or any name.
        license: identifier of the Hub, instead of what the parents' cards say.
        token: to read the cards of private parents.

    Raises:
        BadInputError: the folder, the alignment or the report is not of this package, or of another merge.
    """
    output = open_output(folder)
    alignments = _alignments(output, alignment)
    if report is not None:
        store_report(report, output.path)
    card = make_card(output, alignments, verification, dataset, license, token)
    (output.path / CARD_NAME).write_text(str(card), encoding="utf-8")
    return card


def make_card(
    output: OutputRecord,
    alignments: Sequence[Alignment | None] = (),
    verification: Verification | None = None,
    dataset: str | None = None,
    license: str | None = None,
    token: str | bool | None = None,
) -> ModelCard:
    """The card that `write_card` writes; `alignments` are in the order of the record."""
    cards = [read_parent_card(parent, token) for parent in output.parents]
    config = {} if output.command == "align" else read_json(output.path / "config.json")
    merged = " + ".join(("aligned" if any(output.alignments) else "naive", *output.repairs))
    paths = None if output.t is None else read_path_figures(output.path, output.t, merged)
    data = card_metadata(output, cards, config, _license(license, cards), paths, dataset)
    architectures = [
        name for name in config.get("architectures") or () if isinstance(name, str) and name.isidentifier()
    ]
    others = [parent for parent in output.parents if parent.role != "reference"]
    text = render(
        "card.md.j2",
        output=output,
        cards=cards,
        names=_enumeration([parent.label for parent in output.parents]),
        aligned=any(output.alignments),
        alignments=[
            (other.label, alignment.verdict(), alignment.layer_table())
            for other, alignment in zip(others, alignments, strict=False)
            if alignment
        ],
        verification=verification,
        paths=paths,
        dataset=dataset,
        architecture=Markdown(architectures[0] if architectures else "AutoModel"),
        own_model=config.get("model_type") in OWN_MODELS,
        commands=_commands(output, alignments),
        marker=Markdown(output.marker),
        versions=", ".join(f"{package} {version}" for package, version in output.content["versions"].items()),
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")


def _alignments(
    output: OutputRecord, alignment: Alignment | Sequence[Alignment | None] | None
) -> Sequence[Alignment | None]:
    """One per model but the reference; none if nothing is known of them."""
    if output.command == "align":
        return (Alignment.from_pretrained(output.path),)
    if alignment is None:
        return ()
    alignments = (alignment,) if isinstance(alignment, Alignment) else tuple(alignment)
    if tuple(one and one.digest for one in alignments) != output.alignments:
        raise BadInputError(f"{output.path} was not made with this alignment; give the one that it was made with")
    return alignments


def _license(identifier: str | None, cards: Sequence[ParentCard]) -> License | None:
    try:
        return License(identifier) if identifier else allowed_license(cards)
    except MoeLmcError:
        return None


def _enumeration(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *before, last = names or [""]
    return f"{', '.join(before)} and {last}" if before else last


def _commands(output: OutputRecord, alignments: Sequence[Alignment | None]) -> list[Markdown]:
    """The commands that make the folder again; none where an alignment is not known, or was not found by matching.

    Local parents are called by their label.
    """
    known = [alignment for alignment in alignments if alignment]
    configs = [alignment.config for alignment in known if alignment.config]
    if not configs or len(configs) < len(output.alignments):
        return []
    config, first = configs[0], known[0]
    matching = ["--expert-order", config.expert_order, *(["--balance-scales"] if config.balance_scales else [])]
    models = [parent.argument for parent in output.parents]
    commands = []
    if len(known) > 1:
        shares = ["--shares", *map(repr, output.shares)]
        commands.append(["merge", *models, *shares, *matching, *_repairs(output), *_writing(output), "-o", "merged"])
    elif first.reference and first.other:
        pair = {"reference": first.reference, "other": first.other}
        origins = parents_of({role: (model.name, model.commit) for role, model in pair.items()})
        commands.append(["align", *(parent.argument for parent in origins), *matching, "-o", "alignment"])
        if output.command == "apply":
            commands.append(["apply", "alignment", *models, *_writing(output), "-o", "aligned"])
        if output.command == "merge":
            how = ["--alignment", "alignment", "--t", repr(output.t), *_repairs(output), *_writing(output)]
            commands.append(["merge", *models, *how, "-o", "merged"])
    return [shell_command(["hf-moe-lmc", *command]) for command in commands]


def _repairs(output: OutputRecord) -> list[str]:
    """The options of a merge's repairs; a dataset that is not known by name is called DATA."""
    if output.calibration is None:
        return ["--repair", *output.repairs] if output.repairs else []
    flags = [part for name, value in output.calibration.items() for part in (f"--{name}", str(value))]
    return ["--repair", *(output.repairs or ("auto",)), *flags]


def _writing(output: OutputRecord) -> list[str]:
    """The options of how a checkpoint was written."""
    layout, dtype = output.content.get("layout", "kept"), output.content.get("dtype")
    return (["--layout", str(layout)] if layout != "kept" else []) + (["--dtype", str(dtype)] if dtype else [])
