"""What is public is documented, and what the pages say of commands is so."""

import inspect
import pkgutil
import pydoc
import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import hf_moe_lmc
from hf_moe_lmc import cli
from hf_moe_lmc.alignment.random_rewrite import scramble
from hf_moe_lmc.cli.parser import command_line
from tests import families
from tests.checkpoints.faulty import SINGLE

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

SCREEN = 51  # lines


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


@pytest.mark.parametrize("name", hf_moe_lmc.__all__)
def test_help_fits_one_screen(name):
    text = pydoc.render_doc(getattr(hf_moe_lmc, name), renderer=pydoc.plaintext)
    assert len(text.splitlines()) <= SCREEN
    assert "__" not in text  # of dataclasses and of mixins


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


def test_the_page_on_a_base_runs(tmp_path, monkeypatch):
    """Its commands, on tiny models under its names; what its YAML gives mergekit is in the order of the base."""
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "on-a-base.md").read_text(encoding="utf-8")
    base, other = (families.build("mixtral", experts=3, seed=seed) for seed in (0, 1))
    for names, model in ((("step-1000", "base", "BASE"), base), (("other-base",), other)):
        for name in names:
            model.save_pretrained(name)
    for names, model in ((("step-2000", "step-3000", "A", "never-reordered"), base), (("tuned",), other)):
        for name in names:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.01 * torch.randn_like(parameter))
            model.save_pretrained(name)
    scramble(base)[0].save_pretrained("B")
    commands = [line for block in blocks(text, "bash") for line in block.splitlines() if line]
    assert len(commands) == 6
    for number, command in enumerate(commands):
        program, *arguments = shlex.split(command)
        outputs = [f"{word}-{number}" if word == "mean" else word for word in arguments]
        assert program == "hf-moe-lmc"
        assert cli.main([*outputs, *(["--force"] if arguments[0] == "merge" else [])]) == 0, command
    aligned, never, scrambled = (load_file(Path(name) / SINGLE) for name in ("b-aligned", "never-reordered", "B"))
    assert all(torch.equal(tensor, never[key]) for key, tensor in aligned.items())
    assert any(not torch.equal(tensor, never[key]) for key, tensor in scrambled.items())
    recipes = [yaml.safe_load(block) for block in blocks(text, "yaml")]
    assert [recipe["merge_method"] for recipe in recipes] == ["ties", "slerp"]
    for recipe in recipes:
        assert all(
            (Path(name) / SINGLE).exists() for name in [recipe["base_model"], *(m["model"] for m in recipe["models"])]
        )


def blocks(text: str, language: str) -> list[str]:
    """Fenced blocks of a page."""
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
