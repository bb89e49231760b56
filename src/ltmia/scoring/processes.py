"""Runs the models in several processes of a launcher (`torchrun`, `accelerate launch`), each with some of the batches.

Process 0 runs the command and writes all files. Every other process loads the same models, runs its batches, and sends
their statistics to process 0. All processes must find the models under the same names.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from ltmia.errors import ConfigError, LtmiaError, ModelError
from ltmia.models.forward import batches_to_run, fitting_batch_size
from ltmia.models.pair import Pair
from ltmia.models.tokens import EncodedText
from ltmia.records import Texts
from ltmia.scoring.audited_pair import AuditedPair, LoadedPair, PairToLoad
from ltmia.scoring.extraction import ExtractedBatch, ExtractionConfig, ExtractionRun, extract_batches
from ltmia.scoring.identity import PairIdentity
from ltmia.scoring.pair_runner import ExtractionClock

START = timedelta(minutes=5)
"""Longest time until all processes have started."""
WAIT = timedelta(days=30)
"""Longest wait for a message. If a process ends, the others notice at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Everything that a process needs for its share of an extraction."""

    key: str
    """Hash of the pair that it must load."""
    texts: Texts
    encoded: Sequence[EncodedText]
    """Token ids of all texts."""
    config: ExtractionConfig
    left_out: frozenset[int]
    """Rows that are done, or that other processes do."""


def started_by_launcher() -> bool:
    """Say whether this is one of several processes that a launcher started."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def runs_the_command() -> bool:
    """Say whether this process is the first of its launcher, or the only one."""
    return not started_by_launcher() or int(os.environ.get("RANK", "0")) == 0


@contextmanager
def shared_out(pair: PairToLoad) -> Iterator[PairToLoad]:
    """Share a pair's batches out to the processes of the launcher, if there is one, and let them end afterwards.

    If the command fails, they are not told: the launcher ends them when process 0 ends.
    """
    if not started_by_launcher():
        yield pair
        return
    with _connected() as group:

        def load() -> Pair | AuditedPair:
            loaded = pair.load()
            return SharedPair(loaded, group=group) if isinstance(loaded, Pair) else loaded

        yield replace(pair, load=load)
        for rank in range(1, dist.get_world_size(group)):
            dist.send_object_list([None], dst=rank, group=group)


def serve(load: Callable[[], Pair | AuditedPair]) -> None:
    """Run the share of a process other than the first, until process 0 has no more work."""
    with _connected() as group:
        pair: Pair | None = None
        while (share := _receive(0, group)) is not None:
            try:
                pair = pair or _same_pair(load, share.key)
                clock = ExtractionClock()
                run = ExtractionRun(encoded=share.encoded, done=share.left_out, clock=clock)
                for batch in extract_batches(pair, share.texts.texts, share.config, run):
                    dist.send_object_list([(batch, clock.seconds)], dst=0, group=group)
            except LtmiaError as error:
                dist.send_object_list([error], dst=0, group=group)


@dataclass(frozen=True, slots=True)
class SharedPair(LoadedPair):
    """A loaded pair whose batches are shared out to the processes of a launcher."""

    group: Any = None
    """The processes, as `torch.distributed` knows them."""

    def extract(self, texts: Texts, config: ExtractionConfig, run: ExtractionRun) -> Iterator[ExtractedBatch]:
        """Run both models in all processes; the batches are those of one process, in the same order.

        Raises:
            ModelError: If another process cannot load the same models.
        """
        longest = max((len(text.ids) for text in run.encoded if text.n_scored), default=1)
        config = replace(config, batch_size=fitting_batch_size(self.models, config.batch_size, longest))
        batches = batches_to_run(self.models, run.encoded, config.batch_size, run.done)
        unscorable = [i for i, text in enumerate(run.encoded) if text.reason and i not in run.done]
        n, key, everything = dist.get_world_size(self.group), self.identity().key, frozenset(range(len(run.encoded)))
        shares = [everything.difference(*batches[rank::n]) for rank in range(n)]
        for rank in range(1, n):
            share = Share(key=key, texts=texts, encoded=run.encoded, config=config, left_out=shares[rank])
            dist.send_object_list([share], dst=rank, group=self.group)
        here = LoadedPair.extract(self, texts, config, replace(run, done=shares[0].difference(unscorable)))
        sources = [here, *(_batches_of(rank, run.clock, self.group) for rank in range(1, n))]
        # A batch that does not fit into memory comes in parts.
        for i, rows in ((0, unscorable), *enumerate(batches)):
            n_left = len(rows)
            while n_left:
                batch = next(sources[i % n])
                n_left -= len(batch.texts)
                yield batch


def _batches_of(rank: int, clock: ExtractionClock, group: Any) -> Iterator[ExtractedBatch]:
    """Yield the batches of another process, and add its seconds to the clock."""
    before = (0.0, 0.0)
    while True:
        sent = _receive(rank, group)
        if isinstance(sent, LtmiaError):
            raise type(sent)(f"process {rank} of the launcher: {sent}")
        batch, seconds = sent
        clock.forward.seconds += seconds[0] - before[0]
        clock.feature_seconds += seconds[1] - before[1]
        before = seconds
        yield batch


def _same_pair(load: Callable[[], Pair | AuditedPair], key: str) -> Pair:
    pair = load()
    if not isinstance(pair, Pair) or PairIdentity.of(pair).key != key:
        raise ModelError("found other models under the same names; give all machines the same files")
    return pair


def _receive(rank: int, group: Any) -> Any:
    received = [None]
    dist.recv_object_list(received, src=rank, group=group)
    return received[0]


@contextmanager
def _connected() -> Iterator[Any]:
    """Connect the processes of the launcher, each with an accelerator of its own if there are any.

    Raises:
        ConfigError: If they do not all start.
    """
    if torch.accelerator.is_available():
        torch.accelerator.set_device_index(int(os.environ.get("LOCAL_RANK", "0")))
    try:
        dist.init_process_group("gloo", timeout=START)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']}: the processes of the launcher do not find each other ({error}); "
            "start them by torchrun or accelerate launch, or unset WORLD_SIZE"
        ) from error
    try:
        yield dist.new_group(backend="gloo", timeout=WAIT)
    finally:
        dist.destroy_process_group()
