"""Templates of Markdown in which every value is escaped, wherever it came from."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

_SPECIAL = re.compile(r"[\\`*_{}\[\]|~$!]")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


class Markdown(str):
    """Text that is Markdown already and is not escaped again."""


def one_line(text: str) -> str:
    """`text` without characters that cannot be printed, every run of white space one space."""
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())


def escape(value: object) -> str:
    """Markdown of one line that reads as `value`: no markup, no HTML, no new cell of a table."""
    if isinstance(value, Markdown):
        return value
    text = "".join(_ENTITIES.get(character, character) for character in one_line(str(value)))
    return _SPECIAL.sub(r"\\\g<0>", text)


def shell_command(words: Sequence[str]) -> Markdown:
    """One line for a fenced block: the command of `words`, quoted for a shell."""
    return Markdown(shlex.join(one_line(word) for word in words))


def render(template: str, **values: object) -> str:
    """The template of that name in this folder, filled in; a value that it lacks is an error."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        finalize=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # `escape` does it, for Markdown rather than for HTML alone
    )
    return environment.get_template(template).render(**values)
