"""Download by id and revision -> align -> merge -> push -> download -> load: what was there is what comes back."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM

from hf_moe_lmc import Alignment, AlignmentConfig, MoeAligner, apply, cli, from_aligned_pretrained, merge
from hf_moe_lmc.alignment import open_checkpoint
from hf_moe_lmc.errors import BadInputError, HubError, OutputError
from tests.hub.server import TOKEN, Failure, Repository
from tests.models import logits


def uploaded(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def parents(made, hub):
    """org/a at the commit that is meant, which is not its last, and org/b."""
    hub.repositories["org/a"] = Repository(
        commits=[{".gitattributes": b""}, uploaded(made / "a"), uploaded(made / "b")]
    )
    hub.repositories["org/b"] = Repository(commits=[uploaded(made / "b")])
    return f"org/a@{hub.repositories['org/a'].shas[1]}", "org/b"


def load(name: str | Path, cache: Path):
    return AutoModelForCausalLM.from_pretrained(name, cache_dir=cache, experts_implementation="eager")


def test_the_whole_circle(parents, made, hub, tmp_path):
    aligner = MoeAligner.from_pretrained(*parents)
    alignment = aligner.align()
    assert alignment.push_to_hub("a-to-b").startswith(f"{hub.url}/me/a-to-b/commit/")
    again = Alignment.from_pretrained("me/a-to-b")
    assert again == alignment
    assert aligner.push_to_hub("me/merged", tmp_path / "merged", again, t=0.25).startswith(
        f"{hub.url}/me/merged/commit/"
    )
    local = merge(load(made / "a", tmp_path), load(made / "b", tmp_path), t=0.25)
    assert torch.equal(logits(load("me/merged", tmp_path / "cache")), logits(local))
    repository = hub.repositories["me/merged"]
    assert len(repository.commits) == 2
    card = ModelCard(repository.files["README.md"].decode())
    assert card.data.base_model == ["org/a", "org/b"]
    assert card.data.license == "apache-2.0"
    assert f"hf-moe-lmc merge {parents[0]} org/b@{hub.repositories['org/b'].sha} --alignment alignment" in card.text
    assert "| model.layers.0.mlp |" in card.text
    manifest = json.loads(repository.files["hf_moe_lmc_manifest.json"])
    assert manifest["reference"]["commit"] == hub.repositories["org/a"].shas[1]
    for repository in hub.repositories.values():
        assert not any(TOKEN.encode() in content for content in repository.files.values())


def test_a_model_aligned_to_another_by_revision(parents, made, hub):
    name, _, commit = parents[0].partition("@")
    found = from_aligned_pretrained("org/b", align_to=name, align_to_options={"revision": commit})
    expected = from_aligned_pretrained(made / "b", align_to=made / "a").state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.state_dict().items())
    with pytest.raises(HubError, match="org/b has no revision v9"):
        from_aligned_pretrained("org/b", align_to=name, options={"revision": "v9"})


def test_an_alignment_is_applied_by_others(parents, made, hub, tmp_path, capsys):
    """By its name alone, in Python and on the command line."""
    alignment = MoeAligner.from_pretrained(*parents).align()
    alignment.push_to_hub("org/a-to-b", private=True)
    assert hub.repositories["org/a-to-b"].private
    assert cli.main(["apply", "org/a-to-b", "org/b", "-o", str(tmp_path / "aligned")]) == 0
    apply(alignment, made / "b", tmp_path / "expected")
    found, expected = (open_checkpoint(tmp_path / name).tensors for name in ("aligned", "expected"))
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    assert AlignmentConfig.from_pretrained("org/a-to-b") == alignment.config


def test_settings_alone(hub, tmp_path):
    config = AlignmentConfig("joint", balance_scales=True)
    config.save_pretrained(tmp_path)
    assert AlignmentConfig.from_pretrained(tmp_path) == config
    config.push_to_hub("me/settings")
    assert hub.repositories["me/settings"].files.keys() == {".gitattributes", "alignment_config.json"}
    assert AlignmentConfig.from_pretrained("me/settings") == config
    AlignmentConfig().push_to_hub("me/settings")
    assert AlignmentConfig.from_pretrained("me/settings") == AlignmentConfig()
    with pytest.raises(BadInputError, match="is no name of a repository"):
        config.push_to_hub("a/b/c")
    with pytest.raises(BadInputError, match="does not hold an alignment"):
        Alignment.from_pretrained("me/settings")


def test_settings_do_not_replace_an_alignment(made, folder, hub):
    Alignment.from_pretrained(folder / "alignment").push_to_hub("org/a-to-b")
    with pytest.raises(OutputError, match=r"holds alignment\.safetensors, which would stay"):
        AlignmentConfig().push_to_hub("org/a-to-b")
    with pytest.raises(OutputError, match="holds an alignment; give another folder"):
        AlignmentConfig().save_pretrained(folder / "alignment")


@pytest.mark.parametrize(
    "config", [{"expert_order": "luck"}, {"balance_scales": 1}, {"code": "import os"}, {"expert_order": ["joint"]}, [3]]
)
def test_settings_that_are_none(config, tmp_path):
    (tmp_path / "alignment_config.json").write_text(json.dumps({"config": config}))
    with pytest.raises(BadInputError, match="does not say how to align"):
        AlignmentConfig.from_pretrained(tmp_path)


def test_the_token_is_checked_before_the_work(made, hub, tmp_path):
    aligner = MoeAligner.from_pretrained(made / "a", made / "b")
    hub.failures.append(Failure("whoami", 401))
    with pytest.raises(HubError, match=r"does not accept the token for me/merged.*; nothing was sent"):
        aligner.push_to_hub("me/merged", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_push_that_fails_keeps_the_merge(made, hub, tmp_path):
    aligner = MoeAligner.from_pretrained(made / "a", made / "b")
    hub.failures.append(Failure("commit", 500))
    with pytest.raises(HubError, match=r"the Hub failed \(500\)") as caught:
        aligner.push_to_hub("me/merged", tmp_path / "merged", create_pr=True)
    retry = str(caught.value).partition("then again: ")[2]
    assert retry == f"hf-moe-lmc push {tmp_path}/merged me/merged --create-pr"
    hub.failures.clear()
    assert cli.main(retry.split()[1:]) == 0
    assert len(hub.repositories["me/merged"].proposals) == 1
    assert "| model.layers.0.mlp |" in hub.repositories["me/merged"].proposals[0]["README.md"].decode()


def test_an_alignment_that_fails_says_what_to_do(folder, hub):
    hub.failures.append(Failure("commit", 403))
    with pytest.raises(HubError, match="save it in a FOLDER, and then: hf-moe-lmc push FOLDER org/ab"):
        Alignment.from_pretrained(folder / "alignment").push_to_hub("org/ab")


def test_the_token_is_never_told(parents, hub, tmp_path, capsys, caplog):
    """Not in what the libraries log at their most talkative, nor in a traceback, an error, or any file."""
    caplog.set_level(logging.DEBUG)
    for library in ("huggingface_hub", "transformers", "httpx2", "httpcore2"):
        caplog.set_level(logging.DEBUG, logger=library)
    merged = str(tmp_path / "merged")
    assert cli.main(["merge", *parents, "-o", merged, "--verbose", "--debug"]) == 0
    hub.failures.append(Failure("commit", 403, json.dumps({"error": f"Bearer {TOKEN}"})))
    assert cli.main(["push", merged, "me/merged", "--verbose", "--debug"]) == 6
    hub.failures.clear()
    assert cli.main(["push", merged, "me/merged", "--verbose", "--debug"]) == 0
    shown = capsys.readouterr()
    assert "Traceback" in shown.err
    assert caplog.records
    told = [shown.out, shown.err, *(f"{record.getMessage()} {record.args}" for record in caplog.records)]
    assert not any(TOKEN in text for text in told)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {"hf_moe_lmc_manifest.json", "README.md"} <= {file.name for file in files}
    assert not any(TOKEN.encode() in file.read_bytes() for file in files)


def test_a_wrong_body_of_the_right_length(parents, hub, tmp_path, capsys):
    """The Hub's fault where it sends something else than it lists; the repository's where that is what it holds."""
    command = ["merge", *parents, "-o", str(tmp_path / "merged")]
    repository = hub.repositories["org/b"]
    name = next(name for name in repository.files if name.endswith("00003-of-00005.safetensors"))
    content, repository.sent[name] = repository.files[name], b"<html>".ljust(len(repository.files[name]))
    assert cli.main(command) == 6
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"error: what the Hub sent as {name} of org/b@main is not what it lists")
    repository.commits[0][name] = repository.sent.pop(name)
    assert cli.main(command) == 3
    assert name in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "merged").exists()
    repository.commits[0][name] = content


def test_the_card_of_a_parent_that_the_hub_does_not_give(parents, hub, tmp_path, capsys):
    """Its licence is not known then, which is not the same as not stated."""
    merged = tmp_path / "merged"
    assert cli.main(["merge", *parents, "-o", str(merged)]) == 0
    (merged / "README.md").unlink()
    shutil.rmtree(tmp_path / "cache")
    hub.failures.append(Failure("README.md", 500))
    assert cli.main(["push", str(merged), "me/merged"]) == 6
    assert "error: the card of org/a cannot be had: the Hub failed (500)" in capsys.readouterr().err
    assert "me/merged" not in hub.repositories
    hub.failures.clear()
    assert cli.main(["push", str(merged), "me/merged"]) == 0


@pytest.mark.parametrize(
    ("status", "times", "code"),
    [(401, None, 6), (403, None, 6), (404, None, 6), (429, None, 6), (429, 1, 0), (500, None, 6), (500, 1, 0)],
)
def test_a_hub_that_refuses_while_an_alignment_is_fetched(status, times, code, parents, folder, hub, tmp_path, capsys):
    Alignment.from_pretrained(folder / "alignment").push_to_hub("org/a-to-b")
    hub.failures.append(Failure("models/org/a-to-b", status, times=times))
    command = ["apply", "org/a-to-b", str(folder / "b"), "-o", str(tmp_path / "out")]
    assert cli.main(command) == code
    last = (capsys.readouterr().err.splitlines() or [""])[-1]
    assert (last.startswith("error: ") and "org/a-to-b" in last) == bool(code)
    assert (tmp_path / "out").exists() == (code == 0)
