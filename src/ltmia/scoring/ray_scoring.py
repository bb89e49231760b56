"""Scoring of large sets on a Ray cluster: a Ray Data pipeline over chunks of texts, each chunk one Parquet file.

Imported only on demand; needs the extra `ray`. All machines must see the models and the folder of the results under
the same paths.
"""

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
import torch

from ltmia.attacks.table import LEARNED
from ltmia.classifier.membership import MembershipClassifier
from ltmia.classifier.windows import WindowLogits
from ltmia.errors import ConfigError, ModelError
from ltmia.expectation.fit import folds_of, learn_expectation, sampled_texts
from ltmia.expectation.model import ExpectedLogRatio
from ltmia.features.store import FeatureStore
from ltmia.folders import make_folder, remove_files, write_whole
from ltmia.models.identity import network_sha256
from ltmia.models.pair import Pair
from ltmia.ownership import PART_ENDING
from ltmia.records import Texts
from ltmia.scoring.audited_pair import AuditedPair, LoadedPair
from ltmia.scoring.extraction import ExtractionConfig
from ltmia.scoring.identity import PairIdentity
from ltmia.scoring.pair_runner import ExtractionClock
from ltmia.scoring.reuse import note_reused
from ltmia.scoring.store_filling import StorePlan, fill_store, scoring_fingerprint
from ltmia.scoring.stored_scores import ScoredTexts, ScoringTask, read_scores, sampled_features
from ltmia.workers import connect

