"""Scoring by Ray Data: the same numbers as in one process, also when a worker dies or a file is torn."""

import importlib
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from ltmia.auditing.score import ScoreConfig, score
from ltmia.auditing.text_sets import as_texts
from ltmia.classifier.membership import shipped_classifier
from ltmia.data.embedded import demo_base_path, demo_texts
from ltmia.errors import ConfigError
from ltmia.finetuning.config import FinetuneConfig
from ltmia.finetuning.finetune import finetune
from ltmia.models.loading import LoadOptions, load_model, load_pair, load_tokenizer
from ltmia.records import Texts
from ltmia.scoring.audited_pair import LoadedPair
from ltmia.scoring.identity import PairIdentity
from ltmia.scoring.stored_scores import ScoringTask, extraction_config, score_to_store

pytest.importorskip("ray", reason='Ray is not installed: pip install "ltmia[ray]" to run these tests')

import ray

from ltmia.scoring import ray_scoring
from ltmia.scoring.ray_scoring import RayScorer
from ltmia.workers import connect

pytestmark = pytest.mark.slow  # each worker imports torch

CANDIDATES = (*demo_texts().texts[:60], "", "half a pair \ud800 of surrogates")
NONMEMBERS = demo_texts().texts[60:140]

DYING = """
import os, signal
from pathlib import Path
from ltmia.classifier.membership import MembershipClassifier

class Dying(MembershipClassifier):
    def predict_logit(self, features):
        mark = Path(self.mark)
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().predict_logit(features)
"""
"""A classifier that kills the first process that asks it. In a file, where Ray's workers find it."""


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> partial:
    folder = tmp_path_factory.mktemp("ray") / "target"
    options = LoadOptions(dtype="float32", device="cpu")
    base = str(demo_base_path())
    model, _ = load_model(base, options)
    config = FinetuneConfig(learning_rate=1e-3, epochs=2)
    finetune(model, load_tokenizer(base, options), CANDIDATES[:60], config, folder)
    return partial(load_pair, str(folder), base, dtype="float32", device="cpu")


