"""Records the log-probabilities that a server gives, after it passed a self-test."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from ltmia.data.recording_lines import LinesFile
from ltmia.data.recordings import RecordedText, Recording, RecordingHeader
from ltmia.endpoint.address import Endpoint
from ltmia.endpoint.client import Server, ServerFacts
from ltmia.endpoint.protocol import Answer, EchoedLogprobs, Form, PromptLogprobs
from ltmia.endpoint.self_test import Noise, Passed, SelfTest, Words
from ltmia.endpoint.sent_texts import SentTexts, unshared_texts
from ltmia.errors import ConfigError, DataError, ModelError
from ltmia.features.columns import LITE_TOP
from ltmia.models.identity import tokenizer_sha256
from ltmia.models.loading import LoadOptions, load_alone, load_tokenizer
from ltmia.models.sizes import model_sizes
from ltmia.models.tokens import EncodedText, encode_texts
from ltmia.progress import Report, silent
from ltmia.records import ModelStatistics, Texts
from ltmia.scoring.extraction import DEFAULT_LENGTH
from ltmia.scoring.recording import (
    Batches,
    RecordingWork,
    fingerprint_of,
    recorded_line,
    target_statistics,
    write_resumably,
)

N_COMPARED = 20
"""Recorded texts that are asked for again, before an interrupted recording goes on and when all are recorded."""
AT_ONCE = 5
"""Of these, texts recorded at about the same time that are judged together: a change would drown in the mean of all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointRecordConfig:
    """Settings of a recording from a server."""

    tokenizer: str
    """Model whose tokenizer and config the served model has: folder, hub id or .gguf file. Its weights are not read."""
    base_model: str | None = None
    """Name of the base on the same server, if the self-test shall see that the adapter has an effect."""
    check_against: str | None = None
    """Local weights of the served model, if the self-test shall compare the server with them."""
    max_length: int = DEFAULT_LENGTH
    """Largest number of token ids per text; the rest is not read."""
    loading: LoadOptions = field(default_factory=LoadOptions)
    """How tokenizer and local weights are loaded."""


