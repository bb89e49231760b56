"""Runs the models in several processes of a launcher (`torchrun`, `accelerate launch`), each with some of the batches.

Process 0 runs the command and writes all files. Every other process loads the same models, runs its batches, and sends
their statistics to process 0. All processes must find the models under the same names.

What a process sends for its share is a row of (batch, seconds), then None, or the error that stopped it. Process 0
reads all of it: a message that nobody reads would block its sender for good.
"""

import itertools
import logging
import os
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache, partial
from pathlib import Path
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
NOTICE_SECONDS = 30.0
"""Time until the user is told that other processes have not started yet."""
WAIT = timedelta(days=30)
"""Longest wait for a message. If a process ends, the others notice at once."""

TimedBatch = tuple[ExtractedBatch, tuple[float, float]]
"""A batch, and the seconds that models and statistics took for it."""

log = logging.getLogger(__name__)


class ProcessEndedError(LtmiaError):
    """Another process of the launcher ended before its work was done."""


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
    scratch: Path | None
    """Folder of process 0 for hidden states; another machine may lack it."""


def started_by_launcher() -> bool:
    """Say whether this is one of several processes that a launcher started."""
    return _launcher_says("WORLD_SIZE", 1) > 1


def runs_the_command() -> bool:
    """Say whether this process is the first of its launcher, or the only one."""
    return not started_by_launcher() or _launcher_says("RANK", 0) == 0


def _launcher_says(name: str, otherwise: int) -> int:
    """Return a number that a launcher puts into the environment.

    Raises:
        ConfigError: If it is no number.
    """
    said = os.environ.get(name, "")
    try:
        return int(said) if said else otherwise
    except ValueError as error:
        raise ConfigError(f"{name}={said}: launchers such as torchrun set this to a number; unset it") from error


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
            with suppress(ProcessEndedError):  # all work is done, so it was not needed any more
                _send(None, rank, group)


def serve(load: Callable[[], Pair | AuditedPair]) -> bool:
    """Run the shares of a process other than the first, until process 0 has no more work.

    Returns:
        Whether process 0 did all its work. If not, it says why, and this process says nothing.
    """
    pair_of = cache(partial(_same_pair, load))
    try:
        with _connected() as group:
            while (share := _receive(0, group)) is not None:
                for message in _answer(pair_of, share):
                    _send(message, 0, group)
    except (ProcessEndedError, KeyboardInterrupt):
        return False
    return True


def _answer(pair_of: Callable[[str], Pair], share: Share) -> Iterator[TimedBatch | Exception | None]:
    """Run a share, and yield all messages that process 0 gets for it."""
    scratch = share.scratch if share.scratch and share.scratch.is_dir() else None
    run = ExtractionRun(encoded=share.encoded, done=share.left_out, scratch=scratch)
    try:
        pair = pair_of(share.key)
        yield from _timed(partial(extract_batches, pair, share.texts.texts, share.config), run)
    except LtmiaError as error:
        yield error
    except Exception as error:  # noqa: BLE001  process 0 raises it
        sent = RuntimeError(f"{type(error).__name__}: {error}")
        sent.add_note("".join(traceback.format_exception(error)))
        yield sent
    else:
        yield None


def _timed(extract: Callable[[ExtractionRun], Iterator[ExtractedBatch]], run: ExtractionRun) -> Iterator[TimedBatch]:
    """Yield each batch with the seconds that it took."""
    clock, before = ExtractionClock(), (0.0, 0.0)
    for batch in extract(replace(run, clock=clock)):
        now = clock.seconds
        yield batch, (now[0] - before[0], now[1] - before[1])
        before = now


