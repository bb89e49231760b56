"""Turns a recipe into a list of steps: each once, after the steps that it needs."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ltmia.lab.recipe import Corpus, FolderBase, HubBase, Listed, Recipe, TinyBase
from ltmia.lab.sources import find_base, find_corpus
from ltmia.lab.steps import (
    BaseSource,
    CombinationWork,
    CorpusSource,
    ExtractWork,
    PretrainWork,
    Step,
    TokenizerWork,
    step_key,
)

SHOWN = 12
"""Digits of a key in folder names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All steps of a lab, in an order in which they can be done."""

    steps: tuple[Step, ...]

    def to_do(self, satisfied: frozenset[str]) -> tuple[Step, ...]:
        """Return the steps that are still needed.

        A step is needed if its product is missing and either it is wanted for itself or a needed step reads it. So a
        deleted fine-tuned model is not made again if its store exists.

        Args:
            satisfied: Keys of the steps whose products are there.
        """
        needed: set[str] = set()
        for step in reversed(self.steps):
            wanted = not step.passing or any(step.key in other.needs for other in self.steps if other.key in needed)
            if wanted and step.key not in satisfied:
                needed.add(step.key)
        return tuple(step for step in self.steps if step.key in needed)


def make_plan(recipe: Recipe, out: Path, *, corpora: Path, bases: Path) -> Plan:
    """List the steps of a recipe.

    Args:
        recipe: What is wanted.
        out: Folder of the lab.
        corpora: Folder that paths of corpora are relative to.
        bases: Folder that paths of bases are relative to.

    Raises:
        ConfigError: If a corpus or a base is not there.
    """
    return _Planner(recipe, out.resolve(), corpora, bases).plan()


class _Planner:
    def __init__(self, recipe: Recipe, out: Path, corpora: Path, bases: Path) -> None:
        self.recipe = recipe
        self.out = out
        self.bases_folder = bases
        self.steps: dict[str, Step] = {}
        self.corpora = {name: find_corpus(name, corpus, corpora) for name, corpus in _used(recipe).items()}
        self.bases = {name: self._base(name, base) for name, base in recipe.bases.items()}

    def plan(self) -> Plan:
        for combination in self.recipe.all_combinations():
            self._combination(combination)
        return Plan(steps=tuple(self.steps.values()))

    def _base(self, name: str, base: FolderBase | HubBase | TinyBase) -> BaseSource:
        if not isinstance(base, TinyBase):
            return find_base(name, base, self.bases_folder)
        sources = tuple(self.corpora[corpus] for corpus in self.recipe.pretraining_corpora(base))
        tokenizer = self._tokenizer(sources, base.vocab_size)
        content = base.model_dump(exclude={"corpora"}) | _contents(sources)
        key = step_key("pretrain", content | {"tokenizer": tokenizer.key})
        step = Step(
            kind="pretrain",
            name=name,
            key=key,
            needs=(tokenizer.key,),
            product=self.out / "bases" / f"{name}-{key[:SHOWN]}",
            work=PretrainWork(base=base, tokenizer=tokenizer.product, corpora=sources),
        )
        # Two names of one content share a step; its folder has the first name.
        step = self.steps.setdefault(key, step)
        return BaseSource(name=name, path=str(step.product), key=key)

    def _tokenizer(self, sources: tuple[CorpusSource, ...], vocab_size: int) -> Step:
        key = step_key("tokenizer", {"vocab_size": vocab_size} | _contents(sources))
        step = Step(
            kind="tokenizer",
            name=f"{vocab_size}-{key[:4]}",
            key=key,
            needs=(),
            product=self.out / "tokenizers" / f"{vocab_size}-{key[:SHOWN]}",
            work=TokenizerWork(corpora=sources, vocab_size=vocab_size),
            passing=True,
        )
        return self.steps.setdefault(key, step)

    def _combination(self, combination: Listed) -> None:
        recipe = self.recipe
        base, corpus = self.bases[combination.base], self.corpora[combination.corpus]
        regime = recipe.regimes[combination.regime]
        key = step_key(
            "finetune",
            {
                "base": base.key,
                "corpus": corpus.content,
                "regime": regime.model_dump(exclude_none=True),  # unused settings do not change the key
                "seed": combination.seed,
                "device": recipe.device,
            },
        )
        target = self.out / "targets" / f"{combination.name}-{key[:SHOWN]}"
        work = CombinationWork(
            combination=combination,
            base=base,
            corpus=corpus,
            regime=regime,
            # From the content: another regime or base also draws other members.
            draw_seed=int(key[:8], 16) % 2**31,
            target=target / "model",
            device=recipe.device,
        )
        finetune = Step(
            kind="finetune",
            name=combination.name,
            key=key,
            needs=(base.key,) if base.key in self.steps else (),
            product=target,
            work=work,
            passing=not recipe.keep_models,
        )
        finetune = self.steps.setdefault(key, finetune)
        content = {"finetune": key, "name": combination.name, "extraction": recipe.extraction.model_dump()}
        extract = step_key("extract", content)
        self.steps[extract] = Step(
            kind="extract",
            name=combination.name,
            key=extract,
            needs=(key, *finetune.needs),
            product=self.out / "stores" / combination.name,
            work=ExtractWork(of=replace(work, target=finetune.product / "model"), extraction=recipe.extraction),
        )


def _contents(sources: tuple[CorpusSource, ...]) -> dict[str, Any]:
    return {"corpora": [source.content for source in sources]}


def _used(recipe: Recipe) -> dict[str, Corpus]:
    """Leave out corpora that no step reads, so that they need not exist."""
    names = {combination.corpus for combination in recipe.all_combinations()}
    for base in recipe.bases.values():
        if isinstance(base, TinyBase):
            names |= set(recipe.pretraining_corpora(base))
    return {name: corpus for name, corpus in recipe.corpora.items() if name in names}
