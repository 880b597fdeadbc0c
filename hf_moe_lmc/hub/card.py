"""The card of a folder that this package wrote."""

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

from huggingface_hub import ModelCard

from hf_moe_lmc.alignment import Alignment, MutualAlignment
from hf_moe_lmc.checkpoints import read_json
from hf_moe_lmc.connectivity import PathReport
from hf_moe_lmc.errors import BadInputError, HubError, MoeLmcError
from hf_moe_lmc.verification import Verification

from .layer_figures import layer_figures
from .licences import Licence, merged_licence
from .made_folder import ALIGN, MERGE, MadeFolder, open_made_folder
from .markdown import Markdown, render
from .metadata import card_metadata
from .parent import read_parent_card
from .path_figures import read_path_figures, store_report
from .reproduction import reproduction

CARD_NAME = "README.md"
OWN_MODELS = ("moe_vit", "moe_gpt2")


def write_card(
    folder: str | Path,
    alignment: Alignment | MutualAlignment | None = None,
    report: PathReport | str | Path | None = None,
    verification: Verification | None = None,
    dataset: str | None = None,
    licence: str | None = None,
    token: str | bool | None = None,
) -> ModelCard:
    """Write the README.md of a folder that `merge`, `apply` or `align` wrote.

    What is not given is left out, except a report that `folder` holds already. The licence is the one that the cards
    of the parents allow; if none is found, the card names none.

    Args:
        folder: gets README.md, and the report in `report/`.
        alignment: shown layer by layer; the folder of an alignment is read by itself.
        report: of `evaluate` between the parents, or the folder where it was saved.
        verification: of `other` before and after the alignment.
        dataset: that `report` was measured on; a repository on the Hub, or any name.
        licence: identifier of the Hub, instead of what the parents' cards say.
        token: to read the cards of private parents.

    Raises:
        BadInputError: the folder, the alignment or the report is not of this package, or of another merge.
    """
    made = open_made_folder(folder)
    if made.command != ALIGN and alignment and [part.digest for part in _parts(alignment)] != made.alignments:
        raise BadInputError(f"{made.path} was not made with this alignment; give the one that it was made with")
    if report is not None:
        store_report(report, made.path)
    card = make_card(made, alignment, verification, dataset, licence, token)
    (made.path / CARD_NAME).write_text(str(card), encoding="utf-8")
    return card


def make_card(
    made: MadeFolder,
    alignment: Alignment | MutualAlignment | None = None,
    verification: Verification | None = None,
    dataset: str | None = None,
    licence: str | None = None,
    token: str | bool | None = None,
) -> ModelCard:
    """The card that `write_card` writes."""
    if made.command == ALIGN:
        alignment = Alignment.from_pretrained(made.path)
    cards = {role: read_parent_card(parent, token) for role, parent in made.parents.items()}
    config = {} if made.command == ALIGN else read_json(made.path / "config.json")
    paths = read_path_figures(made.path, float(made.record["t"]), made.repairs) if made.command == MERGE else None
    allowed = Licence(licence) if licence else _licence(made, token)
    data = card_metadata(made, cards, config, allowed, paths, dataset)
    architectures = [
        name for name in config.get("architectures") or () if isinstance(name, str) and name.isidentifier()
    ]
    parts = _parts(alignment) if alignment else ()
    others = [parent for role, parent in made.parents.items() if role != "reference"]
    text = render(
        "card.md.j2",
        made=made,
        parents={role: (parent, cards[role]) for role, parent in made.parents.items()},
        names=_enumeration([parent.label for parent in made.parents.values()]),
        shares=[f"{weight:.4g}" for weight in made.record.get("weights", ())],
        alignments=[(other, part.verdict(), layer_figures(part)) for other, part in zip_longest(others, parts) if part],
        verification=verification,
        paths=paths,
        dataset=dataset,
        architecture=Markdown(architectures[0] if architectures else "AutoModel"),
        own_model=config.get("model_type") in OWN_MODELS,
        commands=reproduction(made, parts[0] if parts else None),
        marker=Markdown(made.marker),
        versions=", ".join(f"{package} {version}" for package, version in made.record["versions"].items()),
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")


def _parts(alignment: Alignment | MutualAlignment) -> tuple[Alignment, ...]:
    """One alignment per other model."""
    return alignment.alignments if isinstance(alignment, MutualAlignment) else (alignment,)


def _enumeration(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *before, last = names or [""]
    return f"{', '.join(before)} and {last}" if before else last


def _licence(made: MadeFolder, token: str | bool | None) -> Licence | None:
    try:
        return parents_licence(made, token)
    except MoeLmcError:
        return None


def parents_licence(made: MadeFolder, token: str | bool | None = None) -> Licence:
    """The licence that the cards of the parents allow.

    Raises:
        BadInputError, IncompatiblePairError: there is none; see `merged_licence`.
        HubError: the Hub does not give a card.
    """
    if not made.parents:
        raise BadInputError(f"{made.path} does not say what it was made of; name a licence with --license")
    cards = {parent.label: read_parent_card(parent, token) for parent in made.parents.values()}
    for label, card in cards.items():
        if card.failure:
            raise HubError(f"the card of {label} cannot be had: {card.failure}; or name a licence with --license")
    return merged_licence({label: card.licence for label, card in cards.items()})
