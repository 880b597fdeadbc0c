"""The metadata of a card, which the Hub reads."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from .figures import PathFigures
from .licenses import License
from .output_record import OutputRecord
from .parent_card import ParentCard

PIPELINES = {
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "ForImageClassification": "image-classification",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
}


def card_metadata(
    output: OutputRecord,
    cards: Sequence[ParentCard],
    config: Mapping[str, Any],
    license: License | None,
    paths: PathFigures | None,
    dataset: str | None,
) -> ModelCardData:
    """The metadata of a folder's card.

    Args:
        output: the folder.
        cards: of its parents.
        config: its config.json; empty for an alignment.
        license: that is stated.
        paths, dataset: the evaluation, and the data that it was measured on.
    """
    base_model = _union((card.parent.repo_id,) if card.parent.repo_id else card.base_model for card in cards)
    pipeline = _pipeline(config, cards)
    family = config.get("model_type")
    merged = output.command == "merge"
    further: dict[str, Any] = {"base_model_relation": "merge"} if merged and base_model else {}
    if license and license.name:
        further |= {"license_name": license.name} | ({"license_link": license.link} if license.link else {})
    results = _results(paths, pipeline, dataset)
    return ModelCardData(
        model_name=output.path.resolve().name if results else None,
        base_model=base_model,
        library_name="hf_moe_lmc" if output.command == "align" else "transformers",
        pipeline_tag=pipeline,
        license=license.identifier if license else None,
        language=_union(card.language for card in cards),
        datasets=_union([*(card.datasets for card in cards), (dataset,) if dataset and "/" in dataset else ()]),
        tags=[
            *(["merge"] if merged else []),
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


def _pipeline(config: Mapping[str, Any], cards: Sequence[ParentCard]) -> str | None:
    for architecture in config.get("architectures") or ():
        for ending, pipeline in PIPELINES.items():
            if str(architecture).endswith(ending):
                return pipeline
    tags = {card.pipeline_tag for card in cards}
    return tags.pop() if config and len(tags) == 1 else None


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
