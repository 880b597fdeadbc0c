"""The card of a folder that this package wrote."""

import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from importlib.metadata import metadata
from itertools import zip_longest
from pathlib import Path
from typing import cast

from huggingface_hub import ModelCard, ModelCardData

from hf_moe_lmc.alignment import Alignment
from hf_moe_lmc.checkpoints import HubOptions, read_json
from hf_moe_lmc.connectivity import PathReport
from hf_moe_lmc.errors import BadInputError, MoeLmcError, one_line
from hf_moe_lmc.verification import Verification

from .figures import (
    REPORT_FOLDER,
    read_path_figures,
    spread,
    store_report,
    verdict_sentence,
    worst_layers,
)
from .licenses import License, known_identifier
from .markdown import (
    Markdown,
    front_matter,
    read_markdown,
    render,
    replace_in_section,
    replace_sections,
    shell_command,
)
from .metadata import card_metadata, state_license, usage_of
from .output_record import OutputRecord, open_output, parents_of
from .parent_card import ParentCard, allowed_license, read_parent_card

CARD_NAME = "README.md"
SECTIONS = ("Use", "Evaluation", "Alignment", "Function preserved", "How it was made", "Limits")  # of the template

# Where the section "Use" names the folder, as Python and as a shell write it.
_ADDRESS = re.compile(r'''(?<=from_pretrained\()"(?:[^"\\\n]|\\.)*"''')
_ARGUMENT = re.compile(r"""(?<=hf-moe-lmc apply )(?:'(?:[^'\n]|'"'"')*'|\S+)""")


def write_card(
    folder: str | Path,
    alignment: Alignment | Sequence[Alignment | None] | None = None,
    report: PathReport | str | Path | None = None,
    verification: Verification | None = None,
    dataset: str | None = None,
    license: str | None = None,
    token: str | bool | None = None,
    name: str | None = None,
    access: Mapping[str, HubOptions] | None = None,
) -> ModelCard:
    """Write the README.md of a folder that `merge`, `apply` or `align` wrote.

    Of a README.md that is there already, only that changes which is given; all else stays, whoever wrote it. Of a new
    one, what is not given is left out, except a report that `folder` holds already. The license is the one that the
    cards of the parents allow; if none is found, the card names none.

    Args:
        folder: gets README.md, and the report in `report/`.
        alignment: shown layer by layer; of a merge of several models, one for each but the reference. The folder of an
            alignment is read by itself.
        report: of `evaluate` between the parents, or the folder where it was saved.
        verification: of `other` before and after the alignment.
        dataset: that `report` was measured on; a repository on the Hub, or any name.
        license: identifier of the Hub, instead of what the parents' cards say.
        token: to read the cards of private parents.
        name: that examples load the model by; None is the name of `folder`.
        access: name of a parent -> keywords by which its card is read, instead of `token`.

    Raises:
        BadInputError: the folder, the alignment or the report is not of this package, or of another merge; there is no
            such license; or the README.md that is there cannot be read.
    """
    output = open_output(folder)
    alignments = _alignments(output, alignment)
    old = read_card(output.path / CARD_NAME)
    if license:
        known_identifier(license)
    if report is not None:
        store_report(report, output.path)
    card = make_card(output, alignments, verification, dataset, license, token, name, access)
    if old:
        headings = ["Alignment", "How it was made"] * (alignment is not None)
        headings += ["Function preserved"] * (verification is not None)
        headings += ["Evaluation"] * (report is not None or dataset is not None)
        card = _revised(old, card, headings, license)
        card = addressed(card, name) if name else card
    new = output.path / f".{CARD_NAME}.new"
    new.write_text(str(card), encoding="utf-8")
    new.replace(output.path / CARD_NAME)
    return card


