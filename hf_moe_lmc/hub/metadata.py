"""What the Hub, and Transformers, make of a folder: the metadata of its card, and the classes that load it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CardData, EvalResult, ModelCardData

from hf_moe_lmc.checkpoints import read_json
from hf_moe_lmc.errors import BadInputError

from .figures import PathFigures
from .licenses import License
from .output_record import OutputRecord
from .parent_card import ParentCard

TASKS = {
    "ForCausalLM": ("text-generation", "AutoModelForCausalLM"),
    "LMHeadModel": ("text-generation", "AutoModelForCausalLM"),
    "ForImageClassification": ("image-classification", "AutoModelForImageClassification"),
    "ForSequenceClassification": ("text-classification", "AutoModelForSequenceClassification"),
    "ForTokenClassification": ("token-classification", "AutoModelForTokenClassification"),
}
"""End of a class's name -> task of the Hub, and the class of Transformers that loads it."""

TOKENIZER = "tokenizer_config.json"
PROCESSORS = (
    ("processor_config.json", "AutoProcessor"),
    (TOKENIZER, "AutoTokenizer"),
    ("preprocessor_config.json", "AutoImageProcessor"),
)
OWN_MODELS = ("moe_vit", "moe_gpt2")


@dataclass(frozen=True)
class Usage:
    """How a checkpoint is loaded and tried.

    Args:
        model: class of Transformers.
        processor: the same for what makes its inputs; None where the folder holds none.
        chats: whether its tokenizer has a chat template.
        own_model: whether Transformers knows the architecture only through this package.
    """

    model: str
    processor: str | None
    chats: bool
    own_model: bool

    @property
    def imports(self) -> str:
        """Names to import from Transformers."""
        return ", ".join(sorted(filter(None, (self.model, self.processor))))

    @property
    def variable(self) -> str:
        """Name of the processor in an example."""
        return "tokenizer" if self.processor == "AutoTokenizer" else "processor"

    @property
    def generates(self) -> bool:
        """Whether it continues a text."""
        return (self.model, self.processor) == ("AutoModelForCausalLM", "AutoTokenizer")


def usage_of(folder: Path, config: Mapping[str, Any]) -> Usage:
    """The usage of the checkpoint in `folder` with this config.json."""
    names = [name for name in config.get("architectures") or () if isinstance(name, str) and name.isidentifier()]
    task = _task(names)
    return Usage(
        task[1] if task else names[0] if names else "AutoModel",
        next((processor for file, processor in PROCESSORS if (folder / file).is_file()), None),
        (folder / "chat_template.jinja").is_file() or bool(_settings(folder / TOKENIZER).get("chat_template")),
        config.get("model_type") in OWN_MODELS,
    )


def card_metadata(
    output: OutputRecord,
    cards: Sequence[ParentCard],
    config: Mapping[str, Any],
    license: License | None,
    paths: PathFigures | None,
    dataset: str | None,
    name: str,
) -> ModelCardData:
    """The metadata of a folder's card.

    Args:
        output: the folder.
        cards: of its parents.
        config: its config.json; empty for an alignment.
        license: that is stated.
        paths, dataset: the evaluation, and the data that it was measured on.
        name: of the folder.
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
        model_name=name if results else None,
        base_model=base_model,
        library_name="hf_moe_lmc" if output.command == "align" else "transformers",
        pipeline_tag=pipeline,
        license=license.identifier if license else None,
        language=_union(card.language for card in cards),
        datasets=_union(card.datasets for card in cards),
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


def state_license(data: CardData, license: License) -> None:
    """Replace the license in the metadata of a card."""
    stated = {"license": license.identifier, "license_name": license.name, "license_link": license.link}
    for key, value in stated.items():
        if value is not None:
            data[key] = value
        elif data.get(key) is not None:
            data.pop(key)


def _union(lists: Iterable[tuple[str, ...]]) -> list[str] | None:
    return list(dict.fromkeys(word for words in lists for word in words)) or None


def _task(architectures: Sequence[object]) -> tuple[str, str] | None:
    """Task and class, if they can be told from the names of a model's classes."""
    known = (task for name in architectures for ending, task in TASKS.items() if str(name).endswith(ending))
    return next(known, None)


def _settings(file: Path) -> Mapping[str, Any]:
    try:
        return read_json(file)
    except BadInputError:  # there is none, or none that matters here
        return {}


def _pipeline(config: Mapping[str, Any], cards: Sequence[ParentCard]) -> str | None:
    if task := _task(config.get("architectures") or ()):
        return task[0]
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
