"""Finds the corpora and bases of a recipe on this machine, and hashes their content."""

from hashlib import file_digest, sha256
from importlib.resources import files
from pathlib import Path

from ltmia.data.embedded import demo_base_path
from ltmia.errors import ConfigError
from ltmia.lab.recipe import EMBEDDED, Corpus, FolderBase, HubBase
from ltmia.lab.steps import HUB, BaseSource, CorpusSource


def find_corpus(name: str, corpus: Corpus, folder: Path) -> CorpusSource:
    """Find a corpus.

    Args:
        name: Its name in the recipe.
        corpus: Its table in the recipe.
        folder: Folder that relative paths start from.

    Raises:
        ConfigError: If there is no such file.
    """
    wanted = corpus.path or f"{name}.jsonl.gz"
    if wanted.startswith(HUB):
        path, digest = wanted, sha256(wanted.encode()).hexdigest()
    else:
        file = Path(str(files("ltmia.data"))) / "demo" / "texts.jsonl.gz" if wanted == EMBEDDED else folder / wanted
        if not file.is_file():
            raise ConfigError(
                f"corpora.{name}: no file {file}; give the folder of the corpora as `corpora`, or correct its path"
            )
        path, digest = str(file.resolve()), _file_sha256(file)
    return CorpusSource(
        name=name,
        role=corpus.role,
        path=path,
        sha256=digest,
        text_column=corpus.text_column,
        group_column=corpus.group_column,
        documents=corpus.documents,
    )


def find_base(name: str, base: FolderBase | HubBase, folder: Path) -> BaseSource:
    """Find a base that the lab does not make.

    Raises:
        ConfigError: If there is no model at its path.
    """
    if isinstance(base, HubBase):
        return BaseSource(name=name, path=base.hub, key=sha256(base.hub.encode()).hexdigest())
    place = demo_base_path() if base.path == EMBEDDED else folder / base.path
    if place.suffix == ".gguf" and place.is_file():
        return BaseSource(name=name, path=str(place.resolve()), key=_file_sha256(place))
    if not (place / "config.json").is_file() or not any(place.glob("*.safetensors")):
        raise ConfigError(
            f"bases.{name}: {place} is no model: a .gguf file, or a folder with config.json and *.safetensors; "
            "give the folder of the bases as `bases`, or correct its path"
        )
    digest = sha256()
    for file in sorted(place.iterdir()):
        if file.is_file() and not file.name.startswith("."):
            digest.update(f"{file.name} {_file_sha256(file)}\n".encode())
    return BaseSource(name=name, path=str(place.resolve()), key=digest.hexdigest())


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()
