import hashlib
import json
import os
import signal
import threading
import time
from itertools import repeat
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard, constants
from transformers import AutoModelForCausalLM

from hf_moe_lmc import Alignment, cli
from hf_moe_lmc.checkpoints import hub_limits
from hf_moe_lmc.errors import BadInputError, HubError, IncompatiblePairError, OutputError
from hf_moe_lmc.hub import plan_push, push_folder, write_card
from hf_moe_lmc.hub.push_plan import PushPlan
from tests import forked
from tests.hub.server import TOKEN, Failure, Repository, dripping
from tests.models import logits

# Of the client itself, where it sends large files.
of_the_client = pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")


def contents(folder: Path) -> dict[str, str]:
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.rglob("*") if file.is_file()}


def download(repository: Repository, folder: Path) -> Path:
    for name, content in repository.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_a_merge_goes_there_whole_and_in_one_commit(folder, hub, tmp_path, capsys):
    before = contents(folder)
    assert cli.main(["push", str(folder / "merged"), "merged-ab", "--private"]) == 0
    repository = hub.repositories["me/merged-ab"]
    assert ("POST", "/api/validate-yaml") in hub.requests
    assert capsys.readouterr().out == f"Pushed: {hub.url}/me/merged-ab/commit/{repository.sha}\n"
    assert repository.private
    assert len(repository.commits) == 2  # that of the Hub itself, and ours
    assert contents(folder) == before
    local, downloaded = (
        AutoModelForCausalLM.from_pretrained(source, experts_implementation="eager")
        for source in (folder / "merged", download(repository, tmp_path / "downloaded"))
    )
    assert torch.equal(logits(local), logits(downloaded))
    assert ModelCard(repository.files["README.md"].decode()).data.license == "apache-2.0"
    manifest = repository.files["hf_moe_lmc_manifest.json"]
    assert (
        json.loads(manifest)["xxh3"] == json.loads((folder / "merged" / "hf_moe_lmc_manifest.json").read_text())["xxh3"]
    )
    for content in repository.files.values():
        assert TOKEN.encode() not in content
        assert str(folder).encode() not in content


def test_an_alignment_alone(folder, hub, tmp_path):
    push_folder(folder / "alignment", "org/a-to-b")
    sent = Alignment.from_pretrained(download(hub.repositories["org/a-to-b"], tmp_path / "downloaded"))
    assert sent.digest == Alignment.from_pretrained(folder / "alignment").digest
    assert sent.other.name == "b"


@of_the_client
def test_large_files_go_before_the_commit(folder, hub):
    hub.lfs = True
    push_folder(folder / "merged", "org/ab")
    files = hub.repositories["org/ab"].files
    for shard in (folder / "merged").glob("*.safetensors"):
        assert files[shard.name] == shard.read_bytes()
    assert len(hub.large) == 5


@of_the_client
@pytest.mark.parametrize(
    "failure",
    [
        Failure("/lfs/", 500),
        Failure("/lfs/", 403),
        Failure("objects/batch", body="{}"),
        Failure("objects/batch", body='{"objects": [{"oid": "0", "size": 3}]}'),
        Failure("objects/batch", cut=5),
    ],
)
def test_large_files_that_do_not_arrive(failure, folder, hub):
    hub.lfs = True
    before = contents(folder)
    hub.failures.append(failure)
    with pytest.raises(
        HubError, match=f"; nothing has been committed to {hub.url}/org/ab; then again: hf-moe-lmc push "
    ):
        push_folder(folder / "merged", "org/ab")
    assert len(hub.repositories["org/ab"].commits) == 1
    assert contents(folder) == before
    hub.failures.clear()
    push_folder(folder / "merged", "org/ab")


def test_a_pull_request(folder, hub):
    hub.repositories["org/theirs"] = Repository(commits=[{"README.md": b"theirs"}])
    address = push_folder(folder / "merged", "org/theirs", create_pr=True)
    repository = hub.repositories["org/theirs"]
    assert address == f"{hub.url}/org/theirs/discussions/1"
    assert repository.files == {"README.md": b"theirs"}
    assert {"config.json", "README.md", "hf_moe_lmc_manifest.json"} <= repository.proposals[0].keys()


