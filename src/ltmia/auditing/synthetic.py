"""Audits synthetic texts: an auxiliary model is fine-tuned on them, and audited for the members of their generator."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from ltmia.auditing.audit import AuditConfig, audit_of
from ltmia.auditing.folder import hashes_of
from ltmia.auditing.question import AuditResult
from ltmia.auditing.subject import Subject
from ltmia.auditing.text_sets import TextSets
from ltmia.data.duplicates import OVERLAP_SHARE, ngram_overlap, normalise_text
from ltmia.errors import DataError
from ltmia.evaluation.audit_folder import AUXILIARY_FOLDER, PRIVATE_FOLDER
from ltmia.evaluation.subjects import Copies, Synthetic
from ltmia.finetuning.config import FinetuneConfig
from ltmia.finetuning.finetune import finetune, is_finetuned
from ltmia.models.loading import LoadOptions, load_model, load_pair, load_tokenizer
from ltmia.models.pair import Pair
from ltmia.ownership import refuse_inputs
from ltmia.progress import Report, silent
from ltmia.records import Texts
from ltmia.scoring.audited_pair import PairToLoad
from ltmia.shown_names import shown_path


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticSubject(Subject):
    """Synthetic texts, and the auxiliary fine-tune that reads them."""

    texts: Texts
    base: str
    """LM to fine-tune on them."""
    tuning: FinetuneConfig

    def hashes(self) -> Mapping[str, str]:
        """Return hashes of the synthetic texts and of the settings of the fine-tune."""
        settings = json.dumps(asdict(self.tuning), sort_keys=True).encode()
        return {"synthetic texts": hashes_of((self.texts, self.texts.take(())))["texts"],
                "settings of the fine-tune": sha256(settings).hexdigest()}  # fmt: skip

    def sections(self, sets: TextSets, scores: Float64[np.ndarray, " texts"], seed: int) -> Mapping[str, Any]:
        """Return what the audit is of, and how many texts of each side the synthetic ones repeat."""
        members, nonmembers = sets.split(sets.texts.whole)
        found = Synthetic(
            n_texts=len(self.texts),
            base=shown_path(self.base),
            epochs=self.tuning.epochs,
            learning_rate=self.tuning.learning_rate,
            lora=self.tuning.lora,
            members=count_copies(members, self.texts.whole),
            nonmembers=count_copies(nonmembers, self.texts.whole),
        )
        return {"synthetic": found}


def count_copies(texts: tuple[str, ...], synthetic: tuple[str, ...]) -> Copies:
    """Count the texts that stand whole in a synthetic text, and those that share long passages with them.

    Case and white space are ignored. A text shares long passages if more than `OVERLAP_SHARE` of its word 8-grams occur
    in the synthetic texts.
    """
    shares = ngram_overlap(texts, synthetic).shares
    normal = [normalise_text(text) for text in synthetic]
    whole, everything = set(normal), "".join(f" {text} \n" for text in normal)
    keys = [normalise_text(text) for text in texts]
    verbatim = [
        bool(key) and (key in whole or (share == 1 and f" {key} " in everything))
        for key, share in zip(keys, shares, strict=True)
    ]
    near = ~np.array(verbatim, np.bool_) & (shares > OVERLAP_SHARE)
    return Copies(n_texts=len(texts), n_verbatim=sum(verbatim), n_near=int(near.sum()))


def audit_synthetic(
    subject: SyntheticSubject,
    texts: tuple[Texts, Texts],
    out: Path | str,
    *,
    config: AuditConfig | None = None,
    loading: LoadOptions | None = None,
    report: Report = silent,
) -> AuditResult:
    """Fine-tune a base on synthetic texts, and audit the result for the texts that their generator was trained on.

    The figures are those of an attacker who sees the synthetic texts and nothing else (Mitchell et al. 2026, arXiv
    2606.10481). The same call resumes; the auxiliary model is kept in `out/private`.

    Args:
        subject: Texts that a generator wrote, the LM to fine-tune on them (the generator's base, or another one), and
            how.
        texts: Texts that the generator was trained on, and texts of the same kind that it never saw.
        out: Folder for the results.
        config: Options of the audit.
        loading: How models are loaded.
        report: Called with progress.

    Raises:
        DataError: If there are no texts or no words in the synthetic ones, or the synthetic ones are preference pairs.
        ConfigError: As `audit` does.
    """
    out, config = Path(out), config or AuditConfig()
    refuse_inputs(out, [subject.texts.source])
    if not any(map(normalise_text, subject.texts.whole)):
        raise DataError(f"{subject.texts.source or 'synthetic texts'}: hold no word; give the texts that a model wrote")
    loading = loading or LoadOptions()
    target = out.resolve() / PRIVATE_FOLDER / AUXILIARY_FOLDER
    load = partial(_auxiliary, subject, target, loading, report)
    named = {} if loading.dtype == "auto" else {"dtype": loading.dtype}
    pair = PairToLoad(sources=(str(target), subject.base), load=load, settings=named)
    return audit_of(subject, pair, texts, out, config=config, report=report)


def _auxiliary(subject: SyntheticSubject, target: Path, loading: LoadOptions, report: Report) -> Pair:
    """Fine-tune the base on the synthetic texts unless that is done, and load both."""
    options = replace(loading, dtype="float32")  # to train in
    model, _ = load_model(subject.base, options)
    tokenizer = load_tokenizer(subject.base, options)
    if not is_finetuned(target, model, tokenizer, subject.texts, subject.tuning):
        report("fine-tuning", 0, 1)
        finetune(model, tokenizer, subject.texts, subject.tuning, target, overwrite=True)
        report("fine-tuning", 1, 1)
    del model
    return load_pair(target, subject.base, **asdict(loading))
