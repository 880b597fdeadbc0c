"""Publishing what this package made."""

import json
import shlex
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import HfApi, get_token

from hf_moe_lmc.alignment import Alignment, AlignmentConfig

from .hub_failure import hub_failures
from .made_folder import CONFIGURE, MadeFolder
from .push_plan import PushPlan, SentFile, check_name, plan_push
from .send import full_name, send


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
    return send(plan_push(folder, repository, licence, token), private, create_pr, token, remedy)


def push_alignment(
    alignment: Alignment,
    repository: str,
    private: bool = False,
    create_pr: bool = False,
    licence: str | None = None,
    token: str | None = None,
) -> str:
    """As `push_folder`, for an alignment that need not be saved before."""
    remedy = f"nothing was committed; save it in a FOLDER, and then: hf-moe-lmc push FOLDER {repository}"
    with TemporaryDirectory() as folder:
        alignment.save_pretrained(folder)
        return send(plan_push(folder, repository, licence, token), private, create_pr, token, remedy)


def push_config(
    config: AlignmentConfig,
    repository: str,
    private: bool = False,
    create_pr: bool = False,
    token: str | None = None,
) -> str:
    """As `push_folder`, for the settings of an alignment alone, without a card."""
    made = MadeFolder(Path(), CONFIGURE, config.record(), {})
    content = json.dumps(made.record, indent=2).encode() + b"\n"
    plan = PushPlan(made, check_name(repository), None, (SentFile(made.marker, content),))
    return send(plan, private, create_pr, token, "nothing was committed; try again")


def check_token(repository: str, token: str | None = None) -> str:
    """The full name of `repository`, once the Hub knows the token and says that it may write.

    Raises:
        BadInputError: it is no name of a repository.
        HubError: the token may not write, or there is none, or the Hub does not answer.
    """
    check_name(repository)
    with hub_failures(repository, token or get_token(), "nothing was sent"):
        return full_name(HfApi(token=token), repository)
