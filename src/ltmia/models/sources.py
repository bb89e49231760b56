"""Finds a model by name (folder, adapter folder, GGUF file or hub id) and checks that it may be loaded.

This module looks only at names and files, and loads nothing. Every refusal is a `ModelError` that names what was found
and what to do.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ResolvedRevision, constants, resolve_revision, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    LocalEntryNotFoundError,
    RevisionResolutionError,
    StrictDataclassError,
)
from safetensors import SafetensorError
from transformers.utils.peft_utils import find_adapter_config_file
from yaml import YAMLError  # type: ignore[import-untyped]  # its stubs are a package of their own

from ltmia.errors import ModelError
from ltmia.ownership import read_marker

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
CARD = "README.md"
CARD_REVISION = "base_model_revision"
"""Key of a model card: which revision of a hub model the base is."""
ADAPTER_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "README.md"]
MESSAGE_LIMIT = 400
"""Characters of a library's own message that are passed on."""

constants.HF_HUB_DISABLE_TELEMETRY = True
# Otherwise huggingface_hub contacts the hub even when files are read only from the cache.

LOADING_ERRORS = (
    OSError, ValueError, TypeError, RuntimeError, LookupError, ImportError, AttributeError, NotImplementedError,
    ZeroDivisionError, SafetensorError, StrictDataclassError, EntryNotFoundError,
)  # fmt: skip
"""Exceptions of the libraries for a model that is missing, damaged, or inconsistent."""


@dataclass(frozen=True)
class ModelSource:
    """Location of one model."""

    given: str
    """Name that the user gave."""
    path: Path | None
    """Folder or GGUF file; None for a model on the hub that is not an adapter."""
    hub_id: str = ""
    revision: str | None = None
    """Revision of a model on the hub, pinned to one commit, so that config, weights and tokenizer fit together."""
    from_cache: bool = False
    """Whether a model of the hub is read only from this machine's cache."""

    @property
    def name(self) -> str:
        """Name that is valid in any working directory: a hub id, or an absolute path."""
        return self.hub_id or str(Path(str(self.path)).resolve())

    @property
    def is_gguf(self) -> bool:
        """Whether the model is a GGUF file."""
        return self.path is not None and is_gguf_name(self.path)

    @property
    def is_adapter(self) -> bool:
        """Whether the model is a PEFT adapter's folder."""
        return self.path is not None and (self.path / ADAPTER_CONFIG).is_file()

    @property
    def keywords(self) -> dict[str, Any]:
        """Arguments of `from_pretrained` for this model; a local model never asks the network."""
        if self.path is None:
            return {"pretrained_model_name_or_path": self.hub_id, "revision": self.revision}
        if self.is_gguf:
            folder = str(self.path.parent)
            return {"pretrained_model_name_or_path": folder, "gguf_file": self.path.name, "local_files_only": True}
        return {"pretrained_model_name_or_path": str(self.path), "local_files_only": True}

    @property
    def commit(self) -> str | None:
        """Commit of a model on the hub; None for other models, or if it is unknown."""
        return self.revision.resolved if isinstance(self.revision, ResolvedRevision) else None

    @property
    def trained_length(self) -> int | None:
        """Tokens of each text that it was fine-tuned on, if `ltmia finetune` made it."""
        marker = None if self.path is None else read_marker(self.path)
        length = None if marker is None else marker.settings.get("max_length")
        return length if isinstance(length, int) else None

    @property
    def has_tokenizer(self) -> bool:
        """Whether a tokenizer comes with the model; for a hub id this is assumed."""
        if self.path is None or self.is_gguf:
            return True
        return any((self.path / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))


def is_gguf_name(path: Path) -> bool:
    """Say whether a file is a GGUF file, by its name."""
    return path.suffix.lower() == ".gguf"


def find_source(source: str, *, from_cache: bool = False) -> ModelSource:
    """Find the model that a name stands for.

    An adapter on the hub is downloaded (a few megabytes) and then treated like a folder.

    Args:
        source: Path of a folder or a .gguf file, or a hub id, "org/name" or "org/name@revision".
        from_cache: Read a model of the hub only from this machine's cache, without the network.

    Raises:
        ModelError: If the name is plainly a path, and nothing usable is there.
    """
    path = Path(source).expanduser()
    if path.is_dir() or (path.is_file() and is_gguf_name(path)):
        return ModelSource(source, path)
    looks_local = path.is_absolute() or source.startswith((".", "~")) or source.count("/") > 1
    if path.exists() or looks_local or is_gguf_name(path):
        there = "this is another kind of file" if path.exists() else "there is nothing there"
        raise ModelError(
            f"{source}: no model: {there}; expected a folder with config.json (or {ADAPTER_CONFIG}), a .gguf file, "
            "or a hub id like org/name"
        )
    name, _, revision = source.partition("@")
    found = ModelSource(source, None, name, revision or None, from_cache)
    found = replace(found, revision=refuse_clearly(found, lambda: _pinned(found)))
    return replace(found, path=refuse_clearly(found, lambda: _folder_in_cache(found)))


def _pinned(source: ModelSource) -> str | None:
    """Return the commit of a model of the hub; fails here at once if the hub does not answer and the cache lacks it."""
    try:
        return resolve_revision(source.hub_id, revision=source.revision, local_files_only=source.from_cache)
    except RevisionResolutionError as error:
        if source.from_cache:
            return source.revision
        raise ModelError(
            f"{source.given}: no folder of that name here, so taken as the hub id {source.hub_id}; that model is not "
            f"in the cache, and the hub cannot be reached ({str(error.__cause__)[:MESSAGE_LIMIT]}); give a path, or "
            "download the model"
        ) from error


