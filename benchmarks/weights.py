"""Fine-tune a real LM on texts and read its update: python benchmarks/weights.py MODEL CORPUS.jsonl.gz OUT [options].

MODEL is a folder, hub id or .gguf file. Members and non-members are drawn by document (column `source`). Prints AUC and
TPR at 1 % FPR of the weights observer and of the attacks asked for, beside the control that never sees a model, with
95 % intervals by document, and how many members each identifies at an FDR of 5 % (half of the non-members calibrate).
With --siblings, also against texts of the members' own documents that were not trained on; with --checkpoints, also of
the attack on states from within the training; with --merge, an adapter is merged into the weights first; with --round,
the target is rounded to another format, and the gradients are still those of the exact target. Fine-tuning and
gradients resume.
"""

import argparse
import time

import numpy as np
from real_target import arguments, fine_tuned
from weights_robustness import HALVES, INTEGERS, rounded

from ltmia.attacks.table import CHECKPOINTS, LEARNED, UPDATE, WITH_WEIGHTS
from ltmia.evaluation.calibration import judge_audit
from ltmia.evaluation.controls import bag_of_words
from ltmia.evaluation.intervals import measure_attack
from ltmia.evaluation.wording import figure
from ltmia.models.loading import LoadOptions, load_model, load_pair
from ltmia.models.pair import Pair
from ltmia.models.tokens import encode_texts
from ltmia.records import Texts
from ltmia.scoring.identity import PairIdentity
from ltmia.scoring.in_memory import score_texts
from ltmia.weights.checkpoints import RunScores, read_path, score_run
from ltmia.weights.combination import add_output_score
from ltmia.weights.update_attack import UpdateAttack, WeightsConfig


def main() -> None:
    """Fine-tune unless OUT/target is there, then read the update."""
    args = _arguments()
    target = fine_tuned(args)
    pair = merged(target.pair, args) if args.merge else target.pair
    identity = PairIdentity.of(pair).key
    if args.round:
        pair = load_pair(rounded(pair.target, args.round), pair.reference, tokenizer=pair.tokenizer)
    members = target.members.take(range(args.known or args.members))
    siblings = target.siblings.take(range(min(args.siblings, len(target.siblings))))
    others = target.nonmembers.take(range(args.others or args.nonmembers))
    texts = Texts.concatenate([members, others, siblings])
    used, sibling = np.arange(len(texts)) < len(members), np.arange(len(texts)) >= len(texts) - len(siblings)
    encoded = encode_texts(pair.tokenizer, texts.texts, max_length=args.max_length, vocab_size=pair.vocab_size)
    started = time.monotonic()
    with UpdateAttack(
        pair,
        encoded,
        args.out / ("gradients-merged" if args.merge else "gradients"),
        identity=identity,
        config=WeightsConfig(n_coordinates=args.coordinates, n_layers=args.layers, points=args.points),
    ) as attack:
        found, run = attack.score(), run_scores(attack, pair, args)
    kind = "low-rank update" if found.is_low_rank else "update"
    print(f"{time.monotonic() - started:.0f} s, {kind}, layers {found.layers}, {found.n_coordinates} coordinates")
    low, high = found.n_used_interval
    print(f"explained {found.explained:.3f}; used {found.n_used:.0f} [{low:.0f}, {high:.0f}] of {len(texts)}")
    groups = np.unique(texts.groups, return_inverse=True)[1] if texts.groups else None
    scores = {UPDATE: found.score, "alpha": found.alpha} | ({CHECKPOINTS: run.score} if run else {})
    scores["bag_of_words"] = bag_of_words(texts.texts, used.astype(np.int64), groups).scores
    if args.attacks:
        scores |= score_texts(pair, list(texts.texts), attacks=tuple(args.attacks.split(",")))
    if LEARNED in scores:
        scores[WITH_WEIGHTS] = add_output_score(found.alpha, found.standard_error, scores[LEARNED])
    for kind, unused in {"other documents": ~used & ~sibling, "siblings": sibling}.items():
        print(f"members against {kind} ({unused.sum()}):" if unused.any() else f"no {kind}")
        for name, score in scores.items() if unused.any() else ():
            sides = {} if groups is None else {"member_groups": groups[used], "nonmember_groups": groups[unused]}
            measured = measure_attack(score[used], score[unused], **sides)
            asked = (sides.get("member_groups"), sides.get("nonmember_groups"))
            judged = judge_audit(score[used], score[unused], attack=name, fdr=0.05, groups=asked).summary
            print(
                f"  {name:16} AUC {figure(measured.auc)}  TPR at 1 % FPR {figure(measured.tpr_at_fpr['0.01'])}"
                f"  identified {judged.n_flagged} of {used.sum()}, false share {figure(judged.realized_fdp)}"
            )


def run_scores(attack: UpdateAttack, pair: Pair, args: argparse.Namespace) -> RunScores | None:
    """Score the texts by the updates between checkpoints, if there are any."""
    if not pair.checkpoints:
        return None
    path = read_path(attack, pair.checkpoints)
    found = score_run(attack, path, args.out / "run-gradients", identity=lambda x: PairIdentity.of(x).key)
    print(f"{len(found.checkpoints)} checkpoints; explained by interval {[round(x, 3) for x in found.explained]}")
    return found


def merged(pair: Pair, args: argparse.Namespace) -> Pair:
    """Return the target with its adapter merged into the weights, beside its base."""
    base, _ = load_model(args.model, LoadOptions(dtype=args.dtype, device="cpu"))
    return load_pair(pair.target.merge_and_unload(), base, tokenizer=pair.tokenizer)


def _arguments() -> argparse.Namespace:
    parser = arguments(__doc__, members=500, nonmembers=1000, learning_rate=2e-5, dtype="float32")
    parser.add_argument("--coordinates", type=int, default=WeightsConfig().n_coordinates)
    parser.add_argument("--layers", type=int, default=WeightsConfig().n_layers)
    parser.add_argument("--points", type=_numbers, default=WeightsConfig().points, help="such as 0,0.5,1")
    parser.add_argument("--merge", action="store_true", help="merge the adapter (--lora) into the weights")
    parser.add_argument("--round", choices=[*HALVES, *INTEGERS], help="format of the target; weights stay float32")
    parser.add_argument("--known", type=int, help="members that are among the texts; default: all of them")
    parser.add_argument("--others", type=int, help="non-members that are among the texts; default: all of them")
    parser.add_argument("--siblings", type=int, default=0, help="texts of the members' documents, not trained on")
    parser.add_argument("--attacks", default="", help="attacks on log-probabilities to run beside, such as difference")
    return parser.parse_args()


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(number) for number in text.split(","))


if __name__ == "__main__":
    main()
