"""The files of an audit that may be passed on give no text back, and an attack on per-token numbers is the test.

The attacker has both models, and searches for the text whose log-ratios are the published ones. The search itself is
tested on the numbers that are kept in `private`, rounded as a report would show them: from those it reads the texts.
"""

import base64
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from ltmia.auditing.audit import AuditConfig, audit
from ltmia.data.embedded import demo_base_path, demo_texts
from ltmia.evaluation.files import read_audit, read_tokens
from ltmia.finetuning.config import FinetuneConfig
from ltmia.finetuning.finetune import finetune
from ltmia.finetuning.tiny import TinyConfig, build_base, train_tokenizer
from ltmia.models.loading import load_pair

N_MEMBERS, N_NONMEMBERS, N_ATTACKED = 24, 60, 2
LENGTH = 34
FIRST_BEAM, BEAM = 2048, 64


@dataclass(frozen=True)
class Attacked:
    """What the attacker has, the audit, and the truth."""

    target: torch.nn.Module
    base: torch.nn.Module
    folder: Path
    truth: torch.Tensor
    """Token ids of the records with the highest scores."""
    rows: list[int]


@pytest.fixture(scope="module", params=[2048, pytest.param(8192, marks=pytest.mark.slow)])
def attacked(request: pytest.FixtureRequest, tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Attacked:
    work = tmp_path_factory.mktemp(f"attacked-{request.param}")
    texts, base, target = demo_texts().texts, demo_base_path(), tuned
    if request.param != 2048:
        base, target = work / "base", work / "target"
        tokenizer = train_tokenizer(texts, request.param)
        assert len(tokenizer) == request.param
        model = build_base(TinyConfig(model_type="gpt2", vocab_size=request.param, hidden_size=32, n_layers=2), seed=0)
        model.save_pretrained(base)
        tokenizer.save_pretrained(base)
        config = FinetuneConfig(epochs=25, learning_rate=5e-3, max_length=LENGTH)
        finetune(model, tokenizer, texts[:N_MEMBERS], config, target)
    pair = load_pair(target, base, dtype="float32", device="cpu")
    audit(pair, texts[:N_MEMBERS], texts[60 : 60 + N_NONMEMBERS], work / "audit", config=AuditConfig(max_length=LENGTH))
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = read_tokens(work / "audit")["row"].to_pylist()[:N_ATTACKED]
    every = [*texts[:N_MEMBERS], *texts[60 : 60 + N_NONMEMBERS]]
    return Attacked(
        *(AutoModelForCausalLM.from_pretrained(at, dtype=torch.float32).eval() for at in (target, base)),
        folder=work / "audit",
        truth=torch.tensor([tokenizer(every[row])["input_ids"][:LENGTH] for row in rows]),
        rows=rows,
    )


def search(attacked: Attacked, fits: Sequence) -> torch.Tensor:
    """Beam search for the most likely text whose log-ratio at each place fits what is known of it.

    Args:
        attacked: The models.
        fits: For each place behind the first a function from log-ratios of all tokens to what to add to their
            log-probability: minus infinity where the token cannot be.
    """
    models, vocab_size = (attacked.target, attacked.base), attacked.target.config.vocab_size
    prefixes = torch.arange(vocab_size)[:, None]
    scores, caches = torch.zeros(len(prefixes)), nothing_read()
    for place, fit in enumerate(fits):
        is_narrow = len(prefixes) <= BEAM
        found = []
        for part, so_far in zip(prefixes.split(512), scores.split(512), strict=True):
            if not is_narrow:
                caches = nothing_read()
            ours, theirs = (following(*of, part) for of in zip(models, caches, strict=True))
            total = so_far[:, None] + ours + fit(ours - theirs)
            best, index = total.flatten().topk(FIRST_BEAM if place == 0 else BEAM)
            parents = index // vocab_size
            found.append((best, torch.cat([part[parents], index[:, None] % vocab_size], dim=1), parents))
        scores, prefixes, parents = (torch.cat(every) for every in zip(*found, strict=True))
        scores, kept = scores.topk(FIRST_BEAM if place == 0 else BEAM)
        prefixes, scores = prefixes[kept], scores.clamp(min=-1e9)
        if is_narrow:
            for cache in caches:
                cache.reorder_cache(parents[kept])
        else:
            caches = nothing_read()
    return prefixes[0]


def nothing_read() -> tuple[DynamicCache, DynamicCache]:
    """Caches of both models before they have read anything."""
    return DynamicCache(), DynamicCache()


@torch.no_grad()
def following(model: torch.nn.Module, cache: DynamicCache, prefixes: torch.Tensor) -> torch.Tensor:
    """Return log-probabilities of the next token; the model reads only what is not in its cache yet."""
    unread = prefixes[:, cache.get_seq_length() :]
    return model(unread, past_key_values=cache, logits_to_keep=1).logits[:, -1].log_softmax(-1)


def near(number: float):
    """What a log-ratio fits that was stored as float16 and rounded to thousandths."""
    tolerance = 5e-4 + abs(number) * 2**-11 + 1e-4
    return lambda ratios: torch.where((ratios - number).abs() <= tolerance, 0.0, -torch.inf)


def recovered(found: torch.Tensor, truth: torch.Tensor) -> float:
    """Share of the tokens behind the first that are right."""
    return float((found[1:] == truth[1:]).float().mean())


def guess(attacked: Attacked) -> torch.Tensor:
    """Return what the target would say itself."""
    return search(attacked, [lambda _: 0.0] * (LENGTH - 1))


def data_of(folder: Path) -> dict:
    page = (folder / "report.html").read_text("utf-8")
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page).group(1))


