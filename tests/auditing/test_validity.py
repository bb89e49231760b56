"""What may spoil an audit is planted here, on embedded texts and real tiny models, and must be noticed."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from ltmia.auditing.audit import AuditConfig, audit
from ltmia.auditing.doctor import diagnose_pair
from ltmia.auditing.model_evidence import rescore
from ltmia.auditing.text_sets import as_texts
from ltmia.data.embedded import demo_base_path, demo_texts
from ltmia.evaluation.calibration import judge_audit, judge_candidates
from ltmia.evaluation.comparison import compare_audits
from ltmia.evaluation.controls import bag_of_words
from ltmia.evaluation.files import read_records
from ltmia.evaluation.gate import hold_against
from ltmia.evaluation.intervals import measure_attack
from ltmia.evaluation.limits import Limit
from ltmia.evaluation.model_checks import Rescored, backend_check
from ltmia.evaluation.results import Check, Results
from ltmia.evaluation.validity import FEWEST_TO_LEARN_FROM, control_check, expectation_check, power_check
from ltmia.finetuning.config import FinetuneConfig
from ltmia.finetuning.finetune import finetune
from ltmia.models.loading import LoadOptions, load_model, load_pair, load_tokenizer
from ltmia.models.pair import Pair
from ltmia.scoring.audited_pair import LoadedPair

OPTIONS = LoadOptions(dtype="float32", device="cpu")
TEXTS = demo_texts()
LATIN = """
Gallia est omnis divisa in partes tres, quarum unam incolunt Belgae, aliam Aquitani, tertiam qui ipsorum lingua Celtae.
Hi omnes lingua, institutis, legibus inter se differunt. Gallos ab Aquitanis Garumna flumen, a Belgis Matrona dividit.
Horum omnium fortissimi sunt Belgae, propterea quod a cultu atque humanitate provinciae longissime absunt.
Minimeque ad eos mercatores saepe commeant atque ea quae ad effeminandos animos pertinent important.
Proximique sunt Germanis, qui trans Rhenum incolunt, quibuscum continenter bellum gerunt.
Qua de causa Helvetii quoque reliquos Gallos virtute praecedunt, quod fere cotidianis proeliis cum Germanis contendunt.
Apud Helvetios longe nobilissimus fuit et ditissimus Orgetorix. Is regni cupiditate inductus coniurationem fecit.
Et civitati persuasit ut de finibus suis cum omnibus copiis exirent: perfacile esse totius Galliae imperio potiri.
Id hoc facilius iis persuasit, quod undique loci natura Helvetii continentur: una ex parte flumine Rheno latissimo.
His rebus fiebat ut et minus late vagarentur et minus facile finitimis bellum inferre possent.
Arma virumque cano, Troiae qui primus ab oris Italiam fato profugus Laviniaque venit litora, multum ille et terris.
Musa, mihi causas memora, quo numine laeso quidve dolens regina deum tot volvere casus insignem pietate virum.
Urbs antiqua fuit (Tyrii tenuere coloni) Karthago, Italiam contra Tiberinaque longe ostia, dives opum studiisque.
Quo usque tandem abutere, Catilina, patientia nostra? Quam diu etiam furor iste tuus nos eludet?
Nihilne te nocturnum praesidium Palati, nihil urbis vigiliae, nihil timor populi, nihil concursus bonorum omnium?
Patere tua consilia non sentis, constrictam iam horum omnium scientia teneri coniurationem tuam non vides?
O tempora, o mores! Senatus haec intellegit, consul videt; hic tamen vivit. Vivit? Immo vero etiam in senatum venit.
In nova fert animus mutatas dicere formas corpora; di, coeptis (nam vos mutastis et illas) adspirate meis.
Aurea prima sata est aetas, quae vindice nullo, sponte sua, sine lege fidem rectumque colebat.
Urbem Romam a principio reges habuere; libertatem et consulatum L. Brutus instituit. Dictaturae ad tempus sumebantur.
""".strip().splitlines()
"""Of a language that no training corpus holds."""
MEMBERS, NONMEMBERS = TEXTS.texts[:60], TEXTS.texts[80:200]


def base_model():
    return load_model(str(demo_base_path()), OPTIONS)[0]


def random_model(seed: int):
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(demo_base_path()))


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("validity") / "target"
    config = FinetuneConfig(epochs=2, learning_rate=1e-3, batch_size=8, max_length=64)
    finetune(base_model(), load_tokenizer(str(demo_base_path()), OPTIONS), MEMBERS, config, folder)
    return folder


def pair_of(target: Path, reference) -> Pair:
    return Pair(
        target=load_model(str(target), OPTIONS)[0], reference=reference, tokenizer=load_tokenizer(str(target), OPTIONS)
    )


def audited(
    pair: Pair, members: Sequence[str], nonmembers: Sequence[str], out: Path, attacks: str = "difference", **options
) -> Results:
    config = AuditConfig(attacks=attacks, max_length=48, **options)
    return audit(pair, members, nonmembers, out, config=config).results


def passages(years: range) -> list[int]:
    return [i for i, source in enumerate(TEXTS.groups or ()) if int(source.split("/")[1][:4]) in years]


def blind_control(members: list[int], nonmembers: list[int]) -> Check:
    rows = members + nonmembers
    labels = np.repeat([1, 0], [len(members), len(nonmembers)])
    control = bag_of_words([TEXTS.texts[i] for i in rows], labels)
    return control_check(control, measure_attack(control.scores[labels == 1], control.scores[labels == 0]).auc, "words")


def test_speeches_of_another_century_are_told_apart_without_any_model() -> None:
    found = blind_control(passages(range(2014, 2015)), passages(range(1800, 1900))[:300])
    assert found.status == "warning"
    assert found.measure.low > 0.5
    assert "may be this difference and not membership" in found.sentence


def test_a_random_split_of_one_source_is_not_told_apart() -> None:
    rows = np.random.default_rng(0).permutation(passages(range(1950, 2000))).tolist()
    assert blind_control(rows[:150], rows[150:450]).status == "ok"


def test_planted_duplicates_are_found_said_and_left_out_on_request(target: Path, tmp_path: Path) -> None:
    pair = pair_of(target, base_model())
    edited = MEMBERS[2].replace("the", "The", 1) + " Indeed."
    half = MEMBERS[3][: len(MEMBERS[3]) // 2] + " and something that none of them ever said to anybody at any time"
    planted = [*NONMEMBERS[:20], MEMBERS[0], MEMBERS[1].upper(), edited, half]
    found = audited(pair, [*MEMBERS[:20], MEMBERS[5]], planted, tmp_path / "kept")
    check = found.validity.near_duplicates
    assert check.status == "warning"
    assert check.details["repeats_across_sets"] == 3
    assert check.details["repeats_within_a_set"] == 1
    assert check.details["nonmembers_overlapping"] == 4
    assert "`deduplicate`" in check.sentence
    assert check.sentence in found.verdict
    clean = audited(pair, [*MEMBERS[:20], MEMBERS[5]], planted, tmp_path / "clean", deduplicate=True)
    assert clean.data.n_members == 20
    assert clean.data.n_nonmembers == 20
    assert clean.validity.near_duplicates.status == "ok"
    assert clean.validity.near_duplicates.details["left_out"] == 5


@pytest.fixture(scope="module")
def sound_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sound")


@pytest.fixture(scope="module")
def sound(target: Path, sound_folder: Path) -> Results:
    return audited(pair_of(target, base_model()), MEMBERS, NONMEMBERS, sound_folder)


def test_the_right_base_is_taken_as_such(sound: Results) -> None:
    check = sound.validity.base
    assert check.status == "ok", check.sentence
    assert 0 < check.details["weight_change"] < 0.3
    assert check.details["agreement"] > 0.7
    assert sound.attacks["difference"].auc.value > 0.7


def test_an_unrelated_base_is_noticed_by_audit_doctor_and_gate(target: Path, sound: Results, tmp_path: Path) -> None:
    pair = pair_of(target, random_model(3))
    found = audited(pair, MEMBERS, NONMEMBERS, tmp_path)
    check = found.validity.base
    assert check.status == "warning"
    assert "name the right one" in check.sentence
    assert check.sentence in found.verdict
    assert any("probably not fine-tuned from this base" in finding.sentence for finding in diagnose_pair(pair).findings)
    limits = [Limit.parse("auc:0.999")]
    assert hold_against(sound, limits).exit_code == 0
    verdict = hold_against(found, limits)
    assert verdict.exit_code == 3
    assert "may see too little" in verdict.lines()[0]


@pytest.mark.slow
def test_an_adapter_that_leaks_less_than_full_fine_tuning_is_told_from_it(
    target: Path, sound: Results, sound_folder: Path, tmp_path: Path
) -> None:
    adapter = tmp_path / "adapter"
    config = FinetuneConfig(epochs=2, learning_rate=1e-3, batch_size=8, max_length=64, lora=True)
    finetune(base_model(), load_tokenizer(str(demo_base_path()), OPTIONS), MEMBERS, config, adapter)
    pair = load_pair(adapter, demo_base_path(), dtype="float32", device="cpu")
    gentle = audited(pair, MEMBERS, NONMEMBERS, tmp_path / "audit")
    full, lora = (sound, read_records(sound_folder)), (gentle, read_records(tmp_path / "audit"))
    found = compare_audits(full, lora, same_texts=True)
    assert found.lower_leakage == "yes"
    assert found.auc.high < 0
    assert found.auc.value == pytest.approx(
        gentle.attacks["difference"].auc.value - sound.attacks["difference"].auc.value
    )
    assert compare_audits(lora, full, same_texts=True).lower_leakage == "no"


@pytest.mark.slow
def test_what_the_classifier_never_saw_raises_the_flag_and_the_best_baseline_is_named(
    target: Path, tmp_path: Path
) -> None:
    both, usual = "ltmia,difference", pair_of(target, base_model())
    speeches = audited(usual, MEMBERS[:20], NONMEMBERS[:20], tmp_path / "speeches", both)
    latin = audited(usual, LATIN[:10], LATIN[10:], tmp_path / "latin", both)
    untrained = Pair(target=random_model(1), reference=random_model(2), tokenizer=usual.tokenizer)
    nonsense = audited(untrained, MEMBERS[:20], NONMEMBERS[:20], tmp_path / "nonsense", both)
    distance = [found.validity.out_of_distribution.measure.value for found in (speeches, latin, nonsense)]
    assert distance[0] < distance[1]
    assert 2 * distance[0] < distance[2]
    for found, kind in ((latin, "attack that learns nothing"), (nonsense, "of the other attacks")):
        check = found.validity.out_of_distribution
        assert check.status == "warning"
        assert check.sentence in found.verdict
        assert f"The best {kind}, difference, has an AUC of" in found.verdict


def test_too_few_texts_to_learn_from_are_said_and_the_best_other_attack_is_named(target: Path, tmp_path: Path) -> None:
    pair, few = pair_of(target, base_model()), (MEMBERS[:14], [*NONMEMBERS[:16], ""])
    found = audited(pair, *few, tmp_path, "ltmia,excess,wbc,loss")
    check = found.validity.expectation
    assert (check.status, check.details["texts"]) == ("warning", 30), "what cannot be scored teaches nothing"
    assert check.sentence.startswith("The attacks excess and ltmia learned from only 30 texts ")
    assert check.sentence.endswith("with fewer than 40 the best of the other attacks may find more.")
    assert check.sentence in found.verdict
    auc = {name: found.attacks[name].auc.value for name in ("wbc", "loss")}
    best = max(auc, key=auc.get)
    assert f"The best attack that learns nothing, {best}, has an AUC of {auc[best]:.3f}" in found.verdict
    plain = audited(pair, *few, tmp_path / "plain", "wbc,loss")
    assert plain.validity.expectation.status == "not_measured"
    assert "learn" not in plain.verdict


def test_the_limit_of_texts_to_learn_from() -> None:
    assert expectation_check(FEWEST_TO_LEARN_FROM).status == "ok"
    assert expectation_check(FEWEST_TO_LEARN_FROM - 1).status == "warning"
    assert expectation_check(None).status == "not_measured"


def test_a_base_that_is_the_target_itself_is_noticed(target: Path, tmp_path: Path) -> None:
    same = load_model(str(target), OPTIONS)[0]
    untrained = get_peft_model(
        base_model(), LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", use_dora=True)
    )
    twins = (pair_of(target, same), Pair(target=untrained, tokenizer=pair_of(target, same).tokenizer))
    for name, pair in zip(("full", "adapter"), twins, strict=True):
        found = audited(pair, MEMBERS[:20], NONMEMBERS[:20], tmp_path / name)
        assert found.validity.base.status == "failed"
        assert "Target and base are the same model" in found.verdict
        assert hold_against(found, [Limit.parse("auc:1")]).exit_code == 3


def test_half_precision_is_held_against_float32_and_put_back(target: Path) -> None:
    pair = load_pair(target, demo_base_path(), dtype="bfloat16", device="cpu")
    before = [p.detach().clone() for p in (*pair.target.parameters(), *pair.reference.parameters())]
    exact = load_pair(target, demo_base_path(), dtype="float32", device="cpu")
    from ltmia.scoring.in_memory import score_texts

    half, full = (score_texts(p, list(MEMBERS[:3]), attacks="difference")["difference"] for p in (pair, exact))
    found = rescore(LoadedPair(pair), as_texts(MEMBERS[:3]), half.tolist(), max_length=128)
    assert found.float32 == pytest.approx(np.abs(half - full)[:2].max(), abs=found.noise + 1e-3)
    after = [p.detach() for p in (*pair.target.parameters(), *pair.reference.parameters())]
    assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(after, before, strict=True))
    found = rescore(LoadedPair(exact), as_texts(MEMBERS[:3]), full.tolist(), max_length=128)
    assert found.reason == "computed in float32 anyway"


def test_noise_is_judged_against_the_spread() -> None:
    half, full = ({"dtype": name, "reference_dtype": name} for name in ("bfloat16", "float32"))
    quiet = backend_check(Rescored(noise=1e-6, float32=None, reason="x"), gap=0.2, spread=0.1, **full)
    assert quiet.status == "ok"
    loud = backend_check(Rescored(noise=1e-3, float32=0.05), gap=0.02, spread=0.1, **half)
    assert loud.status == "warning"
    assert "audit again in float32" in loud.sentence
    assert "50 % in float32 instead of bfloat16 (" in loud.sentence
    nothing = backend_check(Rescored(noise=0.0, float32=None), gap=math.nan, spread=0.0, **full)
    assert nothing.status == "not_measured"
    assert nothing.details["gap"] is None


def test_two_dtypes_are_both_named_and_cured(target: Path, tmp_path: Path) -> None:
    found = audited(pair_of(target, base_model().to(torch.bfloat16)), MEMBERS[:20], NONMEMBERS[:20], tmp_path)
    check = found.validity.backend
    assert (check.details["dtype"], check.details["reference_dtype"]) == ("float32", "bfloat16")
    assert "in float32 instead of float32 (target) and bfloat16 (base)" in check.sentence
    loud = backend_check(
        Rescored(noise=0.0, float32=0.05), gap=0.02, spread=0.1, dtype="float32", reference_dtype="bfloat16"
    )
    assert "audit again in float32" in loud.sentence


def test_power_says_what_cannot_be_shown() -> None:
    rng = np.random.default_rng(0)
    few = judge_audit(rng.normal(size=50), rng.normal(size=30), attack="loss", fdr=0.05).summary
    assert few.fewest_flags is None, "65 tests at 1/16 each: even all of them together are above 5 %"
    assert "nothing can be flagged" in power_check(50, 30, few).sentence
    # 100 candidates against 999: k = 100 x 0.001 / 0.05 = 2 records at the smallest p are flagged, one is not.
    calibration = rng.normal(size=999)
    scores = np.concatenate([[9.0, 9.0], np.full(98, -9.0)])
    two = judge_candidates(scores, calibration, attack="loss", fdr=0.05).summary
    assert (two.fewest_flags, two.n_flagged) == (2, 2)
    scores[1] = -9.0
    assert judge_candidates(scores, calibration, attack="loss", fdr=0.05).summary.n_flagged == 0
    check = power_check(100, 999, two)
    assert check.details["smallest_fpr"] == pytest.approx(10 / 999)
    # 4 of 100: Clopper-Pearson [0.011, 0.099]; 3 of 100: [0.006, 0.085].
    assert check.details["smallest_tpr"] == 0.04
    assert "at least 2 score above" in check.sentence


def test_few_groups_to_calibrate_on_are_warned_of() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(10), 20)
    found = judge_audit(
        rng.normal(size=200),
        rng.normal(size=200),
        attack="loss",
        fdr=0.05,
        groups=(groups, groups),
    ).summary
    assert found.n_calibration_groups == 5
    check = power_check(200, 200, found)
    assert check.status == "warning"
    assert "5 groups only" in check.sentence
