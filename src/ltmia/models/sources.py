"""Where a model is, and whether it may be loaded: a folder, an adapter's folder, a GGUF file, or a hub id.

Looks at names and files only; nothing is loaded here. Every refusal is a `ModelError` that names what was found
and what to do.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ResolvedRevision, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, RevisionResolutionError, StrictDataclassError
from safetensors import SafetensorError
from transformers.utils.hub import resolve_revision
from transformers.utils.peft_utils import find_adapter_config_file
from yaml import YAMLError  # type: ignore[import-untyped]  # its stubs are a package of their own

from ltmia.errors import ModelError

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "README.md"]
MESSAGE_LIMIT = 400
"""Characters of a library's own message that are passed on."""

LOADING_ERRORS = (
    OSError, ValueError, TypeError, RuntimeError, LookupError, ImportError, AttributeError, NotImplementedError,
    SafetensorError, StrictDataclassError, EntryNotFoundError, RevisionResolutionError,
)  # fmt: skip
"""What the libraries raise on a model that is missing, damaged, or not what it says."""


@dataclass(frozen=True)
class ModelSource:
    """One model's whereabouts."""

    source: str
    """As the user named it."""
    path: Path | None
    """Folder or GGUF file; None for a model on the hub."""
    hub_id: str = ""
    revision: str | None = None
    """Of a model on the hub; pinned to one commit, so that config, weights and tokenizer are of the same."""

    @property
    def is_gguf(self) -> bool:
        """Whether it is a GGUF file."""
        return self.path is not None and is_gguf_name(self.path)

    @property
    def is_adapter(self) -> bool:
        """Whether it is a PEFT adapter's folder."""
        return self.path is not None and (self.path / ADAPTER_CONFIG).is_file()

    @property
    def keywords(self) -> dict[str, Any]:
        """Arguments that point `from_pretrained` here; nothing local ever asks the network."""
        if self.path is None:
            return {"pretrained_model_name_or_path": self.hub_id, "revision": self.revision}
        if self.is_gguf:
            folder = str(self.path.parent)
            return {"pretrained_model_name_or_path": folder, "gguf_file": self.path.name, "local_files_only": True}
        return {"pretrained_model_name_or_path": str(self.path), "local_files_only": True}

    @property
    def commit(self) -> str | None:
        """Commit of a hub model that all its files are of; None for anything else, or where it cannot be had."""
        return self.revision.resolved if isinstance(self.revision, ResolvedRevision) else None

    @property
    def has_tokenizer(self) -> bool:
        """Whether a tokenizer comes with the model; of a hub id it is taken for granted."""
        if self.path is None or self.is_gguf:
            return True
        return any((self.path / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))


def is_gguf_name(path: Path) -> bool:
    """Say whether a file is a GGUF file, by its name."""
    return path.suffix.lower() == ".gguf"


def find_source(source: str) -> ModelSource:
    """Find out what a name stands for.

    An adapter on the hub is fetched: a few megabytes, and from then on it is a folder like any other.

    Args:
        source: Path of a folder or a .gguf file, or a hub id, "org/name" or "org/name@revision".

    Raises:
        ModelError: If the name is plainly a path, and nothing usable is there.
    """
    path = Path(source).expanduser()
    if path.is_dir() or (path.is_file() and is_gguf_name(path)):
        return ModelSource(source, path)
    looks_local = path.is_absolute() or source.startswith((".", "~")) or source.count("/") > 1
    if path.exists() or looks_local or is_gguf_name(path):
        found = "this is some other file" if path.exists() else "there is nothing there"
        raise ModelError(
            f"{source}: no model: {found}; expected a folder with config.json (or {ADAPTER_CONFIG}), a .gguf file, "
            "or a hub id like org/name"
        )
    name, _, revision = source.partition("@")
    place = ModelSource(source, None, name, resolve_revision(name, revision or None))
    if refuse_clearly(place, lambda: find_adapter_config_file(name, revision=place.revision)) is None:
        return place
    return ModelSource(source, Path(refuse_clearly(place, lambda: _fetch_adapter(place))), name, place.revision)


def _fetch_adapter(place: ModelSource) -> str:
    return snapshot_download(place.hub_id, revision=place.revision, allow_patterns=ADAPTER_FILES)


def find_base(place: ModelSource) -> str:
    """Return the base that a fine-tune names: an adapter in its config, any other in its model card.

    Raises:
        ModelError: If it names none.
    """
    if place.path is not None and place.is_adapter:
        named = read_json(place.path / ADAPTER_CONFIG).get("base_model_name_or_path")
        looked = ADAPTER_CONFIG
    else:
        named = _base_in_card(place)
        looked = "the model card (README.md)"
    if not (isinstance(named, str) and named):
        raise ModelError(
            f"{place.source}: {looked} does not say which model it was fine-tuned from; name that one with --base"
        )
    return named


def _base_in_card(place: ModelSource) -> object:
    card = place.hub_id if place.path is None else place.path / "README.md"
    if isinstance(card, Path) and not card.is_file():
        return None
    try:
        named = ModelCard.load(card, ignore_metadata_errors=True).data.to_dict().get("base_model")
    except (*LOADING_ERRORS, YAMLError):
        return None
    if isinstance(named, list):
        return named[0] if len(named) == 1 else None
    return named


def check_adapter(place: ModelSource) -> None:
    """Refuse an adapter whose weights are missing, or could run code when loaded.

    Raises:
        ModelError: If there is no adapter_model.safetensors.
    """
    if place.path is None or not (place.path / "adapter_model.safetensors").is_file():
        raise ModelError(
            f"{place.source}: no adapter_model.safetensors; pickled adapters (.bin) could run code and are not "
            "loaded: save it again as safetensors"
        )


def refuse_clearly(place: ModelSource, load: Callable[[], Any]) -> Any:
    """Turn what the libraries raise on a model that cannot be had into one short message.

    Raises:
        ModelError: Naming the model, the reason, and for a hub id what else the name could have meant.
    """
    try:
        return load()
    except LOADING_ERRORS as error:
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"{place.source}: brings code of its own to run, and that runs only with --trust-remote-code; "
                "read the .py files beside it first"
            ) from error
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = " ".join(lines)[:MESSAGE_LIMIT] or "no reason given"
        hint = ""
        if place.path is None:
            hint = f" (no folder of that name here, so taken as the hub id {place.hub_id}; download it, or give a path)"
        raise ModelError(f"{place.source}: cannot be loaded: {type(error).__name__}: {reason}{hint}") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ModelError: If the file is not readable, or holds anything else.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path}: a JSON object expected, found {type(content).__name__}")
    return content
