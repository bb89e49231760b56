"""Texts that can be drawn out, by epochs and repeats: python benchmarks/extraction.py OUT [options].

Fine-tunes the embedded base on embedded texts, some of which stand in the training file several times, for one or more
numbers of epochs, and audits each model. Prints the share of texts that come out within 1,000 draws, with 95 %
intervals. With --sample N it also draws N texts of each kind 1,000 times and counts how often they come out, beside the
number that the audit predicts. With --continuations it prints how near the members with the highest scores come to the
truth when they are continued. OUT keeps every model and audit, so the same command again only measures.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from scipy.stats import binomtest

from ltmia.auditing.audit import AuditConfig, audit
from ltmia.auditing.question import AuditResult
from ltmia.data.embedded import demo_base_path, demo_texts
from ltmia.evaluation.drawn_out import Nearness
from ltmia.evaluation.shares import share_of
from ltmia.extraction.suffixes import NAMED_DRAWS, Suffixes, read_suffixes
from ltmia.features.store import FeatureStore
from ltmia.finetuning.config import FinetuneConfig
from ltmia.finetuning.finetune import finetune
from ltmia.models.loading import LoadOptions, load_model, load_pair, load_tokenizer
from ltmia.models.pair import Pair
from ltmia.records import Texts
from ltmia.report.extraction_words import continued_rows


def main() -> None:
    """Train, audit, and print a row for each number of epochs."""
    parser = argparse.ArgumentParser(description="Texts that can be drawn out, by epochs and repeats.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--texts", type=int, default=20, help="Texts for each number of repeats.")
    parser.add_argument("--nonmembers", type=int, default=40)
    parser.add_argument("--epochs", type=int, nargs="+", default=[1, 5, 20])
    parser.add_argument("--repeats", type=int, nargs="+", default=[1, 10, 100])
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--max-length", type=int, default=40, help="Tokens of each text.")
    parser.add_argument("--sample", type=int, default=0, help="Texts of each kind that are drawn 1,000 times.")
    parser.add_argument("--continuations", type=int, default=0, help="Members whose beginnings are continued.")
    args = parser.parse_args()
    repeats = np.repeat(args.repeats, args.texts)
    members = demo_texts().take(range(len(repeats)))
    nonmembers = demo_texts().take(range(len(repeats), len(repeats) + args.nonmembers))
    everything = Texts.concatenate([members, nonmembers])
    kinds = np.array([f"{n} x" for n in repeats] + ["non-members"] * len(nonmembers))
    print(f"| epochs | {' | '.join(f'{n} x' for n in args.repeats)} | non-members | members, by the base |")
    print("|---" * (len(args.repeats) + 3) + "|")
    sampled: list[str] = []
    near: list[str] = []
    for epochs in args.epochs:
        config = FinetuneConfig(epochs=epochs, learning_rate=args.learning_rate, max_length=args.max_length)
        folder = args.out / f"epochs-{epochs}"
        pair = _tuned(list(np.repeat(members.texts, repeats)), config, folder / "model")
        options = AuditConfig(attacks="difference", max_length=args.max_length, continuations=args.continuations)
        audited = audit(pair, members, nonmembers, folder / "audit", config=options)
        print(f"| {epochs} | {' | '.join(_shares(audited, everything, kinds))} |", flush=True)
        if args.sample:
            suffixes = _suffixes(folder / "audit", everything)
            rows = np.concatenate([np.flatnonzero(kinds == kind)[: args.sample] for kind in dict.fromkeys(kinds)])
            counted = [
                _count(pair, everything.texts[row], int(suffixes.n_tokens[row]), args.max_length) for row in rows
            ]
            predicted = np.exp(suffixes.target_logp[rows])
            sampled += [f"| {epochs} | {row}" for row in _compared(kinds[rows], predicted, np.array(counted))]
        near += [f"| {epochs} | {name} | {_of(found)} |" for name, found in continued_rows(audited.results)]
    if sampled:
        print(f"\n| epochs | texts | out within {NAMED_DRAWS:,} draws | counted | share of draws | counted |")
        print("\n".join(["|---" * 6 + "|", *sampled]))
    if near:
        print(
            "\n| epochs | texts | tokens in a row: median, most | characters in a row | edit distance: median, least |"
        )
        print("\n".join(["|---" * 5 + "|", *near]))


def _tuned(texts: list[str], config: FinetuneConfig, folder: Path) -> Pair:
    """Fine-tune the embedded base, and return it with its base."""
    base = str(demo_base_path())
    if not folder.is_dir():
        loading = LoadOptions(dtype="float32", device="cpu")
        model, _ = load_model(base, loading)
        finetune(model, load_tokenizer(base, loading), texts, config, folder)
    return load_pair(folder, base, dtype="float32", device="cpu")


def _shares(audited: AuditResult, texts: Texts, kinds: np.ndarray) -> list[str]:
    """Return the cells of a row: the share of each kind of text that comes out, and of the members by the base."""
    out, by_base = (
        np.array([needed is not None and needed <= NAMED_DRAWS for needed in audited.records[column].to_pylist()])
        for column in ("extractable_within", "extractable_within_by_base")
    )
    groups = np.unique(np.array(texts.groups), return_inverse=True)[1]
    cases = [(out, kinds == kind) for kind in dict.fromkeys(kinds)] + [(by_base, kinds != "non-members")]
    found = [share_of(hits[rows], groups[rows]) for hits, rows in cases]
    return [f"{share.value:.2f} [{share.low:.2f}, {share.high:.2f}]" for share in found]


def _suffixes(folder: Path, texts: Texts) -> Suffixes:
    """Return what an audit says of each text's suffix."""
    store = FeatureStore(folder / "private" / "store")
    return read_suffixes(store.statistics(range(len(texts))), [False] * len(texts))