def record_endpoint(
    endpoint: Endpoint,
    texts: Texts,
    out: Path | str,
    *,
    config: EndpointRecordConfig,
    overwrite: bool = False,
    report: Report = silent,
) -> Recording:
    """Record the log-probabilities that a server gives to texts; it must pass the self-test first.

    Every answer is kept in a hidden folder beside `out` until the file is whole; the same call continues from there.

    Args:
        endpoint: Server, and name of the model there.
        texts: Texts with unique ids. They are sent to the server, as token ids if it takes these.
        out: A name that ends in `.jsonl` or `.jsonl.gz`.
        config: Settings.
        overwrite: Replace a recording of another model, other texts or other settings.
        report: Called with progress.

    Raises:
        ModelError: If the server fails the self-test, refuses a text, or does not answer.
        ConfigError: If the name of the file has another ending, or something else is there.
        DataError: If two texts have one id, or an answer lacks something.
    """
    tokenizer = load_tokenizer(config.tokenizer, config.loading)
    sizes = model_sizes(config.tokenizer, config.loading)
    encoded = encode_texts(
        tokenizer,
        texts.texts,
        max_length=min(config.max_length, sizes.max_positions or config.max_length),
        vocab_size=sizes.vocab_size,
        starts=texts.starts,
    )
    header = RecordingHeader(
        model=endpoint.model,
        vocab_size=sizes.vocab_size,
        n_top=LITE_TOP,
        recorded_by=f"ltmia {version('ltmia')}",
        tokenizer_sha256=tokenizer_sha256(tokenizer),
    )
    known = [endpoint.base, endpoint.model, header.vocab_size, header.tokenizer_sha256, config.max_length, LITE_TOP]
    # They decide what the self-test compares: a recording that it compared with less is not the same.
    known += [config.base_model, config.check_against]
    header = header.model_copy(update={"fingerprint": fingerprint_of(known, texts, encoded)})
    with Server(endpoint) as server:
        job = _Job(server=server, texts=texts, encoded=encoded, tokenizer=tokenizer, header=header, config=config)
        return write_resumably(
            out,
            texts,
            header.fingerprint,
            lambda lines: job.left(lines, report),
            overwrite=overwrite,
            report=report,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """A recording from a server."""

    server: Server
    texts: Texts
    encoded: Sequence[EncodedText]
    tokenizer: PreTrainedTokenizerBase
    header: RecordingHeader
    config: EndpointRecordConfig

    def left(self, lines: LinesFile, report: Report) -> RecordingWork:
        """Test the server, and return what is left to record."""
        said = "no text could be scored, so nothing was asked"
        form: Form = PromptLogprobs(n_top=LITE_TOP)
        passed = Passed(said="", effect=None)
        job = self
        if self._scorable:
            facts = self.server.facts()
            self._check_model(facts)
            form = self._pick_form(self.encoded[self._scorable[0]])
            if form.sent is not None:
                job = replace(self, encoded=[form.sent.sendable(text) for text in self.encoded])
        if sample := SelfTest.sample(job.encoded, form.first):
            local = None if self.config.check_against is None else self._local
            test = SelfTest(texts=sample, tokenizer=self.tokenizer, base_model=self.config.base_model, local=local)
            served_by = "a server" if facts.version is None else f"vLLM {facts.version}"
            passed = test.run(self.server, form, report)
            said = f"{served_by}, {form.name}; self-test: {passed.said}"
            job._check_recorded(form, passed, lines)
        header = self.header.model_copy(update={"recorded_by": f"{self.header.recorded_by}, {said}"})
        return RecordingWork(header=header, batches=job._recorded(form, passed, lines))

    def _check_model(self, facts: ServerFacts) -> None:
        """Refuse a name that the server does not list, and texts that are longer than it reads."""
        endpoint, longest = self.server.endpoint, max(len(text.ids) for text in self.encoded)
        for option, name in (("served_model", endpoint.model), ("base_model", self.config.base_model)):
            if facts.models is not None and name is not None and name not in facts.models:
                names = ", ".join(map(repr, facts.models)) or "none"
                raise ConfigError(
                    f"`{option}={name}`: {endpoint.base} has no such model; it has {self.server.shown(names)}"
                )
        limit = (facts.models or {}).get(endpoint.model)
        if limit is not None and longest + 1 > limit:
            raise ConfigError(
                f"{endpoint.base}: takes {limit} tokens, one of which it writes, but the longest text has {longest}. "
                f"Set `max_length={limit - 1}`, or start the server with a larger context (`--max-model-len`)"
            )

    def _pick_form(self, text: EncodedText) -> Form:
        """Return vLLM's form if the server knows it, else the older one."""
        newer = PromptLogprobs(n_top=LITE_TOP)
        known = self.server.known_form(newer.body(text.ids.tolist()))
        if known == newer.name:
            return newer
        n = self.header.vocab_size
        sent = SentTexts.of(self.tokenizer, n) if known == "echo of texts" else None
        unshared = unshared_texts(self.tokenizer, n)
        return EchoedLogprobs(vocab_size=n, n_top=LITE_TOP, sent=sent, unshared=unshared)

    def _local(self, texts: Sequence[EncodedText]) -> list[ModelStatistics]:
        pair = load_alone(str(self.config.check_against), tokenizer=self.config.tokenizer, options=self.config.loading)
        if pair.target_runner.vocab_size != self.header.vocab_size:
            raise ConfigError(
                f"`check_against={self.config.check_against}`: a vocabulary of {pair.target_runner.vocab_size} ids, "
                f"and {self.header.vocab_size} in the config beside `tokenizer`; give the same model's"
            )
        return [target_statistics(pair, [text])[0] for text in texts]

    def _check_recorded(self, form: Form, passed: Passed, lines: LinesFile) -> None:
        """Ask again for some of the recorded texts, spread over the time: the server must not have changed.

        Raises:
            ModelError: If it has.
        """
        places = {name: row for row, name in enumerate(self.texts.ids)}
        earlier = [RecordedText.model_validate_json(line) for line in lines.spread(N_COMPARED, self._scorable)]
        some = {places[line.id]: line.statistics(LITE_TOP) for line in earlier}
        if any(line.n_read != self.encoded[places[line.id]].start for line in earlier):
            raise ModelError(
                f"{self.server.endpoint.base}: gives numbers of fewer or more tokens than before: another server runs "
                "there now. Restore it, or begin anew with `overwrite`"
            )
        now = {row: self._scored(form, row, answer) for batch in self._asked(form, some) for row, answer in batch}
        for rows in filter(len, np.array_split(list(some), max(1, len(some) // AT_ONCE))):
            noise = Noise.between([some[row] for row in rows.tolist()], [now[row] for row in rows.tolist()])
            if not noise.is_explained(passed.effect):
                raise ModelError(
                    f"{self.server.endpoint.base}: texts that were recorded before get other log-probabilities now: "
                    f"they differ by {noise}. The server has got another model under the name "
                    f"{self.server.endpoint.model!r}, or other settings. Restore it, or record under another name"
                )

    @property
    def _scorable(self) -> list[int]:
        return [row for row, text in enumerate(self.encoded) if text.n_scored]

    def _recorded(self, form: Form, passed: Passed, lines: LinesFile) -> Batches:
        done = frozenset(lines.places)
        unscorable = [row for row, text in enumerate(self.encoded) if text.reason and row not in done]
        yield [(row, recorded_line(self.texts, row, self.encoded[row], None)) for row in unscorable]
        words = Words(self.tokenizer)
        rows = [row for row in self._scorable if row not in done]
        for batch in self._asked(form, rows):
            yield [(row, self._line(form, row, answer, words)) for row, answer in batch]
        if rows:
            self._check_recorded(form, passed, lines)

    def _asked(self, form: Form, rows: Iterable[int]) -> Iterator[list[tuple[int, Answer]]]:
        return self.server.ask(form, ((row, self.texts.ids[row], self.encoded[row].ids.tolist()) for row in rows))

    def _scored(self, form: Form, row: int, answer: Answer) -> ModelStatistics:
        """Return the numbers of the scored tokens, without those of a prompt before them."""
        text = self.encoded[row]
        return answer.statistics.slice(text.start - form.first, len(text.ids) - form.first)

    def _line(self, form: Form, row: int, answer: Answer, words: Words) -> RecordedText:
        ids = self.encoded[row].ids[form.first :].tolist()
        if words.are_of_other_text(ids, answer):
            raise DataError(
                f"{self.server.endpoint.base}: the answer to {self.texts.ids[row][:80]!r} is about another text: most "
                "of its tokens are others. The server, or a proxy before it, mixes answers up; try `concurrency=1`"
            )
        if form.sent is not None and (other := words.other(ids, answer)):
            token, their = other[0]
            raise DataError(
                f"{self.server.endpoint.base}: makes other tokens of {self.texts.ids[row][:80]!r} than `tokenizer`: "
                f"{self.server.shown(their)[:40]!r} for {token} ({words.of(token)[0][:40]!r}). Name the served model's "
                "own tokenizer; if it is, leave this text out"
            )
        line = recorded_line(self.texts, row, self.encoded[row], self._scored(form, row, answer))
        if mistake := line.mistake(self.header):
            raise DataError(f"{self.server.endpoint.base}: the answer to {line.id[:80]!r}: {mistake}")
        return line
