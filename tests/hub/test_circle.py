"""Download by id and revision -> align -> merge -> push -> download -> load: what was there is what comes back."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM

from hf_moe_lmc import Alignment, AlignmentConfig, align, cli, merge
from hf_moe_lmc.alignment import open_model
from hf_moe_lmc.errors import BadInputError, HubError
from hf_moe_lmc.hub import check_push, push_alignment, push_folder, write_card
from tests.hub.conftest import written
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
    alignment = align(*parents)
    assert push_alignment(alignment, "a-to-b").startswith(f"{hub.url}/me/a-to-b/commit/")
    again = Alignment.from_pretrained("me/a-to-b")
    assert again == alignment
    assert AlignmentConfig.from_pretrained("me/a-to-b") == alignment.config
    merged = written("merge", parents, tmp_path / "merged", again, t=0.25)
    write_card(merged, again)
    assert push_folder(merged, "me/merged").startswith(f"{hub.url}/me/merged/commit/")
    local = merge(load(made / "a", tmp_path), load(made / "b", tmp_path), t=0.25, force=True)
    assert torch.equal(logits(load("me/merged", tmp_path / "cache")), logits(local))
    repository = hub.repositories["me/merged"]
    assert len(repository.commits) == 2
    card = ModelCard(repository.files["README.md"].decode())
    assert card.data.base_model == ["org/a", "org/b"]
    assert card.data.license == "apache-2.0"
    assert f"hf-moe-lmc merge {parents[0]} org/b@{hub.repositories['org/b'].sha} --alignment alignment" in card.text
    assert "| model.layers.0.mlp |" in card.text
    manifest = json.loads(repository.files["hf_moe_lmc_manifest.json"])
    assert manifest["models"][0]["commit"] == hub.repositories["org/a"].shas[1]
    for repository in hub.repositories.values():
        assert not any(TOKEN.encode() in content for content in repository.files.values())


def test_an_alignment_is_applied_by_others(parents, made, hub, tmp_path):
    """By its name alone."""
    alignment = align(*parents)
    push_alignment(alignment, "org/a-to-b", private=True)
    assert hub.repositories["org/a-to-b"].private
    written("apply", ["org/b"], tmp_path / "aligned", Alignment.from_pretrained("org/a-to-b"))
    written("apply", [made / "b"], tmp_path / "expected", alignment)
    applied, expected = (open_model(tmp_path / name).tensors for name in ("aligned", "expected"))
    assert all(torch.equal(tensor, applied[name]) for name, tensor in expected.items())


@pytest.mark.parametrize("config", [{"expert_order": "luck"}, {"expert_order": ["joint"]}, [3]])
def test_settings_that_are_none(config, tmp_path):
    (tmp_path / "alignment_config.json").write_text(json.dumps({"config": config}))
    with pytest.raises(BadInputError, match="does not say how to align"):
        AlignmentConfig.from_pretrained(tmp_path)


def test_token_and_license_are_checked_before_the_work(hub):
    assert check_push("merged") == "me/merged"
    hub.failures.append(Failure("whoami", 401))
    with pytest.raises(HubError, match=r"does not accept the token for me/merged.*; nothing was sent"):
        check_push("me/merged")
    with pytest.raises(BadInputError, match="'bananas' is no license"):
        check_push("me/merged", "bananas")


def test_an_alignment_that_fails_says_what_to_do(folder, hub):
    hub.failures.append(Failure("commit", 403))
    with pytest.raises(HubError, match="save it in a FOLDER, and then: hf-moe-lmc push FOLDER org/ab"):
        push_alignment(Alignment.from_pretrained(folder / "alignment"), "org/ab")


def test_the_token_is_never_told(parents, hub, tmp_path, capsys, caplog):
    """Not in what the libraries log at their most talkative, nor in a traceback, an error, or any file."""
    caplog.set_level(logging.DEBUG)
    for library in ("huggingface_hub", "transformers", "httpx2", "httpcore2"):
        caplog.set_level(logging.DEBUG, logger=library)
    alignment = align(*parents)
    merged = str(written("merge", parents, tmp_path / "merged", alignment))
    write_card(merged, alignment)
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


def test_the_card_of_a_parent_that_the_hub_does_not_give(parents, hub, tmp_path, capsys):
    """Its license is not known then, which is not the same as not stated."""
    merged = written("merge", parents, tmp_path / "merged", align(*parents))
    shutil.rmtree(tmp_path / "cache")
    hub.failures.append(Failure("README.md", 500))
    assert cli.main(["push", str(merged), "me/merged"]) == 6
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: no card of org/a: the Hub failed (500)")
    assert last.endswith("or name a license with --license")
    assert "me/merged" not in hub.repositories
    hub.failures.clear()
    assert cli.main(["push", str(merged), "me/merged"]) == 0


@pytest.mark.parametrize(
    ("status", "times"), [(401, None), (403, None), (404, None), (429, None), (429, 1), (500, None), (500, 1)]
)
def test_a_hub_that_refuses_while_an_alignment_is_fetched(status, times, folder, hub):
    alignment = Alignment.from_pretrained(folder / "alignment")
    push_alignment(alignment, "org/a-to-b")
    hub.failures.append(Failure("models/org/a-to-b", status, times=times))
    if times:
        assert Alignment.from_pretrained("org/a-to-b").digest == alignment.digest
    else:
        with pytest.raises(HubError, match="org/a-to-b"):
            Alignment.from_pretrained("org/a-to-b")
