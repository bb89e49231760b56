"""Keeps states of a model in training, from which an audit of the training run reads its updates."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from transformers import Trainer

from ltmia.folders import make_folder
from ltmia.models.weight_files import CHECKPOINT

UNFINISHED = "unfinished-"


def save_state(trainer: Trainer, folder: Path) -> None:
    """Save the model in training, without what a user's own call sets off: an upload to the hub."""
    trainer.save_model(str(folder), _internal_call=True)


@dataclass(frozen=True, slots=True)
class KeptCheckpoints:
    """Evenly spaced states of a training run, in a folder."""

    folder: Path
    count: int

    def save_if_due(self, trainer: Trainer) -> None:
        """Save the model if its current step is one of those to keep."""
        step = trainer.state.global_step
        if step not in self.steps(trainer.state.max_steps) or self._at(step).is_dir():
            return
        make_folder(self.folder)
        part = self.folder / f"{UNFINISHED}{step}"
        shutil.rmtree(part, ignore_errors=True)
        save_state(trainer, part)
        part.rename(self._at(step))  # so that a killed run leaves no half of a model under this name

    def forget(self, *, after: int) -> None:
        """Remove states of later steps, which a resumed training makes again, and all if none are to be kept."""
        for step, path in self._found().items():
            if step > after or not self.count:
                shutil.rmtree(path)

    def before(self, step: int) -> list[Path]:
        """Return the folders of the states before a step, in the order of training."""
        return [path for kept, path in sorted(self._found().items()) if kept < step]

    def steps(self, n_steps: int) -> set[int]:
        """Return the steps whose states are kept: they divide the training into `count` + 1 equal parts."""
        return {round(part * n_steps / (self.count + 1)) for part in range(1, self.count + 1)} - {0, n_steps}

    def _at(self, step: int) -> Path:
        return self.folder / f"checkpoint-{step}"

    def _found(self) -> dict[int, Path]:
        return {int(match[1]): path for path in self.folder.glob("*") if (match := CHECKPOINT.fullmatch(path.name))}
