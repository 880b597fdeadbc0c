"""Hooks of the site (`mkdocs.yml`): the README is its first page; it holds files outside docs/ that pages link to."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
OUTSIDE = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "benchmarks/**/*.py",
    "benchmarks/results/*",
    "examples/*.*",
    "examples/space/*.*",
    "model_cards/**/*.*",
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the README and the files outside docs/."""
    for pattern in OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    files.append(File.generated(config, "index.md", abs_src_path=str(ROOT / "README.md")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links as they are in the site, where docs/ is the root."""
    if "/" in page.file.src_uri:
        return markdown.replace("../docs/", "../")
    return markdown.replace("](docs/", "](").replace("](../", "](")
