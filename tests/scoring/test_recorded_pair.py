"""Audits and claims from recordings of real models: the scores of the models themselves, or a refusal that says why."""

import json
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from commands import run_ltmia
from ltmia.attacks.evidence import TextEvidence, TokenFrequencies
from ltmia.attacks.selection import select_attacks
from ltmia.attacks.table import ATTACKS
from ltmia.auditing.assembly import data_info
from ltmia.auditing.audit import AuditConfig, audit
from ltmia.auditing.scored_sets import lengths_read
from ltmia.auditing.text_sets import join_sets
from ltmia.classifier.membership import shipped_classifier
from ltmia.data.reading import read_texts
from ltmia.data.recordings import RecordedText, Recording, RecordingHeader, write_recording
from ltmia.errors import ConfigError, DataError, LtmiaError
from ltmia.features.statistics import token_statistics
from ltmia.finetuning.config import FinetuneConfig
from ltmia.finetuning.finetune import finetune
from ltmia.models.loading import LoadOptions, load_alone, load_model, load_pair, load_tokenizer
from ltmia.records import SERVED, Texts
from ltmia.scoring.in_memory import score_texts
from ltmia.scoring.recorded_pair import RecordedPair, load_recorded_pair
from ltmia.scoring.recording import RecordConfig, record_model
from ltmia.scoring.stored_scores import ScoringTask, StoredTexts, extraction_config, score_to_store

OPTIONS = LoadOptions(dtype="float32", device="cpu")
RECORDED = ("ltmia", "loss", "difference", "ratio", "min_k", "dc_pdd", "ez_mia", "wbc", "bag_of_words")
LITE = AuditConfig(attacks="recorded", classifier="lite")


@pytest.fixture(scope="module")
def sets(materials: Path) -> tuple[Texts, Texts]:
    """Members and non-members; one of the latter is empty."""
    members, others = (read_texts(materials / f"{name}.jsonl").take(range(40)) for name in ("train", "held-out"))
    return members.take(range(30)), replace(others, texts=("", *others.texts[1:]))


