"""Publishing a folder or an alignment: one commit, or nothing."""

import shlex
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, ModelInfo, get_token
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.utils.sha import git_hash

from hf_moe_lmc.alignment import Alignment
from hf_moe_lmc.checkpoints.hub_errors import hub_access
from hf_moe_lmc.checkpoints.hub_limits import TIMEOUT
from hf_moe_lmc.errors import BadInputError, HubError, MoeLmcError, OutputError

from .licenses import known_identifier
from .push_plan import LOADED, PushPlan, check_repo_id, known_files, matches, plan_push

GIT_ATTRIBUTES = ".gitattributes"  # the Hub writes it into every new repository


def push_folder(
    folder: str | Path,
    repo_id: str,
    private: bool = False,
    create_pr: bool = False,
    license: str | None = None,
    token: str | None = None,
) -> str:
    """Send a folder that `merge`, `apply` or `align` wrote to a repository on the Hub, in one commit.

    The repository is made if it does not exist; no file of it is deleted. Whatever fails, either all is committed or
    nothing, and the folder stays as it is. Where the answer of the Hub is lost, it is asked for what it holds.

    Args:
        folder: is not changed; see `plan_push` for the files that are sent.
        repo_id: `name` or `organisation/name`.
        private: whether only members may see it.
        create_pr: propose the commit as a pull request.
        license: identifier of the Hub; None takes what the card states or the cards of the parents allow.
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
    command = ["hf-moe-lmc", "push", str(folder), repo_id, *(flag for flag, given in flags.items() if given)]
    command += ["--license", license] if license else []
    again = f"then again: {shlex.join(command)}"
    return _send(plan_push(folder, repo_id, license, token), private, create_pr, token, again)


def push_alignment(
    alignment: Alignment,
    repo_id: str,
    private: bool = False,
    create_pr: bool = False,
    license: str | None = None,
    token: str | None = None,
) -> str:
    """As `push_folder`, for an alignment that need not be saved before."""
    again = f"save it in a FOLDER, and then: hf-moe-lmc push FOLDER {repo_id}"
    with TemporaryDirectory() as folder:
        alignment.save_pretrained(folder)
        return _send(plan_push(folder, repo_id, license, token), private, create_pr, token, again)


def check_push(repo_id: str, license: str | None = None, token: str | None = None) -> str:
    """The full name of `repo_id`, after all checks of a push that can be made before there is anything to push.

    Raises:
        BadInputError: it is no name of a repository, or there is no such license.
        HubError: the token may not write, or there is none, or the Hub does not answer.
    """
    check_repo_id(repo_id)
    if license:
        known_identifier(license)
    with hub_access(repo_id, writing=True, token=token, remedy="nothing was sent"):
        return _full_name(HfApi(token=token), repo_id)


def _send(plan: PushPlan, private: bool, create_pr: bool, token: str | None, again: str) -> str:
    """Check the token, the repository and the files; send them; return the address."""
    api, secret = HfApi(token=token), token or get_token()
    access = partial(hub_access, writing=True, token=token)
    remedy = f"nothing was committed; {again}"
    with access(plan.repo_id, remedy=remedy):
        plan = plan.to(_full_name(api, plan.repo_id))
        existing = _existing(api, plan.repo_id)
    if existing:
        _check_apart(existing, plan, private, create_pr)
    for file in plan.files:
        if secret and file.holds(secret):
            raise BadInputError(f"{file.name} holds your token; take it out before anybody sees it")
    plan.check_digests()
    with access(plan.repo_id, remedy=remedy):
        if not existing:
            api.create_repo(plan.repo_id, private=private)
        commit = _Commit(api, plan, (existing or api.model_info(plan.repo_id)).sha, create_pr)
    page = f"{api.endpoint}/{plan.repo_id}"
    try:
        with access(plan.repo_id, remedy=f"nothing has been committed to {page}; {again}"):
            return commit.send()
    except MoeLmcError as error:
        # Perhaps only the answer was lost.
        with access(plan.repo_id, remedy=f"whether it was committed is not known: look at {page}; if not, {again}"):
            if address := commit.find():
                return address
        raise error from None


class _Commit:
    """The one commit of a push, on top of the commit `parent`."""

    def __init__(self, api: HfApi, plan: PushPlan, parent: str | None, create_pr: bool):
        self.api, self.repo_id, self.parent, self.create_pr = api, plan.repo_id, parent, create_pr
        self.title = f"{'Alignment' if plan.output.command == 'align' else 'Model'} made with hf_moe_lmc"
        self.operations = [CommitOperationAdd(file.name, _content(file.content)) for file in plan.files]
        self.proposals = self._proposals() if create_pr else set()

    def send(self) -> str:
        """Send it, and return its address."""
        # Nobody may have put anything there since it was looked at.
        commit = self.api.create_commit(
            self.repo_id,
            self.operations,
            commit_message=self.title,
            create_pr=self.create_pr,
            parent_commit=self.parent,
        )
        return commit.pr_url or commit.commit_url

    def find(self) -> str | None:
        """Its address, if the repository holds it."""
        page = f"{self.api.endpoint}/{self.repo_id}"
        for revision in sorted(self._proposals() - self.proposals) if self.create_pr else ["main"]:
            info = self.api.model_info(self.repo_id, revision=revision, files_metadata=True)
            if info.sha != self.parent and self._is_in(info):
                number = revision.rpartition("/")[2]
                return f"{page}/discussions/{number}" if self.create_pr else f"{page}/commit/{info.sha}"
        return None

    def _proposals(self) -> set[str]:
        """The revisions of all pull requests."""
        refs = self.api.list_repo_refs(self.repo_id, include_pull_requests=True)
        return {ref.ref for ref in refs.pull_requests or []}

    def _is_in(self, info: ModelInfo) -> bool:
        """Whether a revision holds all its files."""
        there = {sibling.rfilename: sibling for sibling in info.siblings or []}
        for operation in self.operations:
            sibling = there.get(operation.path_in_repo)
            if sibling is None:
                return False
            if sibling.lfs:
                same = sibling.lfs.sha256 == operation.upload_info.sha256.hex()
            else:
                with operation.as_file() as file:
                    same = sibling.blob_id == git_hash(file.read())
            if not same:
                return False
        return True


def _content(content: Path | bytes) -> str | bytes:
    return content if isinstance(content, bytes) else str(content)


def _full_name(api: HfApi, repo_id: str) -> str:
    """That of the repository, once the Hub knows the token and the token may write."""
    user: dict[str, Any] = api.whoami()
    token = (user.get("auth") or {}).get("accessToken") or {}
    if token.get("role") == "read":
        raise HubError("the token may only read; use one with write access (hf auth login)")
    return repo_id if "/" in repo_id else f"{user['name']}/{repo_id}"


def _existing(api: HfApi, repo_id: str) -> ModelInfo | None:
    try:
        return api.model_info(repo_id, timeout=TIMEOUT)
    except RepositoryNotFoundError:
        return None


def _check_apart(existing: ModelInfo, plan: PushPlan, private: bool, create_pr: bool) -> None:
    """Raise `OutputError` where what the repository holds would mix with what is sent."""
    if private and not existing.private:
        raise OutputError(f"{existing.id} is there already, and public; make it private first, or choose another name")
    sent = {file.name for file in plan.files}
    there = [sibling.rfilename for sibling in existing.siblings or [] if sibling.rfilename != GIT_ATTRIBUTES]
    ours = plan.output.marker in there
    foreign = [name for name in there if not (ours and matches(name, known_files(plan.output)))]
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