def _folder_in_cache(source: ModelSource) -> Path | None:
    """Return the local path of a model of the hub; an adapter is downloaded now, other models when they are loaded."""
    where = partial(snapshot_download, source.hub_id, revision=source.revision)
    if source.from_cache:
        try:
            return Path(where(local_files_only=True))
        except LocalEntryNotFoundError:
            return None
    if find_adapter_config_file(source.hub_id, revision=source.revision) is None:
        return None
    return Path(where(allow_patterns=ADAPTER_FILES))


def find_base(source: ModelSource) -> str:
    """Return the base that a fine-tune names: an adapter in its config, any other in its model card.

    Returns:
        A path, or a hub id, followed by "@revision" if the fine-tune names one.

    Raises:
        ModelError: If it names none.
    """
    if source.path is not None and source.is_adapter:
        config, looked = read_json(source.path / ADAPTER_CONFIG), ADAPTER_CONFIG
        named, revision = config.get("base_model_name_or_path"), config.get("revision")
    else:
        card, looked = _card(source), "the model card (README.md)"
        named, revision = card.get("base_model"), card.get(CARD_REVISION)
    if isinstance(named, list) and len(named) == 1:
        named = named[0]
    if not (isinstance(named, str) and named):
        raise ModelError(
            f"{source.given}: {looked} does not say which model it was fine-tuned from; name that one with `base`"
        )
    # Local folders have no revisions.
    has_revision = isinstance(revision, str) and revision and "@" not in named and not Path(named).expanduser().exists()
    return f"{named}@{revision}" if has_revision else named


def base_source(source: ModelSource, base: str | Path | None = None, *, allow_hub: bool) -> ModelSource:
    """Find a model's base.

    Args:
        source: The model.
        base: What the user says it is; None or "auto" asks the model's own files.
        allow_hub: Ask the hub for a name that only those files give. Without this, the hub is asked only if the model
            itself is on the hub: a file must not decide which hosts this machine contacts.

    Raises:
        ModelError: If there is none, it is not here, or it is the adapter itself.
    """
    found = _named_base(source, allow_hub=allow_hub) if base in (None, "auto") else find_source(str(base))
    if source.is_adapter and found.name == source.name:
        raise ModelError(f"{source.given}: an adapter cannot be put on itself; name what it was trained on with `base`")
    return found


def _named_base(source: ModelSource, *, allow_hub: bool) -> ModelSource:
    named = find_base(source)
    user_named_hub = source.hub_id and not source.from_cache
    from_cache = not (allow_hub or user_named_hub)
    try:
        base = find_source(named, from_cache=from_cache)
    except ModelError as error:
        raise ModelError(f"{source.given} names {named!r} as its base; give it with `base` ({error})") from error
    if base.path is None and from_cache:
        raise ModelError(
            f"{source.given} names {named!r} as its base, which is not on this machine; the hub is not asked for a "
            f"name that only a file gives: set `base={named}` or `allow_hub=True`"
        )
    return base


def adapter_stack(source: ModelSource, *, allow_hub: bool) -> list[ModelSource]:
    """Return a model, its base, the base of that, and so on, down to a model that is not an adapter.

    Raises:
        ModelError: If one of them cannot be found, or they form a circle.
    """
    stack = [source]
    while stack[-1].is_adapter:
        below = base_source(stack[-1], allow_hub=allow_hub)
        if below.name in {above.name for above in stack}:
            raise ModelError(f"{source.given}: adapters that name each other as their base; name one with `base`")
        stack.append(below)
    return stack


def _card(source: ModelSource) -> dict[str, Any]:
    """Return the metadata of a model card; empty if there is no readable card."""
    card = source.hub_id if source.path is None else source.path / CARD
    if isinstance(card, Path) and not card.is_file():
        return {}
    try:
        return ModelCard.load(card, ignore_metadata_errors=True).data.to_dict()
    except (*LOADING_ERRORS, YAMLError):
        return {}


def check_adapter(source: ModelSource) -> None:
    """Refuse an adapter whose weights are missing, or could run code when loaded.

    Raises:
        ModelError: If there is no adapter_model.safetensors.
    """
    if source.path is None or not (source.path / ADAPTER_WEIGHTS).is_file():
        raise ModelError(
            f"{source.given}: no {ADAPTER_WEIGHTS}; pickled adapters (.bin) could run code and are not "
            "loaded: save it again as safetensors"
        )


def refuse_clearly(source: ModelSource, load: Callable[[], Any]) -> Any:
    """Turn exceptions of the libraries for a model that cannot be loaded into one short message.

    Raises:
        ModelError: In place of such an exception; it names the model and the reason.
    """
    try:
        return load()
    except LOADING_ERRORS as error:
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"{source.given}: contains code, which runs only with `trust_remote_code=True`; "
                "read the .py files beside it first"
            ) from error
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = " ".join(lines)[:MESSAGE_LIMIT] or "no reason given"
        hint = ""
        if source.path is None:
            hint = (
                f" (no folder of that name here, so taken as the hub id {source.hub_id}; download it, or give a path)"
            )
        raise ModelError(f"{source.given}: cannot be loaded: {type(error).__name__}: {reason}{hint}") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ModelError: If the file cannot be read, or holds no JSON object.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path}: a JSON object expected, found {type(content).__name__}")
    return content