def test_from_numbers_per_token_the_texts_are_read(attacked: Attacked) -> None:
    tokens = read_tokens(attacked.folder)
    for place, truth in enumerate(attacked.truth):
        numbers = np.rint(np.array(tokens["difference"][place].as_py()) * 1000) / 1000
        assert recovered(search(attacked, [near(float(number)) for number in numbers]), truth) >= 0.9


def test_what_is_handed_on_gives_no_text_back(attacked: Attacked) -> None:
    """The attacker weighs tokens by the bands that the record's page shows, having found the bounds by himself."""
    bands, plain = data_of(attacked.folder)["bands"], guess(attacked)
    percent = np.frombuffer(base64.b64decode(bands["percent"]), "u1").reshape(-1, 4)
    bounds = torch.tensor(bounds_of(attacked, plain), dtype=torch.float32)
    for row, truth in zip(attacked.rows, attacked.truth, strict=True):
        assert percent[row].max() <= 100, "a text of this length has its bands"
        weights = torch.log(torch.tensor(np.maximum(percent[row], 1) / np.array(bands["usual"]), dtype=torch.float32))
        found = search(attacked, [lambda ratios, w=weights: w[torch.bucketize(ratios, bounds)]] * (LENGTH - 1))
        assert recovered(found, truth) <= recovered(plain, truth) + 0.1
        assert recovered(found, truth) <= 0.25


def bounds_of(attacked: Attacked, plain: torch.Tensor) -> np.ndarray:
    """Bounds between the bands, as an attacker would estimate them, from a text that the target writes itself."""
    plain = plain[None]
    with torch.no_grad():
        ours, theirs = (m(plain).logits.log_softmax(-1) for m in (attacked.target, attacked.base))
    ratios = (ours - theirs)[0, :-1].gather(1, plain[0, 1:, None])
    return np.quantile(ratios.numpy(), (0.5, 0.9, 0.99))


def test_nothing_that_may_be_handed_on_has_a_number_per_token(attacked: Attacked) -> None:
    _, records = read_audit(attacked.folder)
    assert not [field for field in records.schema if pa.types.is_nested(field.type)]
    data = data_of(attacked.folder)
    assert data["strips"] is None
    n = len(records)
    # Whatever the length of the texts, the page has so many bytes of a record, and no more.
    packed = {"tokens": 4, "score": 4, "p": 4, "q": 4}
    assert {name: len(base64.b64decode(data[name])) for name in packed} == {k: n * size for k, size in packed.items()}
    assert len(base64.b64decode(data["bands"]["percent"])) == 4 * n
    assert len(data["bands"]["third"]) == n
    assert all(len(base64.b64decode(shares)) == 2 * n for shares in data["above"].values())
    others = set(data) - {*packed, "bands", "above", "strips"}
    assert others == {"total", "attack", "id", "kind", "group", "reason", "flagged"}
