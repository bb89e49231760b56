"""Alter a fine-tuned model after training, as a publisher might, and save it.

python benchmarks/altered.py noise TARGET --base BASE --size 1 -o OUT     add Gaussian noise to its weights
python benchmarks/altered.py average TARGET TARGET [...] -o OUT           average the weights of several fine-tunes
python benchmarks/altered.py round TARGET --to "int8 by row" -o OUT       round its weights to a format
"""

import argparse
import copy
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel
from weights_robustness import FLOAT32, HALVES, INTEGERS, rounded

from ltmia.models.loading import load_model, load_tokenizer


def main(arguments: Sequence[str] | None = None) -> None:
    """Load, alter, save; the weights are stored in float32, so that only what was done to them has an effect."""
    args = _parser().parse_args(arguments)
    models = [load_model(folder, FLOAT32)[0] for folder in args.targets]
    match args.way:
        case "noise":
            altered = with_noise(models[0], load_model(args.base, FLOAT32)[0], args.size, seed=args.seed)
        case "average":
            altered = averaged(models)
        case _:
            altered = rounded(models[0], args.to)
    altered.save_pretrained(args.out)
    load_tokenizer(args.targets[0], FLOAT32).save_pretrained(args.out)


def with_noise(target: PreTrainedModel, base: PreTrainedModel, size: float, *, seed: int) -> PreTrainedModel:
    """Return a copy with independent Gaussian noise on each weight.

    In each tensor its standard deviation is `size` times the root mean square of what fine-tuning changed there.
    """
    noisy = copy.deepcopy(target)
    before = dict(base.named_parameters())
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in noisy.named_parameters():
            deviation = size * (weight - before[name]).square().mean().sqrt()
            weight.add_(torch.randn(weight.shape, generator=draws) * deviation)
    return noisy


def averaged(models: Sequence[PreTrainedModel]) -> PreTrainedModel:
    """Return a model whose every weight is the mean of that weight over the models."""
    average = copy.deepcopy(models[0])
    alike = [dict(model.named_parameters()) for model in models]
    with torch.no_grad():
        for name, weight in average.named_parameters():
            weight.copy_(torch.stack([weights[name] for weights in alike]).mean(0))
    return average


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ways = parser.add_subparsers(dest="way", required=True)
    noise, average, round_ = (ways.add_parser(name) for name in ("noise", "average", "round"))
    noise.add_argument("--base", required=True)
    noise.add_argument("--size", type=float, required=True, help="In units of the fine-tune's own change.")
    noise.add_argument("--seed", type=int, default=0)
    round_.add_argument("--to", choices=[*HALVES, *INTEGERS], required=True)
    for way, number in ((noise, 1), (average, "+"), (round_, 1)):
        way.add_argument("targets", nargs=number, metavar="TARGET")
        way.add_argument("-o", "--out", required=True)
    return parser


if __name__ == "__main__":
    main()
