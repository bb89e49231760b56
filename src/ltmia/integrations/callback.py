"""Audits a model during fine-tuning: a callback for `transformers.Trainer`, and TRL's SFTTrainer and DPOTrainer."""

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ltmia.auditing.audit import audit
from ltmia.auditing.question import AuditResult
from ltmia.auditing.update import MUST_READ, ObserverChoice
from ltmia.errors import ConfigError
from ltmia.evaluation.audit_folder import MARKED, PRIVATE_FOLDER, RESULTS_FILE, PrivateFolder
from ltmia.evaluation.files import read_verdict
from ltmia.evaluation.gate import hold_against
from ltmia.evaluation.limits import Limit
from ltmia.evaluation.results import Results
from ltmia.folders import claim_folder, write_whole
from ltmia.integrations.audit_plan import AuditPlan
from ltmia.integrations.held_out import hold_out as hold_out
from ltmia.integrations.kept_checkpoints import KeptCheckpoints, save_state
from ltmia.integrations.prepared_dataset import groups_of
from ltmia.integrations.random_state import random_state_kept
from ltmia.integrations.scored_rows import ScoredRows, TrainedPair, scored_rows
from ltmia.integrations.trackers import log_audit, require_trackers
from ltmia.integrations.trained_rows import TrainedRow, TrainedRows, rows_of
from ltmia.integrations.trained_tensors import Fingerprints, fingerprints, unmoved
from ltmia.integrations.training_counts import counts_of_rows, warn_of
from ltmia.models.training_run import load_training_run
from ltmia.ownership import Marker
from ltmia.runtime import DTYPES, dtype_name

ROWS_FILE, HELD_OUT_FILE, TRAINING_FILE = "trained.jsonl", "held-out", "training.json"
MODEL_FOLDER, CHECKPOINTS_FOLDER = "model", "checkpoints"
GATE_FAILED = 1

log = logging.getLogger(__name__)


class LimitExceeded(ConfigError):
    """A model leaks more than a limit of its training run allows."""