@pytest.fixture(scope="module")
def files(materials: Path, sets: tuple[Texts, Texts], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Recordings of both models."""
    folder = tmp_path_factory.mktemp("recordings")
    for name in ("my-model", "my-base"):
        record_model(
            load_alone(materials / name, options=OPTIONS), Texts.concatenate(sets), folder / f"{name}.jsonl.gz"
        )
    return folder / "my-model.jsonl.gz", folder / "my-base.jsonl.gz"


@pytest.fixture
def changed(files: tuple[Path, Path], tmp_path: Path) -> Callable[..., RecordedPair]:
    """Open both recordings after a change to the lines of one."""

    def change(
        lines: Callable[[list[RecordedText]], list[RecordedText]], header: dict | None = None, which: int = 0
    ) -> RecordedPair:
        places = list(files)
        given = Recording(places[which])
        places[which] = tmp_path / "changed.jsonl"
        write_recording(places[which], given.header.model_copy(update=header or {}), lines(list(given)))
        return load_recorded_pair(*places)

    return change


def scored(
    pair: RecordedPair, sets: tuple[Texts, Texts], folder: Path, names: str, max_length: int = 128
) -> StoredTexts:
    """Score members and non-members, without the rest of an audit."""
    chosen = select_attacks(names)
    classifier = shipped_classifier("lite") if "ltmia" in chosen else None
    config = extraction_config(chosen, classifier, max_length=max_length, batch_size=16, k=pair.k)
    texts, identity = Texts.concatenate(sets), pair.identity()
    task = ScoringTask(texts=texts, folder=folder, config=config, identity=identity, classifier=classifier)
    return score_to_store(pair, task)


def test_scores_from_recordings_are_those_of_the_models(
    materials: Path, files: tuple[Path, Path], sets: tuple[Texts, Texts], tmp_path: Path
) -> None:
    found = scored(load_recorded_pair(*files), sets, tmp_path / "store", "recorded")
    pair = load_pair(materials / "my-model", materials / "my-base", dtype="float32", device="cpu")
    names = [name for name in RECORDED if name != "bag_of_words"]
    direct = score_texts(pair, Texts.concatenate(sets).texts, attacks=names, classifier=shipped_classifier("lite"))
    assert set(found.scores) == set(names)
    for name in names:
        np.testing.assert_allclose(found.scores[name], direct[name], atol=1e-4, err_msg=name)
    # As small as what was recorded.
    assert found.store.k == 3


def test_an_audit_says_that_it_rests_on_recordings(
    files: tuple[Path, Path], sets: tuple[Texts, Texts], tmp_path: Path
) -> None:
    config = replace(LITE, attacks="ltmia")
    result = audit(load_recorded_pair(*files), *sets, tmp_path / "audit", config=config)
    assert result.results.attacks["ltmia"].auc.value > 0.8
    # One text is empty, and so it was recorded.
    reasons = result.records["reason"].to_pylist()
    assert [row for row, reason in enumerate(reasons) if reason] == [len(sets[0])]
    assert reasons[len(sets[0])] == "the recording of the target has no numbers of it, and says why in its line"
    # Where it comes from, and what could not be checked.
    found = result.results
    for model, path, name in ((found.target, files[0], "my-model"), (found.reference, files[1], "my-base")):
        assert model.source == name, "the recording states the whole path"
        assert model.sha256 == sha256(path.read_bytes()).hexdigest()
        assert model.recorded_by.startswith("ltmia ")
        assert model.n_parameters is model.architecture is model.dtype is None
    for check in (found.validity.base, found.validity.backend):
        assert check.status == "not_measured"
        assert check.sentence.startswith("Only recordings of the models were available")
    others = ("blind", "near_duplicates", "length_only", "out_of_distribution", "expectation", "power")
    assert all(getattr(found.validity, name).status != "not_measured" for name in others)
    page = (tmp_path / "audit" / "report.html").read_text("utf-8")
    assert "not run here" in page
    assert found.target.sha256 in page


def test_how_many_texts_go_on_is_known_if_the_recordings_say_so(
    materials: Path,
    files: tuple[Path, Path],
    sets: tuple[Texts, Texts],
    changed: Callable[..., RecordedPair],
    tmp_path: Path,
) -> None:
    pair = load_pair(materials / "my-model", materials / "my-base", dtype="float32", device="cpu")
    texts = Texts.concatenate(sets)
    lengths = [len(ids) for ids in pair.tokenizer(list(texts.texts))["input_ids"]]
    for most in (128, 40):
        found = scored(load_recorded_pair(*files), sets, tmp_path / str(most), "loss", most)
        assert list(found.truncated) == [length > most for length in lengths]
    assert 0 < sum(found.truncated) < len(texts)

    def silent(lines: list[RecordedText]) -> list[RecordedText]:
        return [line.model_copy(update={"truncated": None}) for line in lines]

    unsaid = scored(changed(silent), sets, tmp_path / "unsaid", "loss", 40)
    assert list(unsaid.truncated) == [True if length > 40 else None for length in lengths]

    def short(lines: list[RecordedText]) -> list[RecordedText]:
        return [
            line.model_copy(
                update={
                    name: getattr(line, name)[: 40 - (name != "tokens")] for name in ("tokens", "logp", "rank", "top")
                }
                | {"truncated": line.truncated or len(line.tokens) > 40}
            )
            for line in lines
        ]

    for pair, asked, read in (
        (load_recorded_pair(*files), 40, 40),
        (changed(silent), 500, max(min(length, 128) for length in lengths)),
    ):
        assert lengths_read(pair, texts, asked)["max_length"] == read
    targets = changed(short).target
    assert lengths_read(RecordedPair(target=targets, reference=targets), texts, 100)["max_length"] == 40
    counted = [data_info(join_sets(*sets, "members"), some).n_cut for some in (found, unsaid)]
    assert counted == [sum(length > 40 for length in lengths), None]


def test_record_and_score_by_command(materials: Path, tmp_path: Path) -> None:
    sources = {"--candidates": tmp_path / "candidates.jsonl", "--nonmembers": tmp_path / "others.jsonl"}
    for path, name in zip(sources.values(), ("train", "held-out"), strict=True):
        path.write_text("".join((materials / f"{name}.jsonl").open(encoding="utf-8").readlines()[:40]), "utf-8")
    texts = [word for path in sources.values() for word in ("--texts", str(path))]
    for name in ("my-model", "my-base"):
        out = str(tmp_path / f"{name}.jsonl.gz")
        done = run_ltmia("record", str(materials / name), *texts, "-o", out, "--device", "cpu")
        assert (done.returncode, done.stdout.split()[1:]) == (0, ["80", "texts"]), done.stderr
    sources = [word for option, path in sources.items() for word in (option, str(path))]
    models = [str(tmp_path / "my-model.jsonl.gz"), "--base", str(tmp_path / "my-base.jsonl.gz")]
    refused = run_ltmia("score", *models, *sources, "-o", str(tmp_path / "claim"))
    assert refused.returncode == 2
    assert "a classifier of 'excess' features" in refused.stderr
    assert "choose --classifier lite" in refused.stderr
    done = run_ltmia("score", *models, *sources, "--classifier", "lite", "-o", str(tmp_path / "claim"), "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["kind"] == "score"
    assert found["target"]["recorded_by"].startswith("ltmia ")
    assert found["set_test"]["p_value"] < 0.01
    records = pq.read_table(tmp_path / "claim" / "records.parquet")
    assert records["reason"].null_count == records.num_rows == 80


def test_what_recordings_hold_too_little_for_is_refused_by_name(
    files: tuple[Path, Path], sets: tuple[Texts, Texts], tmp_path: Path
) -> None:
    pair = load_recorded_pair(*files)
    for config, named in (
        (
            AuditConfig(),
            ["zlib", "min_k_plus_plus", "surp", "gap_k", "excess", "'excess' features", "`attacks=recorded`"],
        ),
        (AuditConfig(attacks="loss,recall"), ["recall", "`ltmia attacks`"]),
        (replace(LITE, reveal=True), ["`reveal", "tokenizer"]),
    ):
        with pytest.raises(ConfigError, match=r"^recordings hold too little for") as raised:
            audit(pair, *sets, tmp_path / "audit", config=config)
        assert all(word in str(raised.value) for word in named), raised.value
    for models in ((files[0], "my-base"), ("my-model", files[1]), (files[0], "auto")):
        with pytest.raises(ConfigError, match=r"is a recording, but .* is not: record the other model too"):
            load_recorded_pair(*models)


def test_recorded_attacks_are_those_that_read_nothing_else() -> None:
    """What a function says it reads is all it reads: of the rest it may be told anything."""
    rng = np.random.default_rng(0)
    target, reference = torch.tensor(rng.normal(0, 3, (2, 30, 40)).astype(np.float32))
    ids = rng.integers(0, 40, 30)
    tokens = token_statistics(target, reference, torch.tensor(ids), 4)
    evidence = TextEvidence(
        text="some words",
        tokens=tokens,
        token_ids=ids.astype(np.int32),
        token_frequencies=TokenFrequencies.from_counts(np.ones(40, np.int64)),
    )
    for attack in ATTACKS.values():
        if attack.fast is not None:
            unread = set(tokens.__slots__) - attack.fast.reads
            spoilt = {name: np.full_like(getattr(tokens, name), 3) for name in unread}
            text = evidence.text if "text" in attack.fast.reads else "other words of other length"
            told = replace(evidence, tokens=replace(tokens, **spoilt), text=text)
            np.testing.assert_equal(attack.fast(told), attack.fast(evidence), err_msg=attack.name)
            assert attack.recorded == (attack.fast.reads <= SERVED)
    assert select_attacks("recorded") == RECORDED
    assert not any(attack.recorded for attack in ATTACKS.values() if attack.slow)


def test_lines_may_stand_in_any_order_and_hold_more_than_is_read(
    changed: Callable[..., RecordedPair], files: tuple[Path, Path], sets: tuple[Texts, Texts], tmp_path: Path
) -> None:
    other = RecordedText(id="another", tokens=[1], reason="unasked")
    shuffled = changed(lambda lines: [other, *lines[::-1]])
    found = scored(shuffled, sets, tmp_path / "shuffled", "difference,loss", max_length=40)
    whole = scored(load_recorded_pair(*files), sets, tmp_path / "whole", "difference,loss", max_length=40)
    for name in ("difference", "loss"):
        np.testing.assert_array_equal(found.scores[name], whole.scores[name])
    np.testing.assert_array_equal(found.n_tokens, whole.n_tokens)
    assert whole.n_tokens.max() == 39
    lines = {line.id: line for line in Recording(files[0])}
    said = [np.mean(lines[name].logp[:39]) for name in sets[0].ids]
    np.testing.assert_allclose(whole.scores["loss"][: len(said)], said, atol=1e-6)
    # A second call finds the store of the first; other recordings make another one.
    before = (tmp_path / "whole" / "tokens.f16").stat().st_mtime_ns
    scored(load_recorded_pair(*files), sets, tmp_path / "whole", "difference,loss", max_length=40)
    assert (tmp_path / "whole" / "tokens.f16").stat().st_mtime_ns == before
    scored(shuffled, sets, tmp_path / "whole", "difference,loss", max_length=40)
    assert (tmp_path / "whole" / "tokens.f16").stat().st_mtime_ns != before


def test_gaps_and_reasons_make_a_text_unscorable(
    changed: Callable[..., RecordedPair], sets: tuple[Texts, Texts], tmp_path: Path
) -> None:
    def spoil(lines: list[RecordedText]) -> list[RecordedText]:
        gap, short = lines[3], lines[4]
        lines[3] = gap.model_copy(update={"rank": [None, *gap.rank[1:]]})
        lines[4] = RecordedText(id=short.id, tokens=[], reason=f"the server timed out on {sets[0].texts[4]}")
        return lines

    found = scored(changed(spoil, which=1), sets, tmp_path, "difference")
    assert list(found.reasons)[3:5] == [
        "the recording of the reference lacks log-probability or rank of 1 token(s)",
        "the recording of the reference has no numbers of it, and says why in its line",
    ]
    assert np.isnan(found.scores["difference"][3:5]).all()


def test_recordings_of_other_texts_are_refused(
    changed: Callable[..., RecordedPair], sets: tuple[Texts, Texts], tmp_path: Path
) -> None:
    def swapped(line: RecordedText) -> RecordedText:
        return line.model_copy(update={"tokens": [line.tokens[0], line.tokens[2], line.tokens[1], *line.tokens[3:]]})

    def renamed(line: RecordedText) -> RecordedText:
        return line.model_copy(update={"text_sha256": "0" * 64})

    first, config = sets[0].ids[0], replace(LITE, attacks="loss")
    for change, which, message in (
        (lambda lines: lines[2:], 0, f"changed.jsonl: lacks 2 of the 70 texts, such as '{first}'"),
        (lambda lines: lines[1:], 1, f"changed.jsonl: lacks 1 of the 70 texts.*{first}"),
        (lambda lines: [swapped(lines[0]), *lines[1:]], 0, f"'{first}' has other token ids in the one"),
        (lambda lines: [renamed(lines[0]), *lines[1:]], 1, f"changed.jsonl: '{first}' was recorded of another text"),
    ):
        with pytest.raises(DataError, match=message):
            audit(changed(change, which=which), *sets, tmp_path / "audit", config=config)  # claimed by none
    twice = Texts(texts=sets[0].texts[:2], ids=sets[0].ids[:2])
    with pytest.raises(DataError, match="occurs twice, and recordings know texts by their ids"):
        audit(changed(lambda lines: lines), twice, twice, tmp_path / "twice", config=config)
    with pytest.raises(DataError, match="n_top is 2; expected 3 or more of the target"):
        changed(
            lambda lines: [line.model_copy(update={"top": [t[:2] for t in line.top]}) for line in lines], {"n_top": 2}
        )


class KilledError(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz"])
def test_an_interrupted_recording_goes_on_to_the_same_file(materials: Path, tmp_path: Path, ending: str) -> None:
    texts = read_texts(materials / "held-out.jsonl").take(range(40))
    pair = load_alone(materials / "my-base", options=OPTIONS)
    whole, killed = tmp_path / f"whole{ending}", tmp_path / f"killed{ending}"
    config = RecordConfig(max_length=30, batch_size=4)
    record_model(pair, texts, whole, config=config)
    ran: list[int] = []

    def kill(_task: str, done: int, _total: int) -> None:
        ran.append(done)
        if len(ran) == 4:
            raise KilledError

    with pytest.raises(KilledError):
        record_model(pair, texts, killed, config=config, report=kill)
    assert not killed.exists()
    work = tmp_path / f".killed{ending}.work" / "lines.jsonl"
    with work.open("ab") as file:
        file.write(work.read_bytes()[:300])  # a line torn by the kill
    ran.clear()
    record_model(pair, texts, killed, config=config, report=lambda *said: ran.append(said[1]))
    assert killed.read_bytes() == whole.read_bytes()
    assert ran[0] >= 12
    assert [line.id for line in Recording(killed)] == list(texts.ids)
    assert set(tmp_path.iterdir()) == {whole, killed}
    # The same work is not done again; other work replaces the file if it is told to.
    before = killed.stat().st_mtime_ns
    record_model(pair, texts, killed, config=config)
    assert killed.stat().st_mtime_ns == before
    with pytest.raises(
        ConfigError, match=r"a recording of another model, other texts or other settings.*`overwrite=True`"
    ):
        record_model(pair, texts.take([0]), killed, config=config)
    assert killed.read_bytes() == whole.read_bytes()
    record_model(pair, texts.take([0]), killed, config=config, overwrite=True)
    assert len(list(Recording(killed))) == 1


def test_a_file_that_is_no_recording_of_ours_is_never_replaced(materials: Path, tmp_path: Path) -> None:
    pair, texts = load_alone(materials / "my-base", options=OPTIONS), read_texts(materials / "held-out.jsonl")
    precious = tmp_path / "train.jsonl"
    precious.write_text('{"text": "years of work"}\n')
    (tmp_path / "link.jsonl").symlink_to(precious)
    with pytest.raises(ConfigError, match=r"not a recording by ltmia"):
        record_model(pair, texts.take([0]), precious, overwrite=True)
    with pytest.raises(ConfigError, match=r"not a recording by ltmia"):
        record_model(pair, texts.take([0]), tmp_path / "link.jsonl", overwrite=True)
    header = RecordingHeader(model="served", vocab_size=10, n_top=3, recorded_by="vLLM")
    write_recording(tmp_path / "served.jsonl", header, [])
    with pytest.raises(ConfigError, match=r"a recording that ltmia did not make"):
        record_model(pair, texts.take([0]), tmp_path / "served.jsonl", overwrite=True)
    assert precious.read_text() == '{"text": "years of work"}\n'
    assert len(list(tmp_path.iterdir())) == 3


def test_an_adapter_is_recorded_as_it_runs_in_a_pair(materials: Path, tmp_path: Path) -> None:
    texts = read_texts(materials / "train.jsonl").take(range(8))
    base, _ = load_model(str(materials / "my-base"), OPTIONS)
    tokenizer = load_tokenizer(str(materials / "my-base"), OPTIONS)
    finetune(base, tokenizer, texts.texts, FinetuneConfig(epochs=1, lora=True, learning_rate=1e-2), tmp_path / "lora")
    alone = load_alone(tmp_path / "lora", tokenizer=materials / "my-base", options=OPTIONS)
    lines = list(record_model(alone, texts, tmp_path / "lora.jsonl"))
    pair = load_pair(tmp_path / "lora", dtype="float32", device="cpu")
    direct = score_texts(pair, texts.texts, attacks=["loss", "difference"])
    np.testing.assert_allclose([np.mean(line.logp) for line in lines], direct["loss"], atol=1e-5)
    assert np.abs(direct["difference"]).min() > 1e-3


def test_a_model_that_gives_nan_is_recorded_as_such(materials: Path, tmp_path: Path) -> None:
    pair = load_alone(materials / "my-base", options=OPTIONS)
    with torch.no_grad():
        pair.target.get_input_embeddings().weight[7] = torch.nan
    texts = read_texts(materials / "held-out.jsonl").take(range(6))
    lines = list(record_model(pair, texts, tmp_path / "nan.jsonl"))
    # The token's logit is NaN at every position.
    assert [line.reason for line in lines] == 6 * ["the model gives NaN logits on it"]
    assert not any(line.logp or line.rank or line.top for line in lines)


def test_names_of_recordings_and_ids_of_texts_are_checked(materials: Path, tmp_path: Path) -> None:
    texts = read_texts(materials / "held-out.jsonl").take(range(3))
    with pytest.raises(
        DataError, match=r"held-out\.jsonl, .*held-out\.jsonl: the id .* occurs twice, and recordings know"
    ):
        record_model(
            load_alone(materials / "my-base", options=OPTIONS), Texts.concatenate([texts, texts]), tmp_path / "r.jsonl"
        )
    with pytest.raises(ConfigError, match=r"expected a name that ends in \.jsonl or \.jsonl\.gz"):
        record_model(load_alone(materials / "my-base", options=OPTIONS), texts, tmp_path / "r.txt")
    header = RecordingHeader(model="m", vocab_size=9, n_top=3, recorded_by="hand")
    write_recording(tmp_path / "r.jsonl", header, [])
    with pytest.raises(LtmiaError, match=r"r\.jsonl is a recording, but x is not"):
        load_recorded_pair(tmp_path / "r.jsonl", "x")
