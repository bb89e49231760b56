"""The texts and the base language model of the demo, shipped inside the package."""

from functools import cache
from importlib.resources import files
from pathlib import Path

from ltmia.data.reading import read_texts
from ltmia.errors import DataError
from ltmia.records import Texts


@cache
def demo_texts() -> Texts:
    """Return the embedded public-domain passages; the group of each is its document."""
    return read_texts(_demo_folder() / "texts.jsonl.gz", group_column="source")


def demo_base_path() -> Path:
    """Return the folder of the embedded base model, in the Hugging Face layout.

    Raises:
        DataError: If the installed package lacks it.
    """
    folder = _demo_folder() / "base"
    if not (folder / "model.safetensors").is_file():
        raise DataError(f"{folder}: the embedded base model is missing. Install ltmia again.")
    return folder


def _demo_folder() -> Path:
    # Installers unpack packages, so resources are files: a model is memory-mapped from there.
    return Path(str(files("ltmia.data"))) / "demo"