def make_card(
    output: OutputRecord,
    alignments: Sequence[Alignment | None] = (),
    verification: Verification | None = None,
    dataset: str | None = None,
    license: str | None = None,
    token: str | bool | None = None,
    name: str | None = None,
    access: Mapping[str, HubOptions] | None = None,
) -> ModelCard:
    """A new card with what is given; `alignments` are in the order of the record."""
    name = one_line(name or output.path.resolve().name)
    cards = [read_parent_card(parent, (access or {}).get(parent.name, {"token": token})) for parent in output.parents]
    config = {} if output.command == "align" else read_json(output.path / "config.json")
    merged = " + ".join(("aligned" if any(output.alignments) else "naive", *output.repairs))
    report = output.path / REPORT_FOLDER
    paths = read_path_figures(report, output.t, merged) if output.t is not None and report.exists() else None
    data = card_metadata(output, cards, config, _license(license, cards), paths, dataset, name)
    others = [parent for parent in output.parents if parent.role != "reference"]
    url = _repository_url()
    text = render(
        "card.md.j2",
        output=output,
        cards=cards,
        names=_enumeration([parent.label for parent in output.parents]),
        aligned=any(output.alignments),
        usage=usage_of(output.path, config),
        address=_literal(name),
        use_command=shell_command(
            ["hf-moe-lmc", "apply", name, *([other.argument for other in others] or ["OTHER"]), "-o", "aligned"]
        ),
        alignments=[
            (other.label if other else "", verdict_sentence(one), spread(one.layer_table()), len(one.layers))
            for other, one in zip_longest(others, alignments)
            if one
        ],
        verification=verification,
        worst_layers=worst_layers(verification) if verification else [],
        paths=paths,
        curves=(report / "curves.png").is_file(),
        dataset=dataset,
        commands=_commands(output, alignments),
        install=Markdown(f"pip install git+{url}" if url else "pip install .  # in a clone of hf_moe_lmc"),
        link=Markdown(f" ([hf_moe_lmc]({url}))" if url else ""),
        marker=Markdown(output.marker),
        versions=[f"{package} {version}" for package, version in output.content["versions"].items()],
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")


def read_card(file: Path) -> ModelCard | None:
    """The card in a file; None if there is no such file.

    Raises:
        BadInputError: it is no plain file, too large, or its metadata cannot be read.
    """
    if not os.path.lexists(file):
        return None
    text = read_markdown(file)
    try:
        front_matter(text)
        return ModelCard(text)
    except (BadInputError, ValueError) as error:
        raise BadInputError(f"{file} cannot be read: {error}; mend it or move it away") from None


def addressed(card: ModelCard, name: str) -> ModelCard:
    """The card, its examples loading the model by `name`."""
    text = replace_in_section(str(card), "Use", _ADDRESS, _literal(name))
    return ModelCard(replace_in_section(text, "Use", _ARGUMENT, shlex.quote(one_line(name))))


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
    models = [parent.argument for parent in output.parents]
    known = [alignment for alignment in alignments if alignment]
    configs = [alignment.config for alignment in known if alignment.config]
    how, commands = ["--expert-order", "none"], []
    if output.command == "align" or any(output.alignments):
        if not configs or len(configs) < len(output.alignments):
            return []
        how = ["--expert-order", configs[0].expert_order]
        pair = [model for model in (known[0].reference, known[0].other) if model]
        if len(known) == 1 and len(pair) == 2:
            origins = zip(("reference", "other"), pair, strict=True)
            named = parents_of({role: (model.name, model.commit) for role, model in origins})
            commands.append(["align", *(parent.argument for parent in named), *how, "-o", "alignment"])
            how = ["--alignment", "alignment"]
    if output.command == "apply" and commands:
        commands.append(["apply", "alignment", *models, *_writing(output), "-o", "aligned"])
    if output.command == "merge":
        place = ["--shares", *map(repr, output.shares)] if output.t is None else ["--t", repr(output.t)]
        how += ["--extrapolate"] if min(output.shares) < 0 else []
        how += ["--vocabulary", str(vocabulary)] if (vocabulary := output.content.get("vocabulary")) else []
        how += ["--allow-difference", *output.allowed_differences] if output.allowed_differences else []
        commands.append(["merge", *models, *how, *place, *_repairs(output), *_writing(output), "-o", "merged"])
    return [shell_command(["hf-moe-lmc", *command]) for command in commands]


def _repairs(output: OutputRecord) -> list[str]:
    """The options of a merge's repairs; a dataset that is not known by name is called DATA."""
    if output.calibration is None:
        return ["--repair", *output.repairs] if output.repairs else []
    flags = [part for name, value in output.calibration.items() for part in (f"--{name}", str(value))]
    return ["--repair", *(output.repairs or ("auto",)), *flags]


def _writing(output: OutputRecord) -> list[str]:
    """The options of how a checkpoint was written."""
    written = {name: output.content.get(name) for name in ("layout", "dtype", "quantise")}
    return [part for name, value in written.items() if value and value != "kept" for part in (f"--{name}", str(value))]


def _literal(name: str) -> Markdown:
    return Markdown(json.dumps(one_line(name), ensure_ascii=False))


def _revised(old: ModelCard, new: ModelCard, headings: Sequence[str], license: str | None) -> ModelCard:
    """`old` with some sections of `new`, the results of `new` if it has any, and a license if one is given."""
    old.text = "\n" + replace_sections(old.text, new.text, headings, SECTIONS)
    if license:
        state_license(old.data, License(license))
    data, measured = cast(ModelCardData, old.data), cast(ModelCardData, new.data)
    if "Evaluation" in headings and measured.eval_results:
        data.model_name, data.eval_results = measured.model_name, measured.eval_results
    return old


def _repository_url() -> str | None:
    """Where this package comes from."""
    entries = metadata("hf_moe_lmc").get_all("Project-URL") or []
    urls = {label: url for label, _, url in (entry.partition(", ") for entry in entries)}
    return urls.get("Repository")
