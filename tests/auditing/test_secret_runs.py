"""Runs that rank secrets: what was ranked before a kill is not ranked again, and other spans are other work."""

import logging
from pathlib import Path

import pytest

from killed import killed_at_size
from ltmia.auditing.audit import AuditConfig
from ltmia.auditing.folder import hold_for
from ltmia.errors import ConfigError, DataError
from ltmia.finetuning.tiny import TinyConfig, build_base, train_tokenizer
from ltmia.models.pair import Pair
from ltmia.records import Texts
from ltmia.scoring import secret_ranks
from ltmia.scoring.kept_ranks import KeptRanks
from ltmia.scoring.pair_runner import ExtractionClock
from ltmia.scoring.secret_ranks import RankConfig, RankedSecret, Secret, rank_secrets

CONFIG = RankConfig(n_alternatives=20, max_length=64, seed=0)
SECRETS = [[Secret(text=f"the code is {number}.", start=12, end=15)] for number in (123, 456, 789)]
SETS = Texts(texts=("a 1",), ids=("a",)), Texts(texts=("b 2",), ids=("b",))


class Killed(BaseException):
    """A kill between two secrets."""


@pytest.fixture(scope="module")
def pair() -> Pair:
    target, reference = (
        build_base(TinyConfig(model_type="gpt2", vocab_size=257, hidden_size=16, n_layers=1), seed=seed)
        for seed in (0, 1)
    )
    return Pair(target=target, reference=reference, tokenizer=train_tokenizer([""], 257))


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Receives an entry for each secret that a model ranks."""
    made: list[int] = []
    inner = secret_ranks.ending_logp

    def counted(*given: object) -> object:
        made.append(1)
        return inner(*given)

    monkeypatch.setattr(secret_ranks, "ending_logp", counted)
    return made


def killed_after(n: int):
    def report(what: str, done: int, of: int) -> None:
        if (what, done) == ("ranking secrets", n):
            raise Killed

    return report


def ranked(pair: Pair, path: Path, models: str = "m", config: RankConfig = CONFIG) -> list[RankedSecret]:
    kept = KeptRanks(path, models)
    found = rank_secrets(pair, SECRETS, config, kept=kept)
    kept.finish(ExtractionClock(), lambda *_: None)
    return found


@pytest.mark.parametrize("n_done", [1, 3, 4, 6])
def test_a_killed_ranking_goes_on_after_the_last_secret(
    pair: Pair, passes: list[int], tmp_path: Path, n_done: int
) -> None:
    expected = rank_secrets(pair, SECRETS, CONFIG)
    n_passes = len(passes)
    with pytest.raises(Killed):
        rank_secrets(pair, SECRETS, CONFIG, kept=KeptRanks(tmp_path / "ranks", "m"), report=killed_after(n_done))
    with (tmp_path / "ranks").open("ab") as file:
        file.write(b"0123 {")  # what a kill cuts off
    passes.clear()
    kept, clock, said = KeptRanks(tmp_path / "ranks", "m"), ExtractionClock(), []
    assert rank_secrets(pair, SECRETS, CONFIG, kept=kept) == expected
    assert len(passes) == n_passes * (6 - n_done) // 6
    kept.finish(clock, lambda *given: said.append(given[1:]))
    assert [(one.what, one.n_texts) for one in clock.reused] == [("secrets", min(n_done, 3))]
    assert said == [(min(n_done, 3), 3)]
    assert clock.earlier > 0
    passes.clear()
    assert ranked(pair, tmp_path / "ranks") == expected
    assert not passes


@pytest.mark.parametrize(("n_done", "share"), [(0, 0.1), (1, 0.5), (5, 0.9)])
def test_a_rank_that_a_kill_cut_off_is_made_again(
    pair: Pair, passes: list[int], tmp_path: Path, n_done: int, share: float
) -> None:
    path = tmp_path / "ranks"
    expected = ranked(pair, tmp_path / "whole")
    *done, torn = (tmp_path / "whole").read_bytes().splitlines(keepends=True)[: n_done + 1]
    size = sum(map(len, done)) + int(len(torn) * share)
    killed_at_size(size, lambda: rank_secrets(pair, SECRETS, CONFIG, kept=KeptRanks(path, "m")))
    assert path.stat().st_size == size
    passes.clear()
    assert ranked(pair, path) == expected
    assert len(passes) == 6 - n_done
    assert len(path.read_bytes().splitlines()) == 6


def test_ranks_of_other_work_are_not_used_and_are_removed(pair: Pair, passes: list[int], tmp_path: Path) -> None:
    path = tmp_path / "ranks"
    ranked(pair, path)
    for models, config in (
        ("other", CONFIG),
        ("m", RankConfig(n_alternatives=21, max_length=64, seed=0)),
        ("m", RankConfig(n_alternatives=20, max_length=64, seed=1)),
    ):
        passes.clear()
        ranked(pair, path, models, config)
        assert len(passes) == 6
        assert len(path.read_bytes().splitlines()) == 6


def test_a_damaged_rank_is_made_again(
    pair: Pair, passes: list[int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "ranks"
    expected = ranked(pair, path)
    path.write_bytes(path.read_bytes().replace(b'"n_better":', b'"n_better":1', 1))
    passes.clear()
    with caplog.at_level(logging.WARNING):
        assert ranked(pair, path) == expected
    assert "1 damaged lines" in caplog.text
    assert len(passes) == 1


def test_other_spans_are_other_work_and_the_same_under_another_name_are_not(pair: Pair, tmp_path: Path) -> None:
    def enter(name: str | None, **options: object) -> None:
        spans = None if name is None else str(tmp_path / name)
        with hold_for(tmp_path / "out", "audit", pair, SETS, AuditConfig(spans=spans, **options)) as run:
            run.begin_scoring()

    for name, rule in (("rules", "code: \\d+"), ("same", "code: \\d+"), ("other", "code: \\d")):
        (tmp_path / name).write_text(rule, "utf-8")
    enter("rules")
    enter("same")
    with pytest.raises(ConfigError, match="an audit of other spans"):
        enter("other")
    with pytest.raises(ConfigError, match=r"other settings: .*spans"):
        enter(None)
    enter("other", overwrite=True)
    with pytest.raises(ConfigError, match="an audit of other spans"):
        enter("rules")


def test_a_missing_file_of_spans_sets_older_results_aside(pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "rules").write_text("code: \\d+", "utf-8")
    config = AuditConfig(spans=str(tmp_path / "rules"))
    with hold_for(tmp_path / "out", "audit", pair, SETS, config) as run:
        run.begin_scoring()
        (tmp_path / "out" / "results.json").write_text('{"run_id": "a"}', "utf-8")
    (tmp_path / "rules").unlink()
    with pytest.raises(DataError, match="rules"), hold_for(tmp_path / "out", "audit", pair, SETS, config):
        pass
    assert not (tmp_path / "out" / "results.json").exists()
    assert (tmp_path / "out" / "private" / "previous" / "results.json").exists()