@torch.inference_mode()
def _count(pair: Pair, text: str, n_suffix: int, max_length: int) -> int:
    """Draw a text's suffix from the target, and count how often exactly that comes out."""
    torch.manual_seed(0)
    ids = torch.tensor(pair.tokenizer(text)["input_ids"][:max_length])
    given = ids[None, :-n_suffix]
    written = pair.target.generate(
        input_ids=given, attention_mask=torch.ones_like(given), max_new_tokens=n_suffix,
        num_return_sequences=NAMED_DRAWS, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, use_cache=True,
        pad_token_id=pair.tokenizer.eos_token_id,
    )  # fmt: skip
    if written.shape[1] < len(ids):  # each draw ended early
        return 0
    return int((written == ids).all(1).sum())


def _compared(kinds: np.ndarray, chances: np.ndarray, counted: np.ndarray) -> Iterator[str]:
    """Yield a row for each kind of text: what is predicted of sampling, and what was counted.

    Args:
        kinds: Kind of each text.
        chances: Chance that one draw gives the text's suffix.
        counted: Draws that gave it.
    """
    for kind in dict.fromkeys(kinds):
        chance, drawn = chances[kinds == kind], counted[kinds == kind]
        # The number of texts that come out is a sum of independent events with different chances.
        of_number = np.ones(1)
        for comes_out in -np.expm1(NAMED_DRAWS * np.log1p(-chance)):
            of_number = np.convolve(of_number, [1 - comes_out, comes_out])
        low, high = np.searchsorted(of_number.cumsum(), [0.025, 0.975])
        mean = of_number @ np.arange(len(of_number))
        share = binomtest(int(drawn.sum()), NAMED_DRAWS * len(drawn))
        ends = share.proportion_ci()
        yield (
            f"{kind} | {mean:.1f} [{low}, {high}] | {(drawn > 0).sum()} of {len(drawn)} | "
            f"{chance.mean():.3%} | {share.statistic:.3%} [{ends.low:.3%}, {ends.high:.3%}] |"
        )


def _of(found: Nearness) -> str:
    """Return the cells of a row on continuations."""
    tokens = f"{found.median_run:g}, {found.longest_run}"
    characters = f"{found.median_run_characters:g}, {found.longest_run_characters}"
    return f"{tokens} | {characters} | {found.median_distance:.2f}, {found.smallest_distance:.2f}"


if __name__ == "__main__":
    main()