class AuditCallback(TrainerCallback):
    """Audits the model of a Trainer on exactly the tokens that it was trained on.

    `trainer.add_callback(AuditCallback(trainer, "audit"))`. The rows that the Trainer trains on are the members; its
    `eval_dataset`, which goes through the same preparation and collator, holds the non-members. Only tokens with loss
    are scored: packed rows separately, without masked prompts and without tokens that were cut off. Preference pairs of
    `DPOTrainer` are one record each; their base is the reference policy.

    Writes the files of `audit`, and `training.json`: counts of rows that were trained on and rows that were not, of
    tensors that training left unchanged, and the epsilon spent. It warns of unchanged tensors, and if the audit shows
    a larger epsilon.
    """

    def __init__(self, trainer: Trainer, out: Path | str, plan: AuditPlan | None = None) -> None:
        """Prepare an audit.

        Args:
            trainer: Trainer with an `eval_dataset` and a tokenizer.
            out: Folder for the results. A resumed run needs the same folder.
            plan: When and how to audit.

        Raises:
            ConfigError: If the Trainer lacks something, or a tracker or limit is unknown.
        """
        self.trainer, self.out, self.plan = trainer, Path(out), plan or AuditPlan()
        self.base = self.plan.base or _source_of_reference(trainer)
        self.limits = [Limit.parse(text) for text in self.plan.limits]
        self.rows: TrainedRows | None = None
        self.before: Fingerprints = {}
        self.began_at = 0
        self.kept = KeptCheckpoints(self.out / PRIVATE_FOLDER / CHECKPOINTS_FOLDER, self.plan.checkpoints)
        require_trackers(self.plan.log_to)
        for is_missing, what in (
            (trainer.args.world_size > 1, "one process, because rows of others are not recorded: start python itself"),
            (trainer.eval_dataset is None or isinstance(trainer.eval_dataset, dict), "one eval_dataset: rows held out"),
            (trainer.processing_class is None, "a processing_class: the tokenizer"),
            (not self.base, "AuditPlan(base=...): the model does not say what the training started from"),
        ):
            if is_missing:
                raise ConfigError(f"AuditCallback needs {what}")
        self._training_step = trainer.training_step
        trainer.training_step = self._recorded_step  # type: ignore[method-assign]  # no event shows a batch

    def _recorded_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], *rest: Any, **options: Any
    ) -> torch.Tensor:
        if self.rows is not None:
            self.rows.record(self.trainer.state.global_step, inputs)
        return self._training_step(model, inputs, *rest, **options)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **_: Any,
    ) -> None:
        """Open the record of trained rows at the step from which training resumes."""
        if not state.global_step and (self.out / RESULTS_FILE).exists() and not self.plan.config.overwrite:
            raise ConfigError(
                f"{self.out}: holds the audit of another training run. Nothing was changed. Choose another folder, or "
                "replace what is there with `AuditPlan(config=AuditConfig(overwrite=True))`."
            )
        private = _claimed(self.out)
        self.rows = TrainedRows.open(private.path / ROWS_FILE, step=state.global_step)
        self.before, self.began_at = fingerprints(self._model), state.global_step
        self._prepare_checkpoints(state)
        with random_state_kept():
            held_out = self._held_out()
        self._refuse_pairs(held_out)
        note, digest = private.path / HELD_OUT_FILE, _digest(held_out)
        if state.global_step and note.is_file() and note.read_text("utf-8") != digest:
            raise ConfigError(
                f"{self.out}: the held-out rows differ from those of the resumed run; draw them with the same seed "
                "from the same dataset"
            )
        write_whole(note, lambda part: part.write_text(digest, "utf-8"))

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **_: Any,
    ) -> TrainerControl:
        """Keep the model, and audit it, if the plan asks for it at this step."""
        step, every = state.global_step, self.plan.every
        self.kept.save_if_due(self.trainer)
        if every and step % every == 0 and step < state.max_steps and self._audit(self.out / f"step-{step}", step):
            control.should_training_stop = True
        return control

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **_: Any,
    ) -> None:
        """Audit the finished model, and remove the states that were kept for it."""
        self._audit(self.out, None)

    def _audit(self, folder: Path, step: int | None) -> bool:
        """Audit the model in its current state; return whether a limit is exceeded.

        Raises:
            LimitExceeded: If a limit is exceeded and the plan says "fail".
        """
        with random_state_kept():
            self._run_audit(folder, self._audited_step(at_end=step is None))
        if step is None:
            shutil.rmtree(self.kept.folder, ignore_errors=True)
        log_audit(folder, self.plan.log_to, step=step)
        if not self.limits:
            return False
        verdict = hold_against(read_verdict(folder), self.limits, None)
        for line in verdict.lines():
            log.warning("%s: %s", folder, line)
        if verdict.exit_code == GATE_FAILED and self.plan.at_limit == "fail":
            raise LimitExceeded(f"{folder}: {'; '.join(verdict.lines())}")
        return verdict.exit_code == GATE_FAILED

    def _audited_step(self, *, at_end: bool) -> int:
        """Return the step of the weights that are audited: at the end, the Trainer may have loaded the best ones."""
        state = self.trainer.state
        best = state.best_global_step if at_end and self.trainer.args.load_best_model_at_end else None
        return state.global_step if best is None else best

    def _run_audit(self, folder: Path, step: int) -> AuditResult:
        saved = _claimed(folder).path / MODEL_FOLDER
        save_state(self.trainer, saved)
        kept = self.kept.before(step)
        if self.plan.checkpoints and not kept:
            log.warning("%s: no state from before step %d was kept, so no checkpoints are read", folder, step)
        pair = load_training_run(saved, self.base, kept, are_known=True, dtype=self._dtype)
        tokenizer: Any = self.trainer.processing_class
        sides = (self._trained(step), self.trainer.train_dataset), (self._held_out(), self.trainer.eval_dataset)
        members, nonmembers = (
            scored_rows(rows, tokenizer, vocab_size=pair.vocab_size, groups=groups)
            for (rows, _), groups in zip(sides, self._groups(sides), strict=True)
        )
        encoded = {**members.encoded, **nonmembers.encoded}
        longest = max((len(text.ids) for text in encoded.values()), default=2)
        found = audit(
            TrainedPair(pair, encoded=encoded),
            members.texts,
            nonmembers.texts,
            folder,
            config=replace(  # overwrite: what is there is of this training run
                self.plan.config, observer=self._observer(kept), max_length=max(longest, 2), overwrite=True
            ),
        )
        shutil.rmtree(saved)
        self._write_counts(folder, members, found.results)
        return found

    def _observer(self, kept: Sequence[Path]) -> ObserverChoice:
        """Return the observer of an audit: an attacker with checkpoints, as soon as one was kept.

        A training of days must not end without results because its weights cannot be read, so they must be read only
        if the plan says so.
        """
        asked = self.plan.config.observer
        if not kept:
            return "weights" if asked == "training_run" else asked
        return "training_run" if asked in MUST_READ else "auto"

    def _prepare_checkpoints(self, state: TrainerState) -> None:
        """Remove states that a resumed training makes again.

        Raises:
            ConfigError: If the training is too short to keep a state.
        """
        self.kept.forget(after=state.global_step)
        if self.plan.checkpoints and not self.kept.steps(state.max_steps):
            raise ConfigError(f"checkpoints = {self.plan.checkpoints}: training takes only {state.max_steps} step(s)")

    def _refuse_pairs(self, rows: Mapping[str, TrainedRow]) -> None:
        """Refuse before training what the audit would refuse after it.

        Raises:
            ConfigError: If weights would be read for preference pairs.
        """
        reads_weights = self.plan.checkpoints or self.plan.config.must_read
        if reads_weights and any(row.rejected is not None for row in rows.values()):
            raise ConfigError(
                "AuditCallback: the weights are read for single texts, not for preference pairs; leave out "
                "`checkpoints`, `thorough` and the observer `weights`"
            )

    @property
    def _dtype(self) -> str:
        """Dtype of the model in training; an adapter's folder does not say it, and its base may be saved in another."""
        dtypes = [dtype_name(value.dtype) for value in self._model.parameters() if value.dtype in DTYPES.values()]
        return dtypes[0] if dtypes else "auto"

    @property
    def _trained_here(self) -> bool:
        """Whether this process made a step: a run resumed after its last step only audits."""
        return self.trainer.state.global_step > self.began_at

    @property
    def _model(self) -> torch.nn.Module:
        model: torch.nn.Module = self.trainer.accelerator.unwrap_model(self.trainer.model)
        return model

    def _trained(self, before: int) -> dict[str, TrainedRow]:
        """Return the rows that were trained on before a step, by name."""
        return {} if self.rows is None else {f"trained-{key}": row for key, row in self.rows.before(before).items()}

    def _held_out(self) -> dict[str, TrainedRow]:
        """Return the held-out rows, by name, as the Trainer's own collator makes them."""
        rows = [row for batch in self.trainer.get_eval_dataloader() for row in rows_of(batch)]
        return {f"held-out-{row.key}": row for row in rows}

    def _groups(self, sides: Sequence[tuple[Mapping[str, TrainedRow], Any]]) -> list[dict[str, str] | None]:
        """Return the group of each row of both sides. Without groups, all parts of a row are one group."""
        if self.plan.group_column is not None:
            return [groups_of(rows, dataset, self.plan.group_column) for rows, dataset in sides]
        if any(len(row.spans) > 1 for rows, _ in sides for row in rows.values()):
            return [{name: name for name in rows} for rows, _ in sides]
        return [None for _ in sides]

    def _write_counts(self, folder: Path, members: ScoredRows, results: Results) -> None:
        counts = {
            **counts_of_rows(self.rows, members, self.trainer.train_dataset),
            "trained_tensors": len(self.before),
            "trained_tensors_without_change": len(unmoved(self.before, self._model)) if self._trained_here else None,
            "epsilon_spent": None if self.plan.epsilon_spent is None else self.plan.epsilon_spent(),
            "epsilon_lower_bound": None if results.epsilon is None else results.epsilon.value,
        }
        warn_of(counts)
        write_whole(folder / TRAINING_FILE, lambda part: part.write_text(json.dumps(counts, indent=1) + "\n", "utf-8"))


def _source_of_reference(trainer: Any) -> str:
    """Return the source of the model that training started from: of `DPOTrainer`, the reference policy; "" if unknown.

    A copy of an adapter, which `DPOTrainer` trains on from, has no source.
    """
    if "ref" in getattr(trainer.model, "peft_config", {}):
        return ""
    model = getattr(trainer, "ref_model", None) or trainer.model
    return str(getattr(model.config, "_name_or_path", ""))


def _claimed(folder: Path) -> PrivateFolder:
    """Mark a folder as that of an audit, and return its private part.

    Raises:
        ConfigError: If the folder holds files of yours, or results of other settings.
    """
    with claim_folder(folder, Marker(kind=MARKED["audit"]), overwrite=True):
        return PrivateFolder.of(folder)


def _digest(rows: Mapping[str, TrainedRow]) -> str:
    return hashlib.sha256(" ".join(sorted(rows)).encode()).hexdigest()
