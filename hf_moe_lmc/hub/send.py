"""Sending the files of a plan: one commit, or nothing."""

from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, ModelInfo, get_token
from huggingface_hub.errors import RepositoryNotFoundError

from hf_moe_lmc.errors import BadInputError, HubError, OutputError

from .folder_check import LOADED, check_digests, known_files, matches
from .hub_failure import TIMEOUT, hub_failures
from .made_folder import ALIGN, CONFIGURE
from .push_plan import PushPlan

GIT_ATTRIBUTES = ".gitattributes"  # the Hub writes it into every new repository
TITLES = {ALIGN: "Alignment", CONFIGURE: "Settings of an alignment"}


def send(plan: PushPlan, private: bool, create_pr: bool, token: str | None, remedy: str) -> str:
    """Check the token, the repository and the files; send them; return the address."""
    repository, api, secret = plan.repository, HfApi(token=token), token or get_token()
    with hub_failures(repository, secret, remedy):
        repository = full_name(api, repository)
        existing = _find(api, repository)
    if existing:
        _check_apart(existing, plan, private, create_pr)
    for file in plan.files:
        if secret and file.holds(secret):
            raise BadInputError(f"{file.name} holds your token; take it out before anybody sees it")
    check_digests(plan.made)
    with hub_failures(repository, secret, remedy):
        if not existing:
            api.create_repo(repository, private=private)
        commit = api.create_commit(
            repository,
            [CommitOperationAdd(file.name, _content(file.content)) for file in plan.files],
            commit_message=f"{TITLES.get(plan.made.command, 'Model')} made with hf_moe_lmc",
            create_pr=create_pr,
            # Nobody may have put anything there since it was looked at.
            parent_commit=existing.sha if existing else None,
        )
    return commit.pr_url or commit.commit_url


def _content(content: Path | bytes) -> str | bytes:
    return content if isinstance(content, bytes) else str(content)


def full_name(api: HfApi, repository: str) -> str:
    """That of the repository, once the Hub knows the token and the token may write."""
    user: dict[str, Any] = api.whoami()
    token = (user.get("auth") or {}).get("accessToken") or {}
    if token.get("role") == "read":
        raise HubError("the token may only read; use one with write access (hf auth login)")
    return repository if "/" in repository else f"{user['name']}/{repository}"


def _find(api: HfApi, repository: str) -> ModelInfo | None:
    try:
        return api.model_info(repository, timeout=TIMEOUT)
    except RepositoryNotFoundError:
        return None


def _check_apart(existing: ModelInfo, plan: PushPlan, private: bool, create_pr: bool) -> None:
    """Raise `OutputError` where what the repository holds would mix with what is sent."""
    if private and not existing.private:
        raise OutputError(f"{existing.id} is there already, and public; make it private first, or choose another name")
    sent = {file.name for file in plan.files}
    there = [sibling.rfilename for sibling in existing.siblings or [] if sibling.rfilename != GIT_ATTRIBUTES]
    ours = plan.made.marker in there
    foreign = [name for name in there if not (ours and matches(name, known_files(plan.made)))]
    if foreign and not create_pr:
        raise OutputError(
            f"{existing.id} holds {foreign[0]}, which is not of this package; choose another name, or propose it with "
            "--create-pr"
        )
    left = [name for name in there if name not in sent and matches(name, LOADED)]
    if left:
        raise OutputError(
            f"{existing.id} holds {left[0]}, which would stay and be loaded with what is sent; delete it there, or "
            "choose another name"
        )
