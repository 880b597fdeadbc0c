"""Markdown of cards: read from files of others, cut into sections, and rendered with every value escaped."""

import re
import shlex
from collections.abc import Container, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from hf_moe_lmc.checkpoints import read_small_file
from hf_moe_lmc.errors import BadInputError, one_line

MAX_CARD_BYTES = 2**20
MAX_METADATA_BYTES = 2**15  # PyYAML reads some 10 kB a second
MAX_NESTING = 20

_SPECIAL = re.compile(r"[\\`*_{}\[\]|~$!]")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


class Markdown(str):
    """Text that is Markdown already and is not escaped again."""


def read_markdown(file: Path) -> str:
    """The text of a file.

    Raises:
        BadInputError: it is not a plain file, is too large, or is not UTF-8.
    """
    try:
        return read_small_file(file, MAX_CARD_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadInputError(f"{file} is not UTF-8 text; move it away") from None


def front_matter(text: str, keys: Container[str] | None = None) -> dict[str, Any]:
    """The metadata at the top of a card; with `keys`, those entries only, and the size of the others does not matter.

    Raises:
        BadInputError: it is too large, no mapping, nested deeply, or has aliases, which can grow without bound.
    """
    block = REGEX_YAML_BLOCK.search(text)
    lines = block.group(2) if block else ""
    if keys is not None:
        lines = _entries(lines, keys)
    if len(lines.encode()) > MAX_METADATA_BYTES:
        raise BadInputError(f"metadata of more than {MAX_METADATA_BYTES} bytes")
    try:
        metadata = yaml.load(lines, _PlainLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise BadInputError(f"metadata that is no plain YAML: {error}") from None
    if not isinstance(metadata, dict | None):
        raise BadInputError("metadata that is no mapping")
    return metadata or {}


def replace_sections(text: str, new: str, headings: Sequence[str], order: Sequence[str]) -> str:
    """`text`, in which the sections under some headings of the second level are those of `new`, which has them or not.

    A section that `text` lacks comes before the first of those that follow it in `order` and that `text` has.
    """
    sections, others = _sections(text), dict(_sections(new))
    for heading in headings:
        if heading not in others:
            continue
        present = [name for name, _ in sections]
        if heading in present:
            sections[present.index(heading)] = (heading, others[heading])
        else:
            later = [name for name in order[order.index(heading) + 1 :] if name in present]
            sections.insert(present.index(later[0]) if later else len(sections), (heading, others[heading]))
    return "\n\n".join(section.strip("\n") for _, section in sections if section.strip()) + "\n"


def replace_in_section(text: str, heading: str, pattern: re.Pattern[str], new: str) -> str:
    """`text`, in which every match of `pattern` in the section under `heading` is `new`."""
    return "".join(
        pattern.sub(lambda match: new, section) if name == heading else section for name, section in _sections(text)
    )


def _sections(text: str) -> list[tuple[str, str]]:
    """(heading of the second level, its section with it); "" before the first. Headings in code are none."""
    sections, fenced = [("", "")], False
    for line in text.splitlines(keepends=True):
        fenced ^= line.lstrip().startswith(("```", "~~~"))
        if line.startswith("## ") and not fenced:
            sections.append((line[3:].strip(), ""))
        heading, before = sections[-1]
        sections[-1] = (heading, before + line)
    return sections


class _PlainLoader(yaml.SafeLoader):
    """Neither aliases nor deep nesting."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent) or self.depth == MAX_NESTING:
            raise yaml.YAMLError("aliases, or nested deeply")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _entries(lines: str, keys: Container[str]) -> str:
    """The lines of some entries of a mapping at the top level."""
    kept, wanted = [], False
    for line in lines.splitlines():
        if key := re.match(r"""["']?(\w[\w-]*)["']?\s*:""", line):
            wanted = key.group(1) in keys
        kept += [line] * wanted
    return "\n".join(kept)


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
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> Environment:
    """Compiles each template once."""
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        finalize=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # `escape` does it, for Markdown rather than for HTML alone
    )