@dataclass(frozen=True, slots=True)
class SharedPair(LoadedPair):
    """A loaded pair whose batches are shared out to the processes of a launcher."""

    group: Any = None
    """The processes, as `torch.distributed` knows them."""

    def extract(self, texts: Texts, config: ExtractionConfig, run: ExtractionRun) -> Iterator[ExtractedBatch]:
        """Run both models in all processes; the batches are those of one process, in the same order.

        The clock gets the mean of the processes, so that its seconds fit into the time of the run.

        Raises:
            ModelError: If another process cannot load the same models.
            ProcessEndedError: If another process ended.
        """
        longest = max((len(text.ids) for text in run.encoded if text.n_scored), default=1)
        config = replace(config, batch_size=fitting_batch_size(self.models, config.batch_size, longest))
        batches = batches_to_run(self.models, run.encoded, config.batch_size, run.done)
        unscorable = [i for i, text in enumerate(run.encoded) if text.reason and i not in run.done]
        n = max(min(dist.get_world_size(self.group), len(batches)), 1)
        everything, key = frozenset(range(len(run.encoded))), self.identity().key if n > 1 else ""
        shares = [everything.difference(*batches[rank::n]) for rank in range(n)]
        share = Share(
            key=key, texts=texts, encoded=run.encoded, config=config, left_out=frozenset(), scratch=run.scratch
        )
        for rank in range(1, n):
            _send(replace(share, left_out=shares[rank]), rank, self.group)
        here = _timed(
            partial(LoadedPair.extract, self, texts, config), replace(run, done=shares[0].difference(unscorable))
        )
        sources = [here, *(_batches_of(rank, self.group) for rank in range(1, n))]
        # A batch that does not fit into memory comes in parts.
        for i, rows in ((0, unscorable), *enumerate(batches)):
            n_left = len(rows)
            while n_left:
                batch, seconds = next(sources[i % n])
                n_left -= len(batch.texts)
                run.clock.forward.seconds += seconds[0] / n
                run.clock.feature_seconds += seconds[1] / n
                yield batch
        deque(itertools.chain(*sources), maxlen=0)  # reads the None, or an error, after the last batch


def _batches_of(rank: int, group: Any) -> Iterator[TimedBatch]:
    """Yield the batches of another process; raise its error."""
    while (sent := _receive(rank, group)) is not None:
        if isinstance(sent, Exception):
            raise type(sent)(f"process {rank} of the launcher: {sent}") from sent
        yield sent


def _same_pair(load: Callable[[], Pair | AuditedPair], key: str) -> Pair:
    pair = load()
    if not isinstance(pair, Pair) or PairIdentity.of(pair).key != key:
        raise ModelError("found other models under the same names; give all machines the same files")
    return pair


def _send(message: Any, rank: int, group: Any) -> None:
    with _named_end(rank):
        dist.send_object_list([message], dst=rank, group=group)


def _receive(rank: int, group: Any) -> Any:
    received = [None]
    with _named_end(rank):
        dist.recv_object_list(received, src=rank, group=group)
    return received[0]


@contextmanager
def _named_end(rank: int) -> Iterator[None]:
    """Turn a broken connection into one message.

    Raises:
        ProcessEndedError: If the connection breaks.
    """
    try:
        yield
    except RuntimeError as error:
        raise ProcessEndedError(
            f"process {rank} of the launcher ended before its work was done, perhaps killed for memory; the same "
            "command resumes, with any number of processes"
        ) from error


@contextmanager
def _connected() -> Iterator[Any]:
    """Connect the processes of the launcher, each with an accelerator of its own if there are any.

    Raises:
        ConfigError: If they do not all start.
    """
    size, rank = os.environ["WORLD_SIZE"], _launcher_says("RANK", 0)
    if not 0 <= rank < int(size):
        raise ConfigError(f"RANK={rank}: expected a number from 0 to WORLD_SIZE - 1 = {int(size) - 1}; unset both")
    if torch.accelerator.is_available():
        torch.accelerator.set_device_index(_launcher_says("LOCAL_RANK", 0) % torch.accelerator.device_count())
    missing = "WORLD_SIZE=%s: waiting until all processes of the launcher have started; without a launcher, unset it"
    notice = threading.Timer(NOTICE_SECONDS, log.warning, (missing, size))
    notice.daemon = True
    notice.start()
    try:
        dist.init_process_group("gloo", timeout=START)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"WORLD_SIZE={size}: the processes of the launcher do not find each other ({error}); "
            "start them by torchrun or accelerate launch, or unset WORLD_SIZE"
        ) from error
    finally:
        notice.cancel()
    try:
        yield dist.new_group(backend="gloo", timeout=WAIT)
    finally:
        dist.destroy_process_group()
