"""The learned attack: fit, predict, save, load. Files are safetensors and JSON; nothing is pickled."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Float64
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ltmia.classifier.attribution import integrated_gradients
from ltmia.classifier.card import model_card
from ltmia.classifier.checkpoint import EpochRecord
from ltmia.classifier.combinations import Combination, TrainingData, n_summary, tensors
from ltmia.classifier.domain import TrainingDomain
from ltmia.classifier.networks import NETWORKS, build_network
from ltmia.classifier.training import PREDICT_AT_ONCE, TrainingConfig, standardize_by, train_network
from ltmia.errors import ConfigError, StoreError
from ltmia.features.columns import DEFAULT_K, feature_columns
from ltmia.features.per_token import FeatureBatch
from ltmia.folders import write_folder
from ltmia.models.identity import parameters_sha256
from ltmia.ownership import Marker

CONFIG_FILE, WEIGHTS_FILE, CARD_FILE = "config.json", "model.safetensors", "README.md"
SHIPPED: Mapping[str, str] = {"full": "excess", "lite": "lite"}
"""Feature version of each classifier that comes with the package."""
LEANS: Mapping[str, float] = {"excess": 10.0}
"""Weight of the mean excess in a network's logit, see `ConvNetwork`, by feature version. Chosen on targets of bases
that nothing had been trained on then, one of 135M parameters (docs/log.md); the excess of `lite` is too weak to be
used."""
LEAST_WINDOW = 128
"""Positions that are classified at once though training texts were shorter; those of both shipped classifiers have as
many."""
FORMAT_VERSION = 2
DAMAGE = (OSError, ValueError, LookupError, TypeError, RuntimeError, ArithmeticError, SafetensorError, ConfigError)
"""Exceptions for a damaged classifier."""


class MembershipClassifier:
    """A network, its feature version, and its training domain.

    Attributes set by `fit` or `from_pretrained` end in an underscore: `network_`, `domain_` (what it was trained on),
    `history_` (results of each epoch) and `settings_` (everything that training depended on).
    """

    domain_: TrainingDomain

    def __init__(self, *, network: str = "conv", feature_version: str = "excess", k: int = DEFAULT_K) -> None:
        self.network = network
        self.feature_version = feature_version
        self.k = k
        self.lean = LEANS.get(feature_version, 0.0)
        self.window = LEAST_WINDOW
        """Scored positions that are classified at once: as many as the longest training text has."""
        self.start: MembershipClassifier | None = None

    @classmethod
    def going_on_from(cls, start: "MembershipClassifier") -> "MembershipClassifier":
        """Return an unfitted classifier whose training starts from the weights of a fitted one.

        It reads the same features, standardises them in the same way, and measures distances in the same units.
        """
        classifier = cls(network=start.network, feature_version=start.feature_version, k=start.k)
        classifier.lean = start.lean
        classifier.window = start.window
        classifier.start = start
        return classifier

    def fit(
        self,
        training: Sequence[Combination],
        validation: Sequence[Combination] = (),
        *,
        config: TrainingConfig | None = None,
        checkpoint: Path | None = None,
        report: Callable[[EpochRecord], None] = lambda _record: None,
        on_step: Callable[[int, int], None] = lambda _done, _total: None,
    ) -> "MembershipClassifier":
        """Train on labelled combinations; held-out combinations choose the epoch whose weights are kept.

        Args:
            training: Combinations to learn from.
            validation: Combinations that choose the epoch.
            config: Options.
            checkpoint: File for the state after each epoch, to resume from with the same settings.
            report: Called with the result of each epoch.
            on_step: Called with the number of steps done and the total.

        Raises:
            ConfigError: If the network is unknown or there is nothing to train on.
            StoreError: If a combination lacks members or non-members, or the checkpoint is damaged.
        """
        if self.network not in NETWORKS:
            raise ConfigError(f"unknown network {self.network!r}; available: {', '.join(NETWORKS)}")
        data = TrainingData(training=training, validation=validation, version=self.feature_version)
        config = config or TrainingConfig()
        self.settings_ = self.settings(data, config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.network_ = self._untrained()
        if self.start is None:
            standardize_by(self.network_, data)
        else:
            self.network_.load_state_dict(self.start.network_.state_dict())
        self.history_ = train_network(
            self.network_, data, config, checkpoint=checkpoint, report=report, on_step=on_step
        )
        self.window = max(self.window, *(int(one.store.texts["n_tokens"].to_numpy().max()) for one in training))
        version = self.feature_version
        self.domain_ = (
            TrainingDomain.of(training, version)
            if self.start is None
            else self.start.domain_.widened(training, version)
        )
        return self

    def settings(self, data: TrainingData, config: TrainingConfig) -> dict[str, Any]:
        """Return everything that training depends on, as JSON values: names and hashes of stores, network, config."""
        stores = {"combinations": data.training, "held_out": data.validation}
        named = {kind: [[c.name, c.store.sha256] for c in some] for kind, some in stores.items()}
        shape = {"network": self.network, "feature_version": self.feature_version, "k": self.k}
        before = {} if self.start is None else {"start": parameters_sha256(self.start.network_)}
        return named | shape | asdict(config) | before

    def predict_logit(self, features: FeatureBatch) -> Float64[np.ndarray, " batch"]:
        """Return one logit per text, higher for members; NaN for a text without scored positions.

        Raises:
            ConfigError: If the features are of another version than the classifier reads.
        """
        if features.version != self.feature_version:
            raise ConfigError(f"the classifier reads {self.feature_version!r} features, not {features.version!r}")
        values, mask, summary = tensors(features)
        logits = np.full(len(features), np.nan)
        with torch.inference_mode():
            for start in range(0, len(features), PREDICT_AT_ONCE):
                part = slice(start, start + PREDICT_AT_ONCE)
                found = self.network_(values[part], mask[part], summary[part])
                logits[part] = found.double().numpy()
        logits[~features.mask.any(axis=1)] = np.nan
        return logits

    def predict_proba(self, features: FeatureBatch) -> Float64[np.ndarray, " batch"]:
        """Return the logistic function of the logit. To rank texts use the logit: this rounds to 1 for many texts."""
        return 1.0 / (1.0 + np.exp(-self.predict_logit(features)))

    def save_pretrained(
        self, folder: Path | str, results: Mapping[str, Any] | None = None, *, overwrite: bool = False
    ) -> None:
        """Write config, weights and model card; the folder appears whole or not at all.

        Args:
            folder: New or empty folder, or folder of a classifier trained with the same settings.
            results: Figures for the model card.
            overwrite: Replace a classifier that was trained with other settings; files that are not ours stay.

        Raises:
            ConfigError: If the folder holds files of yours, or another kind of results.
        """
        config = {
            "format_version": FORMAT_VERSION,
            "network": self.network,
            "feature_version": self.feature_version,
            "k": self.k,
            "lean": self.lean,
            "window": self.window,
            "trained_on": list(self.domain_.names),
            "outside_limit": self.domain_.limit,
            "settings": self.settings_,
            "history": [asdict(record) for record in self.history_],
            "results": dict(results or {}),
        }
        weights = {f"network.{n}": t.contiguous() for n, t in self.network_.state_dict().items()}
        weights["feature_means"] = torch.from_numpy(self.domain_.means).float()
        weights["feature_spread"] = torch.from_numpy(self.domain_.spread).float()

        def write(part: Path) -> None:
            (part / CONFIG_FILE).write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", "utf-8")
            save_file(weights, part / WEIGHTS_FILE)
            (part / CARD_FILE).write_text(model_card(config, self.n_parameters), "utf-8")

        write_folder(Path(folder), write, classifier_marker(self.settings_), overwrite=overwrite)

    def push_to_hub(self, repo_id: str, *, private: bool = True) -> None:
        """Upload to the Hugging Face hub; needs a token and a network."""
        from tempfile import TemporaryDirectory

        from huggingface_hub import HfApi

        with TemporaryDirectory() as parent:
            self.save_pretrained(Path(parent) / "classifier")
            api = HfApi()
            api.create_repo(repo_id, private=private, exist_ok=True)
            api.upload_folder(repo_id=repo_id, folder_path=Path(parent) / "classifier")

    @classmethod
    def from_pretrained(cls, source: Path | str | None = None) -> "MembershipClassifier":
        """Load a classifier of this package, or one from a folder or the hub.

        Args:
            source: "full" or "lite" (part of this package), a folder, or a hub id; "full" when None.

        Raises:
            StoreError: If it is not a classifier, or is damaged.
        """
        if source is None or source in SHIPPED:
            return shipped_classifier(str(source or "full"))
        folder = Path(source)
        if not folder.is_dir():
            folder = _download(str(source))
        try:
            config = json.loads((folder / CONFIG_FILE).read_text("utf-8"))
            if config["format_version"] != FORMAT_VERSION:
                raise ValueError(f"format {config['format_version']}, expected {FORMAT_VERSION}")
            loaded = cls(
                network=config["network"],
                feature_version=config["feature_version"],
                k=int(config["k"]),
            )
            # Older classifiers have no such settings.
            loaded.lean = float(config.get("lean", 0.0))
            loaded.window = int(config.get("window", LEAST_WINDOW))
            loaded.settings_ = dict(config.get("settings", {}))
            loaded.history_ = [EpochRecord(**record) for record in config.get("history", ())]
            weights = load_file(folder / WEIGHTS_FILE)
            loaded._adopt(weights, tuple(config["trained_on"]), float(config["outside_limit"]))
        except DAMAGE as error:
            raise _damaged(folder, error) from error
        return loaded

    def attribute(self, features: FeatureBatch) -> Float32[np.ndarray, "batch seq"]:
        """Return each token's contribution to its text's logit; 0 at positions that are not scored."""
        return integrated_gradients(self.network_, features, self.domain_.average_token)

    @property
    def n_parameters(self) -> int:
        """Number of trained parameters."""
        return sum(p.numel() for p in self.network_.parameters())

    def _untrained(self) -> nn.Module:
        columns = feature_columns(self.feature_version, self.k)
        return build_network(self.network, columns=columns, n_summary=n_summary(self.feature_version), lean=self.lean)

    def _adopt(self, weights: dict[str, Tensor], trained_on: tuple[str, ...], limit: float) -> None:
        if not 0 <= self.lean < float("inf") or self.window < 1:
            raise ValueError(f"lean = {self.lean}, window = {self.window}")
        if not all(bool(torch.isfinite(tensor).all()) for tensor in weights.values()):
            raise ValueError("weights that are not numbers")
        means, spread = (weights.pop(name).double().numpy() for name in ("feature_means", "feature_spread"))
        self.domain_ = TrainingDomain(names=trained_on, means=means, spread=spread, limit=limit)
        self.network_ = self._untrained()
        self.network_.load_state_dict({n.removeprefix("network."): t for n, t in weights.items()})
        self.network_.eval()


def classifier_marker(settings: Mapping[str, Any]) -> Marker:
    """Return the marker of a classifier's folder."""
    return Marker(kind="a classifier", settings=dict(settings))


def shipped_classifier(name: str = "full") -> MembershipClassifier:
    """Load a classifier of this package.

    Args:
        name: "full", or "lite", which reads only what a server of log-probabilities can give.

    Raises:
        ConfigError: If there is none of that name.
    """
    if name not in SHIPPED:
        raise ConfigError(f"there is no classifier {name!r} in this package; there are {', '.join(SHIPPED)}")
    with as_file(files("ltmia.classifier") / "weights" / name) as folder:
        return MembershipClassifier.from_pretrained(folder)


def chosen_classifier(source: str | None) -> MembershipClassifier:
    """Load a classifier by name, folder or hub id; the default one when None."""
    if source is None or source in SHIPPED:
        return shipped_classifier(source or "full")
    return MembershipClassifier.from_pretrained(source)


def _download(repo_id: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo_id, allow_patterns=[CONFIG_FILE, WEIGHTS_FILE]))
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{repo_id}: no such folder, and the hub does not give it ({error}); expected a folder with "
            f"{CONFIG_FILE} and {WEIGHTS_FILE}, or a hub id"
        ) from error


def _damaged(folder: Path, error: Exception) -> StoreError:
    return StoreError(f"{folder}: not a usable classifier ({type(error).__name__}: {error})")
