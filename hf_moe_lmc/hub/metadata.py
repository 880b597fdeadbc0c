"""What the Hub reads of a card."""

from collections.abc import Iterable, Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from .licences import Licence
from .made_folder import ALIGN, MERGES, MadeFolder
from .parent import ParentCard
from .path_figures import PathFigures

PIPELINES = {
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "ForImageClassification": "image-classification",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
}


def card_metadata(
    made: MadeFolder,
    cards: Mapping[str, ParentCard],
    config: Mapping[str, Any],
    licence: Licence | None,
    paths: PathFigures | None,
    dataset: str | None,
) -> ModelCardData:
    """The metadata of a folder's card.

    Args:
        made: the folder.
        cards: role -> what the card of that parent says.
        config: its config.json; empty for an alignment.
        licence: that is stated.
        paths, dataset: what was measured, and on what.
    """
    on_hub = [
        (parent.repository,) if parent.repository else cards[role].base_model for role, parent in made.parents.items()
    ]
    base_model = list(dict.fromkeys(name for names in on_hub for name in names))
    pipeline = _pipeline(config, cards)
    family = config.get("model_type")
    further: dict[str, Any] = {"base_model_relation": "merge"} if made.command in MERGES and base_model else {}
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
            *(["merge"] if made.command in MERGES else []),
            "moe",
            *([family] if isinstance(family, str) else []),
            "hf_moe_lmc",
            "linear-mode-connectivity",
        ],
        eval_results=results,
        **further,
    )


def _union(lists: Iterable[tuple[str, ...]]) -> list[str] | None:
    return list(dict.fromkeys(word for words in lists for word in words)) or None


def _pipeline(config: Mapping[str, Any], cards: Mapping[str, ParentCard]) -> str | None:
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
