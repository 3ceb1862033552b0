"""The hub itself, by `huggingface_hub`, which is an extra and imported only here."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from typing import Any, Final

from frami_edge import __version__
from frami_edge.hub.errors import PushError
from frami_edge.hub.plan import Plan

_PART: Final = r"[A-Za-z0-9_](?:[\w.-]{0,94}[A-Za-z0-9_])?"
_REPO_ID: Final = re.compile(rf"(?:{_PART}/)?{_PART}")
_LOG_IN: Final = "hf auth login, or set HF_TOKEN to a token that may write."


@dataclass(frozen=True)
class Pushed:
    """Where it is now."""

    url: str
    private: bool
    created: bool
    """Whether the repository is new."""


def check_repo_id(repo_id: str) -> str:
    """A repository's name, as the hub accepts it.

    Raises:
        PushError: It does not.
    """
    if not _REPO_ID.fullmatch(repo_id) or "--" in repo_id or ".." in repo_id:
        raise PushError(
            f"{repo_id!r} is no name of a repository.",
            fix="Use USER/NAME: letters, digits, '-', '_' and '.'.",
        )
    return repo_id


def push(plan: Plan, repo_id: str, *, public: bool = False, message: str = "") -> Pushed:
    """Send everything in one commit.

    A new repository is private unless ``public``. One that is there keeps its visibility; where it
    is public, ``public`` must be given too.

    Args:
        plan: Of `make_plan`.
        repo_id: ``USER/NAME``.
        public: Everybody may read it.
        message: Of the commit.

    Raises:
        PushError: The extra or a token is missing, the repository is public without being asked
            for, or the hub refuses.
    """
    hub, errors = _load()
    if hub.get_token() is None:
        raise PushError("There is no token for the hub.", fix=_LOG_IN)
    api = hub.HfApi(library_name="frami-edge", library_version=__version__)
    try:
        try:
            known = api.repo_info(repo_id, repo_type="model")
        except errors.RepositoryNotFoundError:
            known = None
        if known is not None and not known.private and not public:
            raise PushError(
                f"{repo_id} is public already, so everybody could read what is sent.",
                fix="Add --public if that is meant, or choose another name.",
            )
        if known is None:
            api.create_repo(repo_id, repo_type="model", private=not public, exist_ok=True)
        operations = [
            hub.CommitOperationAdd(
                path_in_repo=item.name,
                path_or_fileobj=item.content if isinstance(item.content, bytes)
                else str(item.content),
            )
            for item in plan.items
        ]  # fmt: skip
        commit = api.create_commit(
            repo_id,
            operations=operations,
            commit_message=message or f"frami-edge {__version__}: {plan.kind}",
            repo_type="model",
        )
    except PushError:
        raise
    except Exception as error:  # HTTP, network, offline mode: a dozen types of three libraries
        raise _refused(repo_id, error) from None
    private = not public if known is None else bool(known.private)
    return Pushed(str(getattr(commit, "repo_url", "") or repo_id), private, known is None)


def _load() -> tuple[Any, Any]:
    try:
        hub = importlib.import_module("huggingface_hub")
        errors = importlib.import_module("huggingface_hub.errors")
        # It imports its parts when they are first used, and may fail only then.
        hub.HfApi, hub.CommitOperationAdd, hub.get_token  # noqa: B018
        return hub, errors
    except ImportError as error:
        raise PushError(
            f"Sending needs huggingface_hub ({error}).", fix="pip install 'frami-edge[hub]'"
        ) from None


def _refused(repo_id: str, error: Exception) -> PushError:
    lines = str(error).strip().splitlines()
    text = (lines[0] if lines else type(error).__name__)[:300].rstrip(".")
    status = getattr(getattr(error, "response", None), "status_code", None)
    fix = "Check the connection and try again; a commit is sent whole or not at all."
    if status in (401, 403) or type(error).__name__ == "LocalTokenNotFoundError":
        fix = f"The token may not write to {repo_id}: {_LOG_IN}"
    return PushError(f"The hub did not take {repo_id}: {text}.", fix=fix)
