"""What a fine-tune says of its base, so that whoever loads it need not."""

from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData
from transformers import PreTrainedModel

from ltmia.models.sources import CARD, CARD_REVISION


def base_name(model: PreTrainedModel) -> tuple[str | None, str | None]:
    """Return what a model was loaded from, and which commit if it is on the hub; None for one built in memory."""
    place = Path(model.name_or_path or "")
    if model.name_or_path and place.exists():
        # A relative path would lose its meaning in another working directory.
        return str(place.resolve()), None
    return model.name_or_path or None, getattr(model.config, "_commit_hash", None)


def write_card(model: PreTrainedModel, folder: Path) -> None:
    """Write a model card that names what a fine-tune was loaded from; none for a model built in memory."""
    base, revision = base_name(model)
    if base is None:
        return
    data = ModelCardData(base_model=base, library_name="transformers")
    if revision is not None:
        data[CARD_REVISION] = revision
    ModelCard(f"---\n{data.to_yaml()}\n---\n\nA fine-tune of `{base}`.\n").save(folder / CARD)
