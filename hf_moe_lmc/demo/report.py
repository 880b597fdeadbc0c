"""What the demo found: `report.json`, and the table that people read."""

from dataclasses import asdict, dataclass
from statistics import fmean

from .comparison import MethodResult, ScrambleResult


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
                    f"{100 * fmean(losses) / naive:.0f}",
                    f"{100 * accuracy:.1f} pp",
                    f"{fmean(ranks):.1f}" if ranks else "",
                    f"{fmean(l_hats):.1f}" if l_hats else "",
                )
            )
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        return "\n".join("| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows)


def _curves(result: MethodResult) -> dict[str, object]:
    barrier = result.barrier
    return {
        **asdict(barrier),
        "loss_barrier": barrier.loss_barrier,
        "accuracy_barrier": barrier.accuracy_barrier,
        "rank": result.rank,
        "l_hat": result.l_hat,
    }
