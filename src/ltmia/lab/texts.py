"""Selects the documents of a lab: for pretraining, for fine-tuning, and never used."""

import random
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import lru_cache
from hashlib import sha256

from ltmia.data.reading import read_texts
from ltmia.data.splits import Membership, draw_membership
from ltmia.errors import DataError
from ltmia.lab.steps import CombinationWork, CorpusSource
from ltmia.records import Texts

PRETRAINING_BUCKETS = (0, 1, 2, 3, 4, 5)
"""Buckets of documents for pretraining; bucket 9 is never used."""
POOL_BUCKETS = (6, 7, 8)
"""Buckets of documents for fine-tuning."""


def document_bucket(source: str) -> int:
    """Return the bucket 0..9 of a document, which depends only on its name."""
    return int(sha256(source.encode()).hexdigest()[:8], 16) % 10


@lru_cache(maxsize=2)
def corpus_texts(corpus: CorpusSource, buckets: tuple[int, ...]) -> Texts:
    """Read the documents of a corpus that fall into some buckets.

    Raises:
        DataError: If there is no such document.
    """
    texts = read_texts(corpus.path, text_column=corpus.text_column, group_column=corpus.group_column or None)
    groups = texts.groups or texts.ids
    wanted = {g for g in set(groups) if document_bucket(g) in buckets and fnmatchcase(g, corpus.documents)}
    kept = texts.take([i for i, group in enumerate(groups) if group in wanted])
    if not len(kept):
        raise DataError(f"corpora.{corpus.name}: no document matches {corpus.documents!r} in {corpus.path}")
    return replace(kept, source=corpus.name)


def pool_buckets(corpus: CorpusSource) -> tuple[int, ...]:
    """Return the buckets for fine-tuning; a test corpus has more, because no base was pretrained on it."""
    return (*PRETRAINING_BUCKETS, *POOL_BUCKETS) if corpus.role == "test" else POOL_BUCKETS


def draw_texts(work: CombinationWork, pool: Texts) -> Membership:
    """Draw members, non-members and validation texts of one combination, without dividing documents."""
    regime = work.regime
    return draw_membership(
        pool,
        n_members=regime.n_members,
        n_nonmembers=regime.n_nonmembers,
        n_validation=regime.n_validation,
        seed=work.draw_seed,
    )


def mixed_texts(corpora: tuple[CorpusSource, ...], buckets: tuple[int, ...], seed: int) -> list[str]:
    """Return the texts of all corpora, shuffled together."""
    texts = [text for corpus in corpora for text in corpus_texts(corpus, buckets).texts]
    random.Random(seed).shuffle(texts)  # noqa: S311  an order, not a secret
    return texts
