"""The Hub: one adapter's folder pushed to a repository, or pulled into Hugging Face's cache.

Every failure of the client or the network leaves here as one line of `HubError`.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import adapterx
from adapterx.errors import AdapterError, ConfigError, FormatError, HubError
from adapterx.store.card import CARD

__all__ = ["is_repo_id", "pull", "pull_cards", "push_folder"]

_NEEDED: Final = (CARD, "adapter_config.json")
_FILES: Final = ["*.json", "*.safetensors", "README.md"]
# What a task's folder has and a language's has not: it must not outlive the task in a repository.
_HEAD: Final = "head.safetensors"
_PLACEHOLDER: Final = '"path/to/this/folder"'  # in the usage that `model_card` writes


def is_repo_id(text: str) -> bool:
    """Return whether a text can name a repository of the Hub: ``"user/repo"``, and no path."""
    from huggingface_hub import utils

    try:
        utils.validate_repo_id(text)  # type: ignore[attr-defined]  # public, but in no list
    except ValueError:
        return False
    return text.count("/") == 1


def push_folder(
    folder: Path,
    repo_id: str,
    *,
    private: bool | None,
    revision: str | None,
    token: str | None,
) -> str:
    """Upload an adapter's folder in one commit; its model card then names the repository.

    Only JSON, safetensors and the card are uploaded. The folder itself is not changed.

    Args:
        folder: What `adapterx.save` wrote.
        repo_id: ``"user/repo"``; made if it is not there.
        private: Whether a new repository is private; None for the account's default.
        revision: Branch to commit to, made if it is not there; None for ``main``.
        token: Access token; None for the one that is logged in.

    Returns:
        Address of the commit; of the last one if nothing has changed since.

    Raises:
        FormatError: If the folder holds no adapter.
        ConfigError: If `repo_id` cannot be one, or a private repository is wanted where a public
            one is.
        HubError: If the Hub refuses or does not answer.
    """
    _check_repo_id(repo_id)
    _check_files(folder, str(folder))
    with _one_line(f"push to {repo_id!r}", revision):
        from huggingface_hub import HfApi

        hub = HfApi(token=token, library_name="adapterx", library_version=adapterx.__version__)
        hub.create_repo(repo_id, private=private, exist_ok=True)
        # For a repository that was there before, `exist_ok` passes over `private`.
        if private and not hub.model_info(repo_id).private:
            raise ConfigError(
                f"private=True, but {repo_id!r} exists on {hub.endpoint} and is public. "
                "Make it private in its settings, or push to another repository."
            )
        if revision not in (None, "main"):
            hub.create_branch(repo_id, branch=str(revision), exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            copy = Path(scratch) / "adapter"
            copy.mkdir()
            for pattern in _FILES:
                for file in folder.glob(pattern):
                    shutil.copyfile(file, copy / file.name)
            readme = copy / "README.md"
            if readme.is_file():
                text = readme.read_text(encoding="utf-8")
                readme.write_text(text.replace(_PLACEHOLDER, f'"{repo_id}"'), encoding="utf-8")
            commit = hub.upload_folder(
                repo_id=repo_id,
                folder_path=copy,
                revision=revision,
                commit_message="Upload adapter with adapterx",
                delete_patterns=[_HEAD],
            )
        return str(commit.commit_url)


def pull(repo_id: str, *, revision: str | None = None) -> Path:
    """Fetch an adapter's folder from the Hub into Hugging Face's cache.

    What is cached already is not fetched again, and is used when the Hub does not answer.

    Args:
        repo_id: ``"user/repo"``.
        revision: Branch, tag or commit; None for ``main``.

    Returns:
        The folder in the cache; what is in it is shared, so do not write there.

    Raises:
        ConfigError: If `repo_id` cannot be one.
        FormatError: If the repository holds no adapter of adapterx; no weights are fetched then.
        HubError: If the Hub refuses, or does not answer and the adapter is not in the cache.
    """
    _check_repo_id(repo_id)
    with _one_line(f"pull {repo_id!r}", revision):
        from huggingface_hub import snapshot_download

        # Facts first: a repository without an adapter may hold gigabytes of safetensors.
        facts = Path(
            snapshot_download(repo_id, revision=revision, allow_patterns=[*_NEEDED, "README.md"])
        )
        _check_files(facts, f"{repo_id!r} at revision {revision or 'main'!r}")
        # By its commit, so that both steps see the same one. Folders in it are not the adapter's.
        return Path(
            snapshot_download(
                repo_id, revision=facts.name, allow_patterns=_FILES, ignore_patterns="*/*"
            )
        )


def pull_cards(repo_id: str, *, revision: str | None = None) -> Path:
    """Fetch the cards of the adapters in a repository, of its folders too, and no weights.

    Args:
        repo_id: ``"user/repo"``.
        revision: Branch, tag or commit; None for ``main``.

    Returns:
        The folder in the cache; what is in it is shared, so do not write there.

    Raises:
        ConfigError: If `repo_id` cannot be one.
        HubError: If the Hub refuses, or does not answer and nothing is in the cache.
    """
    _check_repo_id(repo_id)
    with _one_line(f"read {repo_id!r}", revision):
        from huggingface_hub import snapshot_download

        return Path(
            snapshot_download(repo_id, revision=revision, allow_patterns=[CARD, f"*/{CARD}"])
        )


def _check_repo_id(repo_id: str) -> None:
    if not is_repo_id(repo_id):
        raise ConfigError(
            f"{repo_id!r} cannot be a repository of the Hub. "
            "Give user/repo: letters, digits, '-', '_' and '.', without '--' or '..'."
        )


def _check_files(folder: Path, where: str) -> None:
    for name in _NEEDED:
        if not (folder / name).is_file():
            raise FormatError(
                f"There is no {name} in {where}: it holds no adapter of adapterx. "
                "Give a folder that adapterx.save wrote, or a repository that it was pushed to."
            )


@contextmanager
def _one_line(action: str, revision: str | None) -> Iterator[None]:
    """Turn whatever the client raises inside into a `HubError` that says it in one line."""
    try:
        yield
    except AdapterError:
        raise
    # The client raises OSError, ValueError, RuntimeError, plain Exception, and those of httpx.
    except Exception as error:
        from huggingface_hub.constants import ENDPOINT

        reason = " ".join(_reason(error, revision).split())
        raise HubError(f"Cannot {action} ({ENDPOINT}): {reason}") from error


def _reason(error: Exception, revision: str | None) -> str:
    from huggingface_hub import errors

    transport = errors.HTTPError  # type: ignore[attr-defined]  # of httpx or httpx2, by version
    chain = list(_causes(error))
    for one in chain:
        if isinstance(one, errors.OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE is set, so only adapters pulled before are at hand. Unset it."
        if isinstance(one, errors.GatedRepoError):
            return "the repository is gated. Ask for access on its page, then: hf auth login."
        if isinstance(one, errors.RevisionNotFoundError):
            return f"it has no revision {revision!r}. Give a branch, tag or commit that it has."
        if isinstance(one, errors.RepositoryNotFoundError):
            return (
                "it does not exist, or is private and this token may not see it. "
                "Check the name; for a private one log in (hf auth login) or set HF_TOKEN."
            )
        if isinstance(one, errors.HfHubHTTPError):
            return _answer(one.response.status_code, one.server_message or "no reason given")
        if isinstance(one, (transport, ConnectionError, TimeoutError)):
            return (
                f"the Hub cannot be reached ({type(one).__name__}: {str(one)[:120]}). "
                "Check the connection and HF_ENDPOINT, or use a local folder."
            )
    cause = chain[-1]
    return f"{type(cause).__name__}: {str(cause)[:200]}. `hf env` shows the client's settings."


def _answer(status: int, message: str) -> str:
    said = f"({status}: {message[:200]})"
    if status == 401:
        return f"no valid access token {said}. Log in (hf auth login) or set HF_TOKEN."
    if status == 403:
        return f"forbidden {said}. Use a token that may do this, or a repository of your own."
    if status >= 500 or status == 429:
        return f"the Hub is out of order or busy {said}. Try again later."
    return f"the Hub refused {said}. Change what it names."


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