def test_examples_load_from_where_it_goes(folder, hub):
    """Of a name without owner, too."""
    write_card(folder / "merged")
    push_folder(folder / "merged", "ab")
    text = hub.repositories["me/ab"].files["README.md"].decode()
    assert 'AutoModelForCausalLM.from_pretrained("me/ab",' in text
    assert '"merged"' not in text
    push_folder(folder / "alignment", "org/a-to-b")
    text = hub.repositories["org/a-to-b"].files["README.md"].decode()
    assert "hf-moe-lmc apply org/a-to-b b -o aligned\n" in text
    assert 'Alignment.from_pretrained("org/a-to-b")' in text


@pytest.mark.parametrize("where", ["flag", "card"])
def test_an_invented_license(where, folder, hub, capsys):
    command = ["push", str(folder / "merged"), "org/ab", "--dry-run"]
    if where == "card":
        (folder / "merged" / "README.md").write_text("---\nlicense: bananas\n---\n")
    assert cli.main(command + ["--license", "bananas"] * (where == "flag")) == 3
    assert "error: 'bananas' is no license of the Hub; " in capsys.readouterr().err
    assert hub.requests == []


def test_pushed_again(folder, hub):
    push_folder(folder / "merged", "org/ab")
    write_card(folder / "merged", Alignment.from_pretrained(folder / "alignment"))
    push_folder(folder / "merged", "org/ab")
    assert b"distance before" in hub.repositories["org/ab"].files["README.md"]
    assert len(hub.repositories["org/ab"].commits) == 3


def test_another_commit_in_between(folder, hub, monkeypatch):
    push_folder(folder / "merged", "org/ab")
    theirs = hub.repositories["org/ab"].commits
    monkeypatch.setattr(PushPlan, "check_digests", lambda plan: theirs.append({"config.json": b"theirs"}))
    (folder / "merged" / "README.md").write_text("---\nlicense: mit\n---\n")
    with pytest.raises(HubError, match="org/ab was changed by another meanwhile"):
        push_folder(folder / "merged", "org/ab")
    assert len(theirs) == 3
    assert theirs[-1] == {"config.json": b"theirs"}


