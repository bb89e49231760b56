"""Writes the name of the base into a fine-tune's model card, so that loading the fine-tune finds the base."""

from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData
from transformers import PreTrainedModel

from ltmia.models.sources import CARD, CARD_REVISION


def base_name(model: PreTrainedModel) -> tuple[str | None, str | None]:
    """Return the path or hub id of a model, with its commit if it is on the hub; None for a model built in memory."""
    place = Path(model.name_or_path or "")
    if model.name_or_path and place.exists():
        # A relative path would lose its meaning in another working directory.
        return str(place.resolve()), None
    return model.name_or_path or None, getattr(model.config, "_commit_hash", None)


def write_card(model: PreTrainedModel, folder: Path) -> None:
    """Write a model card that names the base of a fine-tune; no card for a model built in memory."""
    base, revision = base_name(model)
    if base is None:
        return
    data = ModelCardData(base_model=base, library_name="transformers")
    if revision is not None:
        data[CARD_REVISION] = revision
    ModelCard(f"---\n{data.to_yaml()}\n---\n\nA fine-tune of `{base}`.\n").save(folder / CARD)
