"""What is public is documented, and what the pages say of commands is so."""

import inspect
import pkgutil
import re
from importlib import import_module
from pathlib import Path

import pytest

import hf_moe_lmc
from hf_moe_lmc.cli.parser import command_line

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").glob("*.md")]
PACKAGES = [
    hf_moe_lmc,
    *(
        import_module(f"hf_moe_lmc.{module.name}")
        for module in pkgutil.iter_modules(hf_moe_lmc.__path__)
        if module.ispkg
    ),
]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_public_names_are_documented(package):
    assert package.__doc__
    for name in package.__all__:
        value = getattr(package, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__doc__, name
        own = vars(value).items() if inspect.isclass(value) and value.__module__.startswith("hf_moe_lmc") else ()
        for method, member in own:
            if not method.startswith("_") and callable(getattr(value, method)):
                assert inspect.getdoc(getattr(value, method)), f"{name}.{method}: {member}"


def test_it_says_that_it_is_typed():
    assert (Path(hf_moe_lmc.__file__).parent / "py.typed").exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_flags_of_commands_exist(page):
    """In blocks and in the middle of sentences."""
    commands = next(action.choices for action in command_line()._actions if action.metavar == "COMMAND")
    for name, words in re.findall(
        r"(?:hf-moe-lmc|hf_moe_lmc\.cli) ([a-z]+)\b([^`\n]*)", page.read_text(encoding="utf-8")
    ):
        if name in commands:
            known = commands[name]._option_string_actions
            assert set(re.findall(r"(?<!\S)--?[a-z][a-z-]*", words)) <= known.keys(), f"{name}{words}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_scripts_that_are_named_exist(page):
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#:]+)\)", text) if not link.startswith("$")]
    scripts = re.findall(r"\bexamples/\w+\.py\b", text)
    for place in [page.parent / link for link in links] + [ROOT / script for script in scripts]:
        assert place.exists(), place
