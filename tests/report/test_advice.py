"""What the figures suggest: each advice where an audit gives cause for it, and none where it does not."""

import numpy as np
import pytest

from ltmia.evaluation.files import read_results
from ltmia.evaluation.results import Check, Decisions, ObserverResult, Results
from ltmia.report.advice import advise
from ltmia.report.slices import Records
from report_samples import made_up_audit

N = 100


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Results:
    results = read_results(made_up_audit(tmp_path_factory.mktemp("audit"), 200, reveal=False))
    fine = Check(status="ok", sentence="fine")
    return results.model_copy(
        update={
            "validity": results.validity.model_copy(update=dict.fromkeys(type(results.validity).model_fields, fine)),
            "decisions": decided(results.decisions, 0),
        }
    )


def decided(decisions: Decisions, n_flagged: int) -> Decisions:
    return decisions.model_copy(update={"n_flagged": n_flagged, "n_judged": N, "fewest_flags": 2})


def records(n_flagged: int, groups: list[str | None] | None = None) -> Records:
    """Return members of which the flagged score 3 and all others, non-members too, 0 or 1."""
    scores = np.tile([0.0, 1.0], N)
    scores[:n_flagged] = 3.0
    return Records(
        labels=np.repeat([1, 0], N),
        scores=scores,
        n_tokens=np.full(2 * N, 9),
        flagged=np.arange(2 * N) < n_flagged,
        groups=groups or [None] * (2 * N),
    )


def titles(results: Results, n_flagged: int, groups: list[str | None] | None = None) -> list[str]:
    changed = results.model_copy(update={"decisions": decided(results.decisions, n_flagged)})
    return [advice.title for advice in advise(changed, records(n_flagged, groups))]


def with_check(results: Results, name: str, check: Check) -> Results:
    return results.model_copy(update={"validity": results.validity.model_copy(update={name: check})})


def test_an_audit_that_finds_nothing_suggests_nothing(sound: Results) -> None:
    assert titles(sound, 0) == []


def test_few_that_stand_out_are_named_with_what_leaving_them_out_would_do(sound: Results) -> None:
    changed = sound.model_copy(update={"decisions": decided(sound.decisions, 10)})
    (advice,) = advise(changed, records(10))
    # By hand: ten of a hundred win against all; the rest win as often as they lose.
    assert advice.evidence == "10 of 100 members are flagged. Without them the AUC is 0.500, with them 0.550."


def test_many_are_a_matter_of_the_training(sound: Results) -> None:
    assert titles(sound, 60) == ["Change the training, not single texts"]


def test_flags_in_few_groups_are_said(sound: Results) -> None:
    groups = [f"g{i // 4}" for i in range(2 * N)]
    assert "Look at a few groups" in titles(sound, 8, groups)
    scattered = [f"g{i % 25}" for i in range(2 * N)]
    assert "Look at a few groups" not in titles(sound, 8, scattered)


def test_checks_give_their_advice(sound: Results) -> None:
    worse = Check(status="ok", sentence="fine", details={"target_loss": 4.5, "reference_loss": 4.1})
    assert titles(with_check(sound, "base", worse), 0) == ["Fewer epochs, or a lower learning rate"]
    better = Check(status="ok", sentence="fine", details={"target_loss": 4.0, "reference_loss": 4.1})
    assert titles(with_check(sound, "base", better), 0) == []
    repeats = Check(status="ok", sentence="fine", details={"repeats_within_a_set": 7})
    assert titles(with_check(sound, "near_duplicates", repeats), 0) == ["Remove repeats from the training file"]
    same = Check(status="failed", sentence="Target and base are the same model.")
    assert titles(with_check(sound, "base", same), 0) == ["Fix the audit first"]


def test_weights_that_tell_more_are_to_be_kept(sound: Results) -> None:
    seen = {
        "weights": ObserverResult(attack="update", decisions=decided(sound.decisions, 30)),
        "logprobs": ObserverResult(attack="ltmia", decisions=decided(sound.decisions, 3)),
    }
    assert titles(sound.model_copy(update={"observers": seen}), 0) == ["Keep the weights private"]
    seen |= {"training_run": ObserverResult(attack="checkpoints", decisions=decided(sound.decisions, 31))}
    assert titles(sound.model_copy(update={"observers": seen}), 0)[1:] == ["Delete the checkpoints"]
    turned = {"weights": seen["logprobs"], "logprobs": seen["weights"]}
    assert titles(sound.model_copy(update={"observers": turned}), 0) == []


def test_an_audit_too_small_to_flag_asks_for_non_members(sound: Results) -> None:
    blind = decided(sound.decisions, 0).model_copy(update={"fewest_flags": None})
    found = advise(sound.model_copy(update={"decisions": blind}), records(0))
    assert [advice.title for advice in found] == ["Add non-members"]
