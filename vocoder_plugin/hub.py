"""Files from the Hugging Face hub, by huggingface_hub: cached, resumed, offline where asked.

A reference is ``owner/repo``, ``owner/repo:TAG`` (a quantisation, such as Q8_0) or
``owner/repo/path/file.gguf``; ``@revision`` may follow the repo's name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from .errors import HubError, KindError, refusal

REFERENCE = re.compile(r"([\w.-]+/[\w.-]+?)(?:@([\w./-]+?))?(?::([\w.-]+)|/([^:@]+\.\w+))?")
PREFERRED = ("Q8_0", "F16", "FP16", "BF16", "F32", "FP32")  # without a tag, the first that there is
SPLIT = re.compile(r"-\d{5}-of-\d{5}\.gguf$")


@dataclass(frozen=True)
class Reference:
    """What a reference names: a repo, and a file in it by path, by tag, or left to choose."""

    repo: str
    revision: str | None = None
    tag: str | None = None
    path: str | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Raises HubError if the text is no reference, and KindError if it is no text."""
        if not isinstance(text, str):
            raise KindError(refusal("the reference", f"of type {type(text).__name__}", "str"))
        match = REFERENCE.fullmatch(text)
        if match is None or ".." in text:
            raise HubError(f"{text!r} is no hub file; write owner/repo, owner/repo:Q8_0 or owner/repo/file.gguf")
        return cls(*match.groups())


def looks_like_reference(text: str) -> bool:
    """Whether a text that is no file here may name one on the hub: it has a repo and more."""
    match = REFERENCE.fullmatch(text)
    return bool(match and (match[3] or match[4]) and not text.startswith((".", "/", "~")))


def fetch(
    reference: str,
    *,
    suffix: str = ".gguf",
    offline: bool = False,
    progress: bool = False,
    cache_dir: str | Path | None = None,
    endpoint: str | None = None,
) -> Path:
    """The path of a hub file on this machine, downloaded if it is not in the cache.

    Parameters
    ----------
    reference : str
    suffix : str
        What the file's name ends in, where the reference leaves the choice.
    offline : bool
        Only look in the cache.
    progress : bool
        Show a bar on standard error.
    cache_dir, endpoint : optional
        By default huggingface_hub's own, which HF_HOME and HF_ENDPOINT set.

    Raises
    ------
    HubError
        With a line that says what is missing and what to do.
    """
    import huggingface_hub

    wanted = Reference.parse(reference)
    options: dict[str, Any] = {"revision": wanted.revision, "cache_dir": cache_dir, "endpoint": endpoint}
    try:
        if wanted.path is None:
            names = _cached(wanted, cache_dir) if offline else _listed(wanted, endpoint)
            path = choose(names, wanted, suffix)
        else:
            path = wanted.path
        if offline:  # by the files alone: huggingface_hub's own offline way may still ask the hub about other things
            found = huggingface_hub.try_to_load_from_cache(
                wanted.repo, path, cache_dir=cache_dir, revision=wanted.revision
            )
            if not isinstance(found, str):
                raise HubError(f"{reference}: it is not in the cache; fetch it once without --offline")
            return Path(found)
        bar = None if progress else _silent()
        return Path(huggingface_hub.hf_hub_download(wanted.repo, path, tqdm_class=bar, **options))
    except HubError:
        raise
    except Exception as error:  # of huggingface_hub, its HTTP client (which changed between releases), the disk
        raise HubError(f"{reference}: {_reason(error)}") from None


def local_or_fetch(name: str, *, suffix: str = ".gguf", offline: bool = False, progress: bool = False) -> Path:
    """A path as it is; if there is no such file nor folder here and it looks like a hub file, that file's copy."""
    path = Path(name)
    if path.exists() or path.parent.is_dir() or not looks_like_reference(name):
        return path
    try:
        return fetch(name, suffix=suffix, offline=offline, progress=progress)
    except HubError as error:
        raise HubError(f"there is no such file here; on the hub, {error}") from None


def choose(names: Iterable[str], wanted: Reference, suffix: str) -> str:
    """The file of a repo that a reference means; HubError, listing what there is, if that is none or not clear."""
    files = [name for name in names if name.endswith(suffix) and "mmproj" not in name.lower()]
    whole = [name for name in files if not SPLIT.search(name)]
    if not whole:
        kind = f"only split {suffix} files" if files else f"no {suffix} file"
        raise HubError(f"{wanted.repo} has {kind}; name another repo or file")
    if wanted.tag is None:
        for tag in PREFERRED:
            if found := _tagged(whole, tag):
                return _single(found, wanted)
        return _single(whole, wanted)
    found = _tagged(whole, wanted.tag)
    if not found:
        raise HubError(f"{wanted.repo} has no {suffix} file {wanted.tag!r}; it has {_list(whole)}")
    return _single(found, wanted)


def _tagged(names: Sequence[str], tag: str) -> list[str]:
    """Files whose name ends in a tag, or whose folder is it."""
    tag = tag.lower()
    found = []
    for name in names:
        path = PurePosixPath(name.lower())
        stem = path.name.removesuffix("".join(path.suffixes[-1:]))
        if stem == tag or re.search(rf"[-._]{re.escape(tag)}$", stem):
            found.append(name)
    return found


def _single(found: Sequence[str], wanted: Reference) -> str:
    if len(found) > 1:
        raise HubError(f"{wanted.repo} has several such files: {_list(found)}; name one as {wanted.repo}/FILE")
    return found[0]


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _listed(wanted: Reference, endpoint: str | None) -> list[str]:
    import huggingface_hub

    info = huggingface_hub.HfApi(endpoint=endpoint).model_info(wanted.repo, revision=wanted.revision, timeout=10)
    return [file.rfilename for file in info.siblings or []]


def _cached(wanted: Reference, cache_dir: str | Path | None) -> list[str]:
    """Files of a repo in the cache: of the revision, or of the one that its branch ``main`` was at last."""
    import huggingface_hub

    revision = wanted.revision or "main"
    for repo in huggingface_hub.scan_cache_dir(cache_dir).repos:
        if repo.repo_id == wanted.repo and repo.repo_type == "model":
            for state in repo.revisions:
                if revision in state.refs or state.commit_hash == revision:
                    return [str(file.file_path.relative_to(state.snapshot_path)) for file in state.files]
    raise HubError(f"{wanted.repo} is not in the cache; fetch it once without --offline")


def _silent() -> type:
    from huggingface_hub.utils import tqdm

    class Silent(tqdm):  # type: ignore[misc, valid-type, unused-ignore]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": True})

    return Silent


def _reason(error: Exception) -> str:
    """One line for what huggingface_hub says in many."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return "the repo is gated: accept its terms on the hub's site, then log in with `hf auth login`"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "there is no such repo on the hub, or it is private: check the name, or log in with `hf auth login`"
    if isinstance(error, errors.RevisionNotFoundError):
        return "the repo has no such revision"
    if isinstance(error, errors.LocalEntryNotFoundError):
        return "the hub cannot be reached, and the file is not in the cache; check the network or HF_ENDPOINT"
    if isinstance(error, errors.EntryNotFoundError):
        return "the repo has no such file"
    response = getattr(error, "response", None)
    if response is not None:
        return f"the hub answered with status {response.status_code}"
    if isinstance(error, errors.HFValidationError):
        return "that is no name of a repo"
    if isinstance(error, errors.CacheNotFound):
        return "it is not in the cache; fetch it once without --offline"
    first = str(error).strip().splitlines()
    return f"the hub cannot be reached, or the file not written: {first[0] if first else type(error).__name__}"
