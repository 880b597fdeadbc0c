"""The card of a folder that this package wrote."""

from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hf_moe_lmc.alignment import Alignment
from hf_moe_lmc.checkpoints.json_file import read_json
from hf_moe_lmc.connectivity import PathReport
from hf_moe_lmc.errors import BadInputError, MoeLmcError
from hf_moe_lmc.matching import judge
from hf_moe_lmc.verification import Verification

from .layer_figures import layer_figures
from .licences import Licence, merged_licence
from .made_folder import ALIGN, MERGE, MadeFolder, open_made_folder
from .markdown import Markdown, render
from .parent import ParentCard, read_parent_card
from .path_figures import PathFigures, read_path_figures, store_report
from .reproduction import reproduction

CARD_NAME = "README.md"
OWN_MODELS = ("moe_vit", "moe_gpt2")
PIPELINES = {
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "ForImageClassification": "image-classification",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
}


def write_card(
    folder: str | Path,
    alignment: Alignment | None = None,
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
    if made.command != ALIGN and alignment and made.record.get("alignment") != alignment.digest:
        raise BadInputError(f"{made.path} was not made with this alignment; give the one that it was made with")
    if report is not None:
        store_report(report, made.path)
    card = make_card(made, alignment, verification, dataset, licence, token)
    (made.path / CARD_NAME).write_text(str(card), encoding="utf-8")
    return card


def make_card(
    made: MadeFolder,
    alignment: Alignment | None = None,
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
    paths = read_path_figures(made.path, float(made.record["t"])) if made.command == MERGE else None
    allowed = Licence(licence) if licence else _licence(made, token)
    data = _metadata(made, cards, config, allowed, paths, dataset)
    architectures = [
        name for name in config.get("architectures") or () if isinstance(name, str) and name.isidentifier()
    ]
    evidence = [layer.evidence for layer in alignment.layers.values() if layer.evidence] if alignment else []
    text = render(
        "card.md.j2",
        made=made,
        parents={role: (parent, cards[role]) for role, parent in made.parents.items()},
        layers=layer_figures(alignment) if alignment else [],
        verdict=judge(evidence) if evidence else None,
        verification=verification,
        paths=paths,
        dataset=dataset,
        architecture=Markdown(architectures[0] if architectures else "AutoModel"),
        own_model=config.get("model_type") in OWN_MODELS,
        commands=reproduction(made, alignment),
        marker=Markdown(made.marker),
        versions=", ".join(f"{package} {version}" for package, version in made.record["versions"].items()),
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")


def _licence(made: MadeFolder, token: str | bool | None) -> Licence | None:
    try:
        return parents_licence(made, token)
    except MoeLmcError:
        return None


def parents_licence(made: MadeFolder, token: str | bool | None = None) -> Licence:
    """The licence that the cards of the parents allow.

    Raises:
        BadInputError, IncompatiblePairError: there is none; see `merged_licence`.
    """
    if not made.parents:
        raise BadInputError(f"{made.path} does not say what it was made of; name a licence with --license")
    return merged_licence({parent.label: read_parent_card(parent, token).licence for parent in made.parents.values()})


def _metadata(
    made: MadeFolder,
    cards: dict[str, ParentCard],
    config: dict[str, Any],
    licence: Licence | None,
    paths: PathFigures | None,
    dataset: str | None,
) -> ModelCardData:
    """What the Hub reads of the card."""
    on_hub = [
        (parent.repository,) if parent.repository else cards[role].base_model for role, parent in made.parents.items()
    ]
    base_model = list(dict.fromkeys(name for names in on_hub for name in names))
    pipeline = _pipeline(config, cards)
    family = config.get("model_type")
    further: dict[str, Any] = {"base_model_relation": "merge"} if made.command == MERGE and base_model else {}
    if licence and licence.name:
        further |= {"license_name": licence.name} | ({"license_link": licence.link} if licence.link else {})
    results = _results(paths, pipeline, dataset)
    return ModelCardData(
        model_name=made.path.resolve().name if results else None,
        base_model=base_model or None,
        library_name="hf_moe_lmc" if made.command == ALIGN else "transformers",
        pipeline_tag=pipeline,
        license=licence.identifier if licence else None,
        language=_union(card.language for card in cards.values()),
        datasets=_union(
            [*(card.datasets for card in cards.values()), (dataset,) if dataset and "/" in dataset else ()]
        ),
        tags=[
            *(["merge"] if made.command == MERGE else []),
            "moe",
            *([family] if isinstance(family, str) else []),
            "hf_moe_lmc",
            "linear-mode-connectivity",
        ],
        eval_results=results,
        **further,
    )


def _union(lists: Any) -> list[str] | None:
    return list(dict.fromkeys(word for words in lists for word in words)) or None


def _pipeline(config: dict[str, Any], cards: dict[str, ParentCard]) -> str | None:
    for architecture in config.get("architectures") or ():
        for ending, pipeline in PIPELINES.items():
            if str(architecture).endswith(ending):
                return pipeline
    said = {card.pipeline_tag for card in cards.values()}
    return said.pop() if config and len(said) == 1 else None


def _results(paths: PathFigures | None, pipeline: str | None, dataset: str | None) -> list[EvalResult] | None:
    """Loss and accuracy of the merge, if they were measured on a dataset that has a name."""
    if not paths or not paths.merge or not dataset or not pipeline:
        return None
    return [
        EvalResult(
            task_type=pipeline,
            dataset_type=dataset,
            dataset_name=dataset,
            metric_type=metric,
            metric_value=value,
        )
        for metric, value in (("loss", paths.merge.loss), ("accuracy", paths.merge.accuracy))
        if value is not None
    ]
