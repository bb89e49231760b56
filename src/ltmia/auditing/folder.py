"""Takes the folder of an audit or a score, and notes models, options and texts, so that no other run is replaced."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from hashlib import sha256
from pathlib import Path
from typing import Literal

from ltmia.auditing.question import JudgeConfig
from ltmia.auditing.spans import hash_of_spans, spans_file
from ltmia.evaluation.audit_folder import MARKED, Run, run_in, set_aside_on_failure
from ltmia.models.pair import Pair
from ltmia.ownership import Marker, refuse_inputs
from ltmia.records import Texts, hash_strings
from ltmia.scoring.audited_pair import AuditedPair, LoadedPair, PairToLoad

WITHOUT_EFFECT = ("batch_size",)
"""Options that change no result beyond numeric noise."""


def hold_for(
    out: Path,
    kind: Literal["audit", "score"],
    pair: Pair | AuditedPair | PairToLoad,
    texts: tuple[Texts, Texts],
    config: JudgeConfig,
    further: Mapping[str, str] | None = None,
) -> AbstractContextManager[Run]:
    """Lock a folder for an audit or a score; refuse it if `check_folder` does. No model is loaded.

    Models are compared by name: if the files behind a name changed, the same command scores again. Texts and spans are
    compared by content.

    Args:
        out: The folder.
        kind: Kind of results.
        pair: Target and reference.
        texts: Texts to judge, and the non-members.
        config: Options.
        further: Hashes of what else decides the results.

    Raises:
        ConfigError: If the folder is one of the inputs or lies inside one, or Presidio is needed and missing; else when
            the folder is entered, see `run_in`.
        DataError: If the file of spans cannot be read.
    """
    sources = (LoadedPair(pair) if isinstance(pair, Pair) else pair).sources
    checkpoints = _checkpoints(pair)
    refuse_inputs(out, [*sources, *checkpoints, *(part.source for part in texts), *spans_file(config.spans)])
    names = {name: _name(source, out) for name, source in zip(("target", "base"), sources, strict=True)}
    with set_aside_on_failure(out):
        hashes = hashes_of(texts) | hash_of_spans(config.spans) | dict(further or {})
    options = {name: value for name, value in config.settings.items() if name not in WITHOUT_EFFECT}
    if config.spans is not None:
        options["spans"] = True  # which ones, the hash says
    loading = dict(pair.settings) if isinstance(pair, PairToLoad) else {}
    if checkpoints:
        loading["checkpoints"] = " ".join(_name(source, out) for source in checkpoints)
    marker = Marker(kind=MARKED[kind], settings=names | options | loading)
    return run_in(out, marker, hashes, overwrite=config.overwrite)


def _checkpoints(pair: Pair | AuditedPair | PairToLoad) -> list[str]:
    """Return the names of earlier states of the target."""
    if isinstance(pair, PairToLoad):
        return list(pair.checkpoints)
    models = pair if isinstance(pair, Pair) else pair.models
    return [] if models is None else [checkpoint.place for checkpoint in models.checkpoints]


def hashes_of(texts: tuple[Texts, Texts]) -> dict[str, str]:
    """Return three hashes: of the texts (with the place from which each is scored), of the ids, and of the groups.

    With a hash anyone can check a guess at a text or a group, so hashes belong in the private folder.
    """
    return {
        "texts": _sha256(column for part in texts for column in _scored(part)),
        "ids": _sha256(part.ids for part in texts),
        "groups": _sha256(part.groups or () for part in texts),
    }


def _scored(texts: Texts) -> Iterator[Sequence[str]]:
    """Yield what is scored: the texts, the place from which each is, and the same of the rejected texts of pairs."""
    for part in (texts, texts.rejected):
        if part is not None:
            yield part.texts
            yield tuple(map(str, part.starts or ()))


def _sha256(columns: Iterable[Sequence[str]]) -> str:
    digest = sha256()
    for column in columns:
        hash_strings(digest, (str(len(column)), *column))
    return digest.hexdigest()


def _name(source: str, out: Path) -> str:
    """Name a local model by its path relative to the folder, because both may be moved together."""
    is_path = Path(source).is_absolute() or Path(source).exists()
    return os.path.relpath(os.path.realpath(source), os.path.realpath(out)) if is_path else source