@pytest.fixture(scope="module", autouse=True)
def modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One Ray for all tests, whose workers find the modules in a folder."""
    folder = tmp_path_factory.mktemp("modules")
    (folder / "dying_classifier.py").write_text(DYING, "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setenv("PYTHONPATH", str(folder), prepend=":")
        connect(n_workers=2)
        yield folder
        ray.shutdown()


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_scoring, "CHUNK_TEXTS", 40)


def test_scores_equal_those_of_one_process_and_a_torn_chunk_is_made_again(load: partial, tmp_path: Path) -> None:
    config = ScoreConfig(max_length=64)
    candidates = replace(as_texts(CANDIDATES), starts=tuple(len(text) // 10 for text in CANDIDATES))
    local = score(load(), candidates, NONMEMBERS, tmp_path / "local", config=config)
    scorer = RayScorer(load=load, n_workers=2)
    spread = score(load(), candidates, NONMEMBERS, tmp_path / "ray", config=config, scorer=scorer)
    assert spread.records["n_tokens"] == local.records["n_tokens"]
    ours, theirs = local.records, spread.records
    assert ours["reason"] == theirs["reason"]
    assert ours["flagged"] == theirs["flagged"]
    # Batches hold other texts, so padding differs: float noise, and roundings of the store's float16 and of the
    # published scores that it tips.
    np.testing.assert_allclose(theirs["score_ltmia"].to_numpy(), ours["score_ltmia"].to_numpy(), atol=1.2e-2)
    assert np.nanstd(ours["score_ltmia"].to_numpy()) > 0.5, "the tolerance must be small beside the spread"
    assert spread.results.data == local.results.data
    assert spread.results.data.n_cut > 0
    effects = [found.results.set_test.effect.value for found in (spread, local)]
    assert effects[0] == pytest.approx(effects[1], abs=2e-3)
    assert spread.results.validity.out_of_distribution.status == local.results.validity.out_of_distribution.status
    assert spread.results.timing.forward_seconds > 0

    chunks = sorted((tmp_path / "ray" / "private" / "store").glob("chunks-*/*.parquet"))
    assert [pq.read_metadata(chunk).num_rows for chunk in chunks] == [40, 40, 40, 22]
    chunks[1].write_bytes(chunks[1].read_bytes()[:-20])
    chunks[2].unlink()
    before = [chunks[i].stat().st_mtime_ns for i in (0, 3)]
    again = score(load(), candidates, NONMEMBERS, tmp_path / "ray", config=config, scorer=scorer)
    assert [chunks[i].stat().st_mtime_ns for i in (0, 3)] == before
    np.testing.assert_array_equal(again.records["score_ltmia"], theirs["score_ltmia"])  # NaN where unscorable


def test_a_worker_killed_in_the_middle_of_a_chunk_loses_nothing(load: partial, tmp_path: Path) -> None:
    dying = shipped_classifier()
    dying.__class__ = importlib.import_module("dying_classifier").Dying
    dying.mark = str(tmp_path / "mark")
    pair, texts = load(), Texts(texts=NONMEMBERS, ids=tuple(map(str, range(len(NONMEMBERS)))))
    task = ScoringTask(
        texts=texts,
        folder=tmp_path / "scores",
        config=extraction_config(("ltmia",), dying, max_length=32, batch_size=16),
        identity=PairIdentity.of(pair),
        classifier=dying,
    )
    scored = RayScorer(load=load, n_workers=1)(LoadedPair(pair), task)
    assert (tmp_path / "mark").exists(), "no worker was killed"
    assert np.isfinite(scored.scores["ltmia"]).all()
    assert len(scored.n_tokens) == len(NONMEMBERS)


def test_windows_of_long_texts_are_weighed_over_all_chunks(load: partial, tmp_path: Path) -> None:
    demo = demo_texts().texts
    long = [f"{one} {other}" for one, other in zip(demo[:50], demo[200:250], strict=True)]
    texts = as_texts((*long, "", *(text[:90] for text in demo[300:310])))
    classifier, pair = shipped_classifier("lite"), LoadedPair(load())
    config = extraction_config(("ltmia",), classifier, max_length=400, batch_size=16)
    task = ScoringTask(
        texts=texts,
        folder=tmp_path / "local",
        config=config,
        identity=PairIdentity.of(pair.models),
        classifier=classifier,
    )
    alone, spread = score_to_store(pair, task), RayScorer(load=load)(pair, replace(task, folder=tmp_path / "ray"))
    assert alone.windows is not None
    assert spread.windows is not None
    assert alone.windows.weights[0] > 1.5 * alone.windows.weights[-1], "the first of two texts was trained on"
    np.testing.assert_array_equal(spread.windows.n_tokens, alone.windows.n_tokens)
    np.testing.assert_allclose(spread.windows.weights, alone.windows.weights, rtol=1e-2)
    np.testing.assert_allclose(spread.scores["ltmia"], alone.scores["ltmia"], atol=2e-2)


def test_chunks_of_other_windows_are_not_reused(tmp_path: Path) -> None:
    classifier = shipped_classifier("lite")
    before = ray_scoring._begin(tmp_path, "settings", classifier)
    assert ray_scoring._begin(tmp_path, "settings", classifier) == before
    classifier.window = 256
    assert ray_scoring._begin(tmp_path, "settings", classifier) != before


def test_an_attack_that_needs_all_texts_at_once_is_refused(load: partial, tmp_path: Path) -> None:
    config = ScoreConfig(attack="dc_pdd")
    with pytest.raises(ConfigError, match="dc_pdd: needs all texts in one place"):
        score(load(), CANDIDATES, NONMEMBERS, tmp_path, config=config, scorer=RayScorer(load=load))
