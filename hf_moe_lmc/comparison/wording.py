"""Numbers, figures and lists in words."""

from collections.abc import Sequence
from itertools import pairwise

MOST_NAMED = 4
_MOST_RUNS = 12
_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def counted(count: int, noun: str) -> str:
    """`1 layer`, `12 layers`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def numbered(noun: str, numbers: Sequence[int]) -> str:
    """`expert 3`, `experts 0, 1 and 4 to 7`."""
    ordered = sorted(set(numbers))
    runs = [[ordered[0], ordered[0]]]
    for before, number in pairwise(ordered):
        if number == before + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    parts = []
    for low, high in runs:
        parts += [f"{low} to {high}"] if high > low + 1 else [str(low), str(high)] if high > low else [str(low)]
    if len(parts) > _MOST_RUNS:
        parts = [*parts[: _MOST_RUNS - 1], f"{len(parts) - _MOST_RUNS + 1} more"]
    return f"{noun} {ordered[0]}" if len(ordered) == 1 else f"{noun}s {joined(parts)}"


def joined(parts: Sequence[str]) -> str:
    """`a, b and c`."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def listed(parts: Sequence[str]) -> str:
    """The first few, and how many more."""
    more = [f"{len(parts) - MOST_NAMED} more"] if len(parts) > MOST_NAMED else []
    return joined([*parts[:MOST_NAMED], *more])


def percent_range(figures: Sequence[float]) -> str:
    """`0.3 to 1.2 %`."""
    low, high = (
        f"{100 * figure:.2g}" if figure < 0.995 else f"{100 * figure:.0f}" for figure in (min(figures), max(figures))
    )
    return f"{high} %" if low == high else f"{low} to {high} %"


def in_words(count: int) -> str:
    """`four`."""
    return _WORDS[count] if count < len(_WORDS) else str(count)
