"""The Hub: the folder of an adapter or a setup pushed to a repository, or pulled into its cache.

Every failure of the client or the network leaves here as one line of `HubError`.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import adapterx
from adapterx.composition import JsonValue, names
from adapterx.errors import AdapterError, ConfigError, FormatError, HubError
from adapterx.store.adapterhub import is_adapterhub
from adapterx.store.adapterhub.reading import FUSION, HEAD, files_of
from adapterx.store.card import CARD
from adapterx.store.folder import CONFIG, FILES, README, add_facts, copy_folder
from adapterx.store.model_card import PLACEHOLDER
from adapterx.store.peft import is_peft
from adapterx.store.reading import read_text
from adapterx.store.setup import ADAPTERS, SETUP, copy_setup, read_setup

__all__ = ["Listed", "pull", "pull_cards", "push_folder", "repository", "search"]

_REVISION: Final = re.compile(r"[\w./\-]+")
# Libraries that write adapters for Hugging Face's encoders, as the Hub names them.
_LIBRARIES: Final = ("adapterx", "adapter-transformers", "peft")
_KINDS: Final = {"language-adapter": "language", "task-adapter": "task"}


@dataclass(frozen=True, slots=True)
class Listed:
    """A repository that `search` found, by what its model card says.

    Attributes:
        repo_id: ``"user/repo"``.
        library: Whose format it is in.
        kind: ``"language"`` or ``"task"``, ``"setup"`` of both, None if it does not say.
        languages: Tags, as the card has them.
        base: Hub id of the encoder, None if it does not say.
        downloads: In the last month.
    """

    repo_id: str
    library: str
    kind: str | None
    languages: tuple[str, ...]
    base: str | None
    downloads: int


def repository(source: str, revision: str | None = None) -> tuple[str, str | None] | None:
    """Return the repository and revision that a text names, None if it can name none.

    Args:
        source: ``"user/repo"`` or ``"user/repo@revision"``.
        revision: Where the text names none.
    """
    from huggingface_hub import utils

    repo_id, at, named = source.partition("@")
    if repo_id.count("/") != 1 or (at and not _REVISION.fullmatch(named)):
        return None
    try:
        utils.validate_repo_id(repo_id)  # type: ignore[attr-defined]  # public, but in no list
    except ValueError:
        return None
    return repo_id, named or revision


def push_folder(
    folder: Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    facts: Mapping[str, JsonValue] | None = None,
) -> str:
    """Upload the folder of an adapter or a setup in one commit; its card names the repository.

    Only what `adapterx.save` writes is uploaded. The folder itself is not changed.

    Args:
        folder: What `adapterx.save` wrote.
        repo_id: ``"user/repo"``; made if it is not there.
        private: Whether a new repository is private; None for the account's default.
        revision: Branch to commit to, made if it is not there; None for ``main``.
        token: Access token; None for the one that is logged in.
        facts: Added to an adapter's card, as `adapterx.save` adds them; the model card is then
            written anew, and without them uploaded as it stands.

    Returns:
        Address of the commit; of the last one if nothing has changed since.

    Raises:
        FormatError: If the folder holds no adapter, or links to files outside of it.
        ConfigError: If `repo_id` cannot be one, if facts are no JSON or given for a setup, or if
            a private repository is wanted where a public one is.
        HubError: If the Hub refuses or does not answer.
    """
    if repository(repo_id) is None or "@" in repo_id:
        raise _no_repository(repo_id)
    _check_content(folder, str(folder))
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "copy"
        copy.mkdir()
        if not (folder / SETUP).is_file():
            copy_folder(folder, copy)
            if facts:
                add_facts(copy, facts)
        elif facts:
            raise ConfigError(f"facts are given for {folder}, a setup. A card is of one adapter.")
        else:
            copy_setup(folder, copy)
        readme = copy / README
        if readme.is_file():
            text = read_text(readme).replace(PLACEHOLDER, f'"{repo_id}"')
            readme.write_text(text, encoding="utf-8")
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
            commit = hub.upload_folder(
                repo_id=repo_id,
                folder_path=copy,
                revision=revision,
                commit_message="Upload with adapterx",
                # What another adapter had in the repository must not outlive it.
                delete_patterns=[*FILES, SETUP, f"{ADAPTERS}/*"],
            )
            return str(commit.commit_url)


def pull(source: str, *, revision: str | None = None, token: str | None = None) -> Path:
    """Fetch the folder of an adapter or a setup from the Hub into Hugging Face's cache.

    What is cached already is not fetched again, and is used when the Hub does not answer. What
    was broken off goes on where it was, and every file is compared with its checksum.

    Args:
        source: ``"user/repo"`` or ``"user/repo@revision"``.
        revision: Branch, tag or commit of a source that names none; None for ``main``.
        token: Access token; None for the one that is logged in.

    Returns:
        The folder in the cache; what is in it is shared, so do not write there.

    Raises:
        ConfigError: If `source` cannot be one.
        FormatError: If the repository holds no adapter of adapterx; no weights are fetched then.
        HubError: If the Hub refuses, or does not answer and the adapter is not in the cache, or
            if a file is not what the Hub said it would be.
    """
    found = repository(source, revision)
    if found is None:
        raise _no_repository(source)
    repo_id, revision = found

    def fetch(files: Sequence[str], at: str | None) -> Path:
        folder = Path(
            snapshot_download(repo_id, revision=at, allow_patterns=list(files), token=token)
        )
        _check_sums(folder, files)
        return folder

    with _one_line(f"pull {repo_id!r}", revision):
        from huggingface_hub import snapshot_download

        # Facts first: a repository without an adapter may hold gigabytes of safetensors.
        first = [CARD, CONFIG, SETUP, README, FUSION.config, HEAD.config]
        facts = fetch(first, revision)
        files: Sequence[str] = FILES
        if (facts / SETUP).is_file():
            members = names(read_setup(facts))
            files = [
                SETUP,
                README,
                *(f"{ADAPTERS}/{one}/{name}" for one in members for name in FILES),
            ]
        elif not (facts / CARD).is_file() and is_adapterhub(facts):
            files = files_of(facts)
        elif not is_peft(facts):
            _check_content(facts, f"{repo_id!r} at revision {revision or 'main'!r}")
        # By its commit, so that both steps see the same one.
        return fetch(files, facts.name)


def pull_cards(source: str, *, revision: str | None = None, token: str | None = None) -> Path:
    """Fetch the cards of the adapters in a repository, of its folders too, and no weights.

    Args:
        source: ``"user/repo"`` or ``"user/repo@revision"``.
        revision: Branch, tag or commit of a source that names none; None for ``main``.
        token: Access token; None for the one that is logged in.

    Returns:
        The folder in the cache; what is in it is shared, so do not write there.

    Raises:
        ConfigError: If `source` cannot be one.
        HubError: If the Hub refuses, or does not answer and nothing is in the cache.
    """
    found = repository(source, revision)
    if found is None:
        raise _no_repository(source)
    repo_id, revision = found
    with _one_line(f"read {repo_id!r}", revision):
        from huggingface_hub import snapshot_download

        cards = [CARD, f"*/{CARD}"]
        return Path(
            snapshot_download(repo_id, revision=revision, allow_patterns=cards, token=token)
        )


def search(
    query: str, *, base: str | None = None, limit: int = 20, token: str | None = None
) -> list[Listed]:
    """Find repositories with adapters on the Hub, those most downloaded first.

    Args:
        query: Words of their names; empty for all.
        base: Hub id of the encoder they must be for. Given one, adapters of AdapterHub's library
            and of PEFT are found too; without, PEFT's are mostly for other models than encoders.
        limit: How many at most.
        token: Access token; None for the one that is logged in.

    Raises:
        HubError: If the Hub refuses or does not answer.
    """
    found: list[Listed] = []
    with _one_line(f"search for {query!r}", None):
        from huggingface_hub import HfApi

        hub = HfApi(token=token, library_name="adapterx", library_version=adapterx.__version__)
        for library in _LIBRARIES if base is not None else _LIBRARIES[:1]:
            models = hub.list_models(
                filter=[library, *([f"base_model:{base}"] if base is not None else [])],
                search=query or None,
                sort="downloads",
                limit=limit,
                expand=["cardData", "downloads", "tags"],
            )
            for model in models:
                if not any(model.id == one.repo_id for one in found):
                    found.append(_listed(model, library))
    return sorted(found, key=lambda one: -one.downloads)[:limit]


def _listed(model: Any, library: str) -> Listed:
    tags = [tag for tag in model.tags or [] if isinstance(tag, str)]
    card = {} if model.card_data is None else model.card_data.to_dict()
    languages, bases = (
        [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, str)]
        for value in (card.get("language"), card.get("base_model"))
    )
    kinds = [kind for tag, kind in _KINDS.items() if tag in tags]
    return Listed(
        repo_id=model.id,
        library=library,
        kind="setup" if len(kinds) > 1 else next(iter(kinds), None),
        languages=tuple(languages),
        base=next(iter(bases), None),
        downloads=model.downloads or 0,
    )


def _no_repository(source: str) -> ConfigError:
    return ConfigError(
        f"{source!r:.200} cannot be a repository of the Hub. Give user/repo: letters, digits, '-', "
        "'_' and '.', without '--' or '..'; to pull a revision, user/repo@revision."
    )


def _check_content(folder: Path, where: str) -> None:
    if (folder / SETUP).is_file():
        return
    for name in (CARD, CONFIG):
        if not (folder / name).is_file():
            raise FormatError(
                f"There is no {name} in {where}: it holds no adapter of adapterx. "
                "Give a folder that adapterx.save wrote, or a repository that it was pushed to."
            )


def _check_sums(folder: Path, files: Sequence[str]) -> None:
    """Compare files of the cache with their checksums, and throw those away that differ.

    The client looks at sizes alone. It names a blob by what the Hub says of it: the SHA-256 of a
    large file, git's SHA-1 of a small one. Where the file system has no links, the name is lost.
    """
    for name in files:
        link = folder / name
        if not link.is_symlink():
            continue
        blob = link.parent / link.readlink()
        digest = {64: hashlib.sha256(), 40: hashlib.sha1(usedforsecurity=False)}.get(len(blob.name))
        if digest is None or not blob.is_file():
            continue
        if digest.digest_size == hashlib.sha1(usedforsecurity=False).digest_size:
            digest.update(b"blob %d\0" % blob.stat().st_size)
        with blob.open("rb") as file:
            while part := file.read(1 << 20):
                digest.update(part)
        if digest.hexdigest() != blob.name:
            link.unlink()
            blob.resolve().unlink(missing_ok=True)
            blob.unlink(missing_ok=True)
            raise HubError(
                f"{name} of {folder} came with another checksum than the Hub says "
                f"({digest.hexdigest()[:12]}, not {blob.name[:12]}); it is thrown away. Pull again."
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