def test_a_dry_run_sends_nothing(folder, hub, capsys):
    assert cli.main(["push", str(folder / "merged"), "org/ab", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("Would go to org/ab, license apache-2.0:\n")
    sizes = {name: size for size, name in (line.split() for line in shown.splitlines()[1:])}
    assert int(sizes["model-00001-of-00005.safetensors"].replace(",", "")) == (
        (folder / "merged" / "model-00001-of-00005.safetensors").stat().st_size
    )
    assert hub.requests == []
    assert not (folder / "merged" / "README.md").exists()


@pytest.mark.parametrize(
    ("there", "line"),
    [
        ({"README.md": b"theirs"}, "holds README.md, which is not of this package.*--create-pr"),
        ({"hf_moe_lmc_manifest.json": b"{}", "notes.txt": b""}, "holds notes.txt, which is not of this package"),
        (
            {"hf_moe_lmc_manifest.json": b"{}", "model.safetensors": b""},
            "holds model.safetensors, which would stay and be loaded",
        ),
        ({"alignment_config.json": b"{}"}, "holds alignment_config.json, which is not of this package"),
    ],
)
def test_foreign_content_is_left_alone(there, line, folder, hub):
    hub.repositories["org/theirs"] = Repository(commits=[there])
    with pytest.raises(OutputError, match=line):
        push_folder(folder / "merged", "org/theirs")
    assert hub.repositories["org/theirs"].commits == [there]


def test_a_license_that_was_added_there_stays(folder, hub):
    push_folder(folder / "merged", "org/ab")
    hub.repositories["org/ab"].commits.append({"LICENSE": b"mine"})
    write_card(folder / "merged", license="mit")
    push_folder(folder / "merged", "org/ab")
    assert hub.repositories["org/ab"].files["LICENSE"] == b"mine"


def test_a_proposal_that_would_mix_weights_is_refused(folder, hub):
    hub.repositories["org/theirs"] = Repository(commits=[{"model.safetensors": b""}])
    with pytest.raises(OutputError, match="would stay and be loaded"):
        push_folder(folder / "merged", "org/theirs", create_pr=True)


def test_private_work_does_not_go_to_a_public_place(folder, hub):
    hub.repositories["org/ab"] = Repository()
    with pytest.raises(OutputError, match="org/ab is there already, and public"):
        push_folder(folder / "merged", "org/ab", private=True)


@pytest.mark.parametrize(
    ("part", "status", "line"),
    [
        ("whoami", 401, "the Hub does not accept the token"),
        ("whoami", 500, r"the Hub failed \(500\) for org/ab; try again later"),
        ("whoami", 429, "too many requests"),
        ("create", 403, "the token may not write to org/ab"),
        ("preupload", 404, "org/ab is not on the Hub, or the token may not see it"),
        ("preupload", 503, r"the Hub failed \(503\)"),
        ("preupload", 429, "too many requests"),
        ("commit", 403, "the token may not write to org/ab"),
        ("commit", 409, "org/ab was changed by another meanwhile"),
        ("commit", 412, "org/ab was changed by another meanwhile"),
        ("commit", 418, "the Hub refused with 418"),
    ],
)
def test_refusals(part, status, line, folder, hub):
    before = contents(folder)
    # A server that repeats what it was sent.
    hub.failures.append(Failure(part, status, json.dumps({"error": f"Bearer {TOKEN}"})))
    with pytest.raises(HubError, match=line) as caught:
        push_folder(folder / "merged", "org/ab", create_pr=True)
    message = str(caught.value)
    assert message.endswith(f"then again: hf-moe-lmc push {folder}/merged org/ab --create-pr")
    assert TOKEN not in message
    assert contents(folder) == before
    assert all(len(repository.commits) == 1 for repository in hub.repositories.values())
    hub.failures.clear()
    push_folder(folder / "merged", "org/ab", create_pr=True)


@pytest.mark.parametrize("part", ["whoami", "preupload", "commit"])
@pytest.mark.parametrize("body", ["<html>", "[]", "{}"])
def test_nonsense(part, body, folder, hub):
    hub.failures.append(Failure(part, 200, body))
    with pytest.raises(HubError, match="something else than expected"):
        push_folder(folder / "merged", "ab")


@pytest.mark.parametrize("part", ["whoami", "preupload", "commit"])
def test_answers_that_break_off(part, folder, hub, capsys):
    before = contents(folder)
    hub.failures.append(Failure(part, 200, cut=5))
    assert cli.main(["push", str(folder / "merged"), "org/ab"]) == 6
    assert (shown := capsys.readouterr().err.splitlines()[-1]).startswith(
        "error: the connection to the Hub failed for "
    )
    assert shown.endswith(f"then again: hf-moe-lmc push {folder}/merged org/ab")
    assert contents(folder) == before
    assert all(len(repository.commits) == 1 for repository in hub.repositories.values())


@of_the_client
@pytest.mark.parametrize("create_pr", [False, True])
@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("lfs", [True, False])
def test_a_commit_whose_answer_is_lost(lfs, new, create_pr, folder, hub):
    """It is there, and its address is given."""
    hub.lfs = lfs
    if not new:
        push_folder(folder / "merged", "org/ab")
        write_card(folder / "merged", license="mit")
    hub.failures.append(Failure("/commit/", body=None, cut=5))
    address = push_folder(folder / "merged", "org/ab", create_pr=create_pr)
    repository = hub.repositories["org/ab"]
    there = "discussions/1" if create_pr else f"commit/{repository.sha}"
    assert address == f"{hub.url}/org/ab/{there}"
    assert len(repository.commits) == (1 if new else 2) + (not create_pr)
    sent = repository.proposals[0] if create_pr else repository.commits[-1]
    assert (b"license: mit" in sent["README.md"]) == (not new)


def test_a_push_of_what_is_there_already_is_not_taken_for_a_commit(folder, hub):
    push_folder(folder / "merged", "org/ab")
    hub.failures.append(Failure("/commit/", 403))
    with pytest.raises(HubError, match=f"may not write to org/ab.*; nothing has been committed to {hub.url}/org/ab; "):
        push_folder(folder / "merged", "org/ab")


def test_a_hub_that_falls_silent_after_a_commit(folder, hub):
    """Nobody knows then, and nothing else is said."""
    hub.failures.append(Failure("/commit/", body=None, cut=5))
    hub.failures.append(Failure("revision/main", 500))
    with pytest.raises(
        HubError, match=f"whether it was committed is not known: look at {hub.url}/org/ab; if not, then"
    ):
        push_folder(folder / "merged", "org/ab")
    assert len(hub.repositories["org/ab"].commits) == 2


def test_nothing_that_steers_a_terminal_is_printed(folder, hub, capsys):
    """Neither of names nor of what the Hub says."""
    (folder / "merged" / "tokenizer\x1b[2J.json").write_text("{}")
    assert cli.main(["push", str(folder / "merged"), "org/ab", "--dry-run"]) == 0
    assert r"tokenizer\x1b[2J.json" in capsys.readouterr().out
    hub.failures.append(Failure("whoami", 403, json.dumps({"error": "\x1b[2J" + 10**6 * "x"})))
    assert cli.main(["push", str(folder / "merged"), "org/ab"]) == 6
    shown = capsys.readouterr().err
    assert r"\x1b[2J" in shown
    assert "\x1b[2J" not in shown
    assert max(map(len, shown.splitlines())) < 5000


def test_too_many_requests_once(folder, hub):
    hub.failures.append(Failure("preupload", 429, times=1))
    push_folder(folder / "merged", "org/ab")
    assert len(hub.repositories["org/ab"].commits) == 2


@of_the_client
@pytest.mark.parametrize("part", ["/lfs/", "objects/batch", "preupload", "/commit/"])
def test_answers_without_end(part, folder, hub, monkeypatch):
    """They drip, or are endless."""
    hub.lfs = True
    monkeypatch.setattr(hub_limits, "DEADLINE", 2)
    monkeypatch.setattr(hub_limits, "LARGEST", 10**6)
    hub.failures.append(Failure(part, parts=dripping if part == "/lfs/" else lambda: repeat(b" " * 2**16)))
    line = "did not answer in time" if part == "/lfs/" else "answers hold more than 1000000 bytes"
    with pytest.raises(HubError, match=f"{line}.*; nothing has been committed to {hub.url}/org/ab; then again: "):
        push_folder(folder / "merged", "org/ab")
    assert len(hub.repositories["org/ab"].commits) == 1


def test_a_stalled_hub(folder, hub, monkeypatch):
    monkeypatch.setattr(hub_limits, "TIMEOUT", 0.2)
    hub.failures.append(Failure("whoami", 200, delay=1))
    with pytest.raises(HubError, match="the Hub did not answer in time"):
        push_folder(folder / "merged", "org/ab")


def test_no_hub_at_all(folder, hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(HubError, match="the connection to the Hub failed"):
        push_folder(folder / "merged", "org/ab")


def test_offline(folder, hub, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert cli.main(["push", str(folder / "merged"), "org/ab"]) == 6
    shown = capsys.readouterr().err.splitlines()[-1]
    assert shown.startswith("error: the network may not be used (HF_HUB_OFFLINE is set); nothing was committed")
    assert hub.requests == []


def test_tokens(folder, hub, monkeypatch):
    hub.role = "read"
    with pytest.raises(HubError, match="the token may only read"):
        push_folder(folder / "merged", "org/ab")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(folder / "absent"))
    with pytest.raises(HubError, match="no token of the Hub was found; log in"):
        push_folder(folder / "merged", "org/ab")
    hub.role = "write"
    push_folder(folder / "merged", "org/ab", token=TOKEN)
    (folder / "merged" / "README.md").write_text(f"---\nlicense: mit\n---\nMy token is {TOKEN}.\n")
    with pytest.raises(BadInputError, match=r"README\.md holds your token") as caught:
        push_folder(folder / "merged", "org/ab", token=TOKEN)
    assert TOKEN not in str(caught.value)


def test_metadata_that_the_hub_refuses(folder, hub):
    (folder / "merged" / "README.md").write_text("---\nlicense: mit\ntags: [3]\n---\n")
    with pytest.raises(BadInputError, match="does not accept the metadata of the card"):
        push_folder(folder / "merged", "org/ab")


def pushing(url: str, folder: Path, error: Path) -> int:
    """A push, in a process of its own."""
    constants.ENDPOINT, os.environ["HF_TOKEN"] = url, TOKEN
    return forked.command(["push", str(folder), "org/ab"], error)


def test_a_killed_push_commits_nothing(folder, hub, tmp_path):
    before = contents(folder)
    hub.failures.append(Failure("preupload", 200, delay=60))
    process = forked.start(pushing, hub.url, folder / "merged", tmp_path / "error")
    deadline = time.monotonic() + 100
    while not any("preupload" in path for _, path in hub.requests) and time.monotonic() < deadline:
        threading.Event().wait(0.05)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert len(hub.repositories["org/ab"].commits) == 1
    assert contents(folder) == before


def test_licenses_of_the_parents(folder, hub, capsys):
    (folder / "a" / "README.md").write_text("---\nlicense: gpl-2.0\n---\n")
    with pytest.raises(IncompatiblePairError, match=r"gpl-2.0 \(a\), apache-2.0 \(b\)"):
        plan_push(folder / "merged", "org/ab")
    (folder / "b" / "README.md").unlink()
    assert cli.main(["push", str(folder / "merged"), "org/ab"]) == 3
    assert "the card of b names no license" in capsys.readouterr().err
    assert hub.requests == []
    assert cli.main(["push", str(folder / "merged"), "org/ab", "--license", "gpl-2.0"]) == 0
    assert b"license: gpl-2.0" in hub.repositories["org/ab"].files["README.md"]


def spoil(folder: Path) -> None:
    shard = folder / "model-00001-of-00005.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "line"),
    [
        (lambda merged: (merged / "notes.txt").write_text(""), "notes.txt was not written by this package"),
        (lambda merged: (merged / ".env").write_text(""), ".env was not written by this package"),
        (lambda merged: os.mkfifo(merged / "README.md"), "README.md is no plain file"),
        (lambda merged: (merged / "README.md").symlink_to("/dev/zero"), "README.md is a link"),
        (lambda merged: (merged / "vocab.txt").symlink_to("/etc/hosts"), "vocab.txt is a link"),
        (lambda merged: (merged / "model-9.safetensors").write_bytes(b""), "model-9.safetensors belongs to no tensor"),
        (lambda merged: (merged / "model-00001-of-00005.safetensors").unlink(), "is missing"),
        (lambda merged: (merged / "hf_moe_lmc_manifest.json").unlink(), "holds no hf_moe_lmc_manifest.json"),
        (spoil, "is not what was written there"),
    ],
)
def test_a_folder_that_is_not_as_it_was_written(harm, line, folder, hub):
    harm(folder / "merged")
    with pytest.raises(BadInputError, match=line):
        push_folder(folder / "merged", "org/ab")
    assert not hub.repositories


@pytest.mark.parametrize("name", ["", "a/b/c", "../x", "a b", "org/-x-"])
def test_names_that_are_none(name, folder):
    with pytest.raises(BadInputError, match="is no name of a repository"):
        plan_push(folder / "merged", name)