CHUNK_TEXTS = 256
"""Texts of one Parquet file; a kill costs each worker at most this many."""
WINDOWS = "windows_ltmia"
"""Column of the classifier's logits in the windows of each text."""
CREATED = b"created"
"""Metadata key of the time when a Parquet file was made."""
OF_THE_WHOLE_SET = frozenset({"dc_pdd"})
"""Attacks that need token frequencies over all texts, which no worker has."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkWork:
    """Everything that a worker needs to score chunks."""

    load: Callable[[], Pair]
    """Loads the pair, on any machine."""
    key: str
    """Hash of the pair that it must load."""
    config: ExtractionConfig
    classifier: MembershipClassifier | None
    learned: Mapping[str, ExpectedLogRatio]
    """Fitted expectations, by kind: a chunk has too few texts to fit them."""
    folder: Path
    """Folder of the Parquet files."""


class ChunkScorer:
    """A worker: loads a pair, and writes a Parquet file for each chunk of texts."""

    def __init__(self, work: ChunkWork) -> None:
        torch.set_num_threads(1)
        self.work = work
        self.pair = work.load()
        if PairIdentity.of(self.pair).key != work.key:
            raise ModelError("a worker found other models under the same names; give all machines the same files")

    def __call__(self, chunk: pa.Table) -> pa.Table:
        """Score a chunk; return its number of texts and its times."""
        rows = chunk["row"].to_numpy()
        groups = _strings(chunk["group"]) if "group" in chunk.column_names else None
        starts = tuple(chunk["start"].to_pylist()) if "start" in chunk.column_names else None
        named = Texts(texts=_strings(chunk["text"]), ids=tuple(map(str, rows)), groups=groups, starts=starts)
        # Through a store, as in one process, so that the classifier reads the same float16 numbers.
        with tempfile.TemporaryDirectory() as folder:
            plan = StorePlan(key="", columns={"id": list(named.ids)}, learned=self.work.learned)
            clock = ExtractionClock()
            filled = fill_store(LoadedPair(self.pair), named, Path(folder), self.work.config, plan, clock=clock)
            scored = read_scores(filled.store, self.work.classifier, clock=clock)
            _write_chunk(self.work.folder, int(rows[0]), rows, scored)
        return pa.table(
            {
                "n_texts": [len(rows)],
                "forward_seconds": [clock.forward.seconds],
                "feature_seconds": [clock.feature_seconds],
            }
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RayScorer:
    """Scores like `score_to_store`, chunk by chunk on a Ray cluster, into Parquet files instead of a store.

    Joins the cluster that `ray start` made here or that RAY_ADDRESS names; without one it starts Ray on this machine.
    The same call after a kill scores only the chunks that are not there yet.
    """

    load: Callable[[], Pair]
    """Loads the pair again in each worker; must be picklable."""
    n_workers: int | None = None
    """Processes; None for as many as the cluster has CPUs, or GPUs if the pair is on one."""

    def __call__(self, pair: AuditedPair, task: ScoringTask) -> ScoredTexts:
        """Score texts with every fast attack of a task, and its classifier.

        Raises:
            ConfigError: If an attack needs all texts at once, or the models are not at hand.
        """
        texts, config, classifier, report = task.texts, task.config, task.classifier, task.report
        if pair.models is None:
            raise ConfigError("Ray cannot score recordings, because one process reads them: score them without Ray")
        refused = OF_THE_WHOLE_SET.intersection(config.attacks)
        if refused:
            raise ConfigError(
                f"{', '.join(refused)}: needs all texts in one place; score without Ray, or use another attack"
            )
        whole = StorePlan(key=task.identity.key, columns={})
        files = _begin(task.folder, scoring_fingerprint(whole, texts, pair.encode(texts, config), config), classifier)
        clock = ExtractionClock()
        sample = texts.take(sampled_texts(len(texts)))
        plan = StorePlan(key=task.identity.key, columns={"id": list(sample.ids)})
        filled = fill_store(pair, sample, task.folder / "sample", config, plan, clock=clock, report=report)
        work = ChunkWork(
            load=self.load,
            key=task.identity.key,
            config=config,
            classifier=classifier,
            learned=filled.learned or _learn_again(pair, sample, filled.store, config),
            folder=files,
        )
        missing, made = _look_through(files, len(texts))
        n_done = len(texts) - sum(min(CHUNK_TEXTS, len(texts) - start) for start in missing)
        if made:
            note_reused(clock.reused, "scores", since=min(made), n_texts=n_done, of=len(texts), report=report)
        report("scoring", n_done, len(texts))
        for result in self._run(work, _chunks(texts, missing), _on_gpu(pair.models)):
            n_done += int(result["n_texts"])
            clock.forward.seconds += float(result["forward_seconds"])
            clock.feature_seconds += float(result["feature_seconds"])
            report("scoring", n_done, len(texts))
        table = pa.concat_tables(pq.read_table(_file(files, i)) for i in range(0, len(texts), CHUNK_TEXTS))
        names, n_tokens = filled.store.score_names, table["n_tokens"].to_numpy()
        scores = {name: table[f"score_{name}"].to_numpy().astype(np.float64) for name in names}
        windows = None
        if classifier is not None:
            windows = WindowLogits.of(table[WINDOWS].to_pylist(), n_tokens, classifier.window)
            scores[LEARNED] = windows.pooled
        return ScoredTexts(
            scores=scores,
            windows=windows,
            n_tokens=n_tokens,
            reasons=table["reason"].to_pylist(),
            truncated=table["truncated"].to_pylist(),
            sample=lambda: sampled_features(filled.store, classifier),
            clock=clock,
        )

    def _run(self, work: ChunkWork, chunks: Sequence[pa.Table], on_gpu: bool) -> Iterator[dict[str, Any]]:
        """Yield the size and times of each chunk, in any order."""
        if not chunks:
            return
        ours = not ray.is_initialized()
        if ours:
            connect(self.n_workers)
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        try:
            ray.data.DataContext.get_current().enable_progress_bars = False
            places = max(1, int(ray.cluster_resources().get("GPU" if on_gpu else "CPU", 1)))
            scored = ray.data.from_arrow(list(chunks)).map_batches(
                ChunkScorer,
                fn_constructor_args=(work,),
                batch_size=None,  # each block is one chunk
                batch_format="pyarrow",
                zero_copy_batch=True,
                num_cpus=1,
                num_gpus=int(on_gpu),
                compute=ray.data.ActorPoolStrategy(size=min(places, self.n_workers or places, len(chunks))),
            )
            yield from scored.iter_rows()
        finally:
            if ours:
                ray.shutdown()


def _on_gpu(pair: Pair) -> bool:
    return pair.device.type == "cuda"


def _learn_again(
    pair: AuditedPair, sample: Texts, store: FeatureStore, config: ExtractionConfig
) -> dict[str, ExpectedLogRatio]:
    """Fit the expectation again, from a store that an earlier run finished."""
    encoded, folds = pair.encode(sample, config), folds_of(sample)
    return {kind: learn_expectation(store.statistics, encoded, folds, kind) for kind in config.expectations}


def _begin(folder: Path, fingerprint: str, classifier: MembershipClassifier | None) -> Path:
    """Return the folder of the chunks, named by a hash of their settings; remove chunks of other work."""
    of_classifier = ""
    if classifier is not None:
        of_classifier = f"{network_sha256(classifier.network_)[:16]}-windows-{classifier.window}"
    files = folder / f"chunks-{fingerprint[:16]}-{of_classifier}"
    for other in folder.glob("chunks-*"):
        if other != files and not other.is_symlink():
            remove_files(other, [path.name for path in (*other.glob("*.parquet"), *other.glob(f"*{PART_ENDING}"))])
    make_folder(folder)
    make_folder(files)
    for torn in files.glob(f"*{PART_ENDING}"):
        torn.unlink()
    return files


def _file(files: Path, start: int) -> Path:
    return files / f"{start:09d}.parquet"


def _look_through(files: Path, n_texts: int) -> tuple[list[int], list[datetime]]:
    """Return the starts of the missing chunks, and the times when the others were made."""
    missing, made = [], []
    for start in range(0, n_texts, CHUNK_TEXTS):
        since = _whole_since(_file(files, start), min(CHUNK_TEXTS, n_texts - start))
        if since is None:
            missing.append(start)
        else:
            made.append(since)
    return missing, made


def _whole_since(file: Path, size: int) -> datetime | None:
    """Return when a chunk was made; None if it is missing or damaged."""
    if not file.is_file():
        return None
    try:
        chunk = pq.read_table(file, page_checksum_verification=True)
        since = datetime.fromisoformat((chunk.schema.metadata or {})[CREATED].decode())
        if chunk.num_rows != size:
            raise ValueError(f"{chunk.num_rows} texts, expected {size}")
    except (OSError, LookupError, ValueError, pa.ArrowException) as error:
        log.warning("%s: damaged (%s); its texts are scored again", file, error)
        return None
    return since


def _chunks(texts: Texts, starts: Sequence[int]) -> list[pa.Table]:
    """Split texts into tables of bytes, because lone surrogates are not valid in Arrow strings."""
    tables = []
    for start in starts:
        part = slice(start, start + CHUNK_TEXTS)
        columns = {"row": np.arange(len(texts))[part], "text": _bytes(texts.texts[part])}
        if texts.groups is not None:
            columns["group"] = _bytes(texts.groups[part])
        if texts.starts is not None:
            columns["start"] = pa.array(texts.starts[part])
        tables.append(pa.table(columns))
    return tables


def _bytes(strings: Sequence[str]) -> pa.Array:
    return pa.array([text.encode("utf-8", "surrogatepass") for text in strings], pa.large_binary())


def _strings(column: pa.ChunkedArray) -> tuple[str, ...]:
    return tuple(text.decode("utf-8", "surrogatepass") for text in column.to_pylist())


def _write_chunk(folder: Path, start: int, rows: np.ndarray, scored: ScoredTexts) -> None:
    columns = {
        "row": rows,
        "n_tokens": scored.n_tokens,
        "reason": pa.array(list(scored.reasons), pa.string()),
        "truncated": pa.array(list(scored.truncated), pa.bool_()),
        **{f"score_{name}": values for name, values in scored.scores.items() if name != LEARNED},
    }
    if scored.windows is not None:  # only all chunks together tell how much each window counts
        columns[WINDOWS] = pa.array(scored.windows.lists(), pa.list_(pa.float64()))
    now = datetime.now(UTC).isoformat(timespec="seconds")
    table = pa.table(columns).replace_schema_metadata({CREATED: now.encode()})
    write_whole(_file(folder, start), lambda part: pq.write_table(table, part, write_page_checksum=True))
