"""Publishing what this package made: one commit, or nothing."""

import shlex
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, ModelInfo, get_token
from huggingface_hub.errors import RepositoryNotFoundError

from hf_moe_lmc.errors import BadInputError, HubError, OutputError

from .folder_check import LOADED, check_digests, known_files, matches
from .hub_failure import TIMEOUT, hub_failures
from .made_folder import ALIGN
from .push_plan import PushPlan, plan_push

GIT_ATTRIBUTES = ".gitattributes"  # the Hub writes it into every new repository


def push_folder(
    folder: str | Path,
    repository: str,
    private: bool = False,
    create_pr: bool = False,
    licence: str | None = None,
    token: str | None = None,
) -> str:
    """Send a folder that `merge`, `apply` or `align` wrote to a repository on the Hub, in one commit.

    The repository is made if it does not exist; no file of it is deleted. Whatever fails, nothing is committed, and
    the folder stays as it is.

    Args:
        folder: is not changed; see `plan_push` for what is sent.
        repository: `name` or `organisation/name`.
        private: whether only members may see it.
        create_pr: propose the commit as a pull request.
        licence: identifier of the Hub; None takes what the card states or the cards of the parents allow.
        token: None takes that of `hf auth login` or HF_TOKEN.

    Returns:
        Address of the commit or of the pull request.

    Raises:
        BadInputError, IncompatiblePairError: as `plan_push`; or a tensor is not what was written; or a file holds the
            token; or the Hub does not accept the metadata of the card.
        OutputError: the repository holds files that would mix with those of the folder, or is not private.
        HubError: the Hub or the network failed, or refused.
    """
    flags = {"--private": private, "--create-pr": create_pr}
    command = ["hf-moe-lmc", "push", str(folder), repository, *(flag for flag, given in flags.items() if given)]
    command += ["--license", licence] if licence else []
    remedy = f"nothing was committed and {folder} is as it was; then again: {shlex.join(command)}"
    plan, api, secret = plan_push(folder, repository, licence, token), HfApi(token=token), token or get_token()
    with hub_failures(repository, secret, remedy):
        repository = _check_token(api, repository)
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
            commit_message=f"{'Alignment' if plan.made.command == ALIGN else 'Model'} made with hf_moe_lmc",
            create_pr=create_pr,
            # Nobody may have put anything there since it was looked at.
            parent_commit=existing.sha if existing else None,
        )
    return commit.pr_url or commit.commit_url


def _content(content: Path | bytes) -> str | bytes:
    return content if isinstance(content, bytes) else str(content)


def _check_token(api: HfApi, repository: str) -> str:
    """The full name of the repository, once the Hub knows the token and the token may write."""
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
