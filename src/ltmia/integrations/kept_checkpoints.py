"""Keeps states of a model in training, from which an audit of the training run reads its updates."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from transformers import Trainer

from ltmia.folders import make_folder

PREFIX, UNFINISHED = "checkpoint-", "unfinished-"


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
        trainer.save_model(str(part))
        part.rename(self._at(step))  # so that a killed run leaves no half of a model under this name

    def forget(self, *, after: int) -> None:
        """Remove states of later steps, which a resumed training makes again."""
        for step, path in self._found().items():
            if step > after:
                shutil.rmtree(path)

    @property
    def paths(self) -> list[Path]:
        """The states' folders, in the order of training."""
        return [path for _, path in sorted(self._found().items())]

    def steps(self, n_steps: int) -> set[int]:
        """Return the steps whose states are kept: they divide the training into `count` + 1 equal parts."""
        return {round(part * n_steps / (self.count + 1)) for part in range(1, self.count + 1)} - {0, n_steps}

    def _at(self, step: int) -> Path:
        return self.folder / f"{PREFIX}{step}"

    def _found(self) -> dict[int, Path]:
        return {int(path.name.removeprefix(PREFIX)): path for path in self.folder.glob(f"{PREFIX}*")}
