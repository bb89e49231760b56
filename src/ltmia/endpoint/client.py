"""Asks a server of log-probabilities: many prompts at a time, again after a passing failure, with errors that help.

Needs the extra `endpoint`.
"""

import asyncio
import re
import time
import unicodedata
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Literal

import httpx2
from pydantic import BaseModel, ValidationError
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt, wait_exponential_jitter

from ltmia.endpoint.address import API_KEY, Endpoint, open_connections
from ltmia.endpoint.loop import LoopThread, cancel_others
from ltmia.endpoint.protocol import Answer, Form, read_completion
from ltmia.errors import DataError, ModelError

MOST_SAID = 300
"""Characters of a server's own words that an error shows."""
LONGEST_WAIT = 60.0
"""Longest wait between two tries, in seconds."""
LARGEST_ANSWER = 2**28
"""Bytes of the largest answer that is read; one for a prompt of 10,000 tokens is some 15 MB."""
CURES = {
    401: f"set the environment variable {API_KEY} to the server's key",
    403: f"set the environment variable {API_KEY} to a key that may use this model",
    404: "check `endpoint`, which usually ends in /v1, and `served_model`",
    413: "set a smaller `max_length`",
}
"""What to do about a refusal, by its status."""
CERTIFICATE = "CERTIFICATE_VERIFY_FAILED"
"""Word by which OpenSSL says that it does not trust a server."""
CERTIFICATE_CURE = "Let the variable SSL_CERT_FILE name the file of the certificate that signed the server's."
UNKNOWN_KEY = re.compile(r"extra|unknown|unrecogni|unexpected|not permitted|not supported", re.IGNORECASE)
"""Words by which a strict server refuses a key that it does not know."""
WANTS_TEXT = re.compile(r"prompt.*valid string", re.IGNORECASE)
"""Words by which a server refuses token ids (llama-cpp-python)."""
NO_ECHO = re.compile(r"no echo is supported|echo.*not supported", re.IGNORECASE)
"""Words by which a server says that it gives no log-probabilities of a prompt (llama.cpp's own)."""
LASTING = re.compile(f"validation error|{NO_ECHO.pattern}", re.IGNORECASE)
"""Words by which a server refuses a request for good although its status is 500."""

Kind = Literal["prompt_logprobs", "echo", "echo of texts"]
"""Forms of requests that servers know."""


class _PassingError(Exception):
    """A failure that may be over in a while."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class _Model(BaseModel):
    id: str
    max_model_len: int | None = None


class _Models(BaseModel):
    data: list[_Model]


class _Version(BaseModel):
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFacts:
    """What a server says about itself."""

    version: str | None
    """Version of vLLM; None if the server is another, or does not say."""
    models: dict[str, int | None] | None
    """Longest input, in tokens, of each model by name; None if there is no list of models."""


class Server:
    """A connection to a server. Used as a context; all its methods wait for the answers."""

    def __init__(self, endpoint: Endpoint) -> None:
        """Prepare the connections.

        Raises:
            ConfigError: If the environment names a proxy or certificates that cannot be used.
        """
        self.endpoint = endpoint
        self._http = open_connections(endpoint)
        self._loop = LoopThread()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connections."""
        self._loop.run(self._http.aclose())
        self._loop.close()

    def facts(self) -> ServerFacts:
        """Ask for the list of models and for the version; neither is part of every server.

        Raises:
            ModelError: If nothing answers there, or the key is refused.
        """
        base = self.endpoint.base
        listed = self._loop.run(self._get(f"{base}/models"))
        said = self._loop.run(self._get(f"{base.removesuffix('/v1')}/version"))
        try:
            models = None if listed is None else _Models.model_validate_json(listed).data
        except ValidationError:
            models = None
        try:
            version = None if said is None else self.shown(_Version.model_validate_json(said).version)
        except ValidationError:
            version = None
        return ServerFacts(
            version=version, models=None if models is None else {model.id: model.max_model_len for model in models}
        )

    def shown(self, words: str) -> str:
        """Return the server's own words as one short line without control characters, and without the key."""
        if self.endpoint.api_key is not None:
            words = words.replace(self.endpoint.api_key, "…")
        seen = "".join(" " if unicodedata.category(sign)[0] in "CZ" else sign for sign in words[: 4 * MOST_SAID])
        return " ".join(seen.split())[:MOST_SAID]

    def known_form(self, body: dict[str, Any]) -> Kind:
        """Send a request for `prompt_logprobs` of token ids, and say from the answer which form the server knows.

        Raises:
            ModelError: If the server refuses the request for another reason than not knowing the key, or no ids.
            DataError: If the answer is not one of /completions.
        """
        url = f"{self.endpoint.base}/completions"
        try:
            sent = self._send("POST", url, {"model": self.endpoint.model, **body}, self.endpoint.tries)
            given = read_completion(self._loop.run(sent)).choices[0].prompt_logprobs
        except DataError as error:
            raise DataError(f"{url}: {error}") from None
        except _RefusedError as error:
            if WANTS_TEXT.search(str(error)):
                return "echo of texts"
            if error.status in (400, 422) and UNKNOWN_KEY.search(str(error)):
                return "echo"
            raise
        return "echo" if given is None else "prompt_logprobs"

    def ask(
        self, form: Form, prompts: Iterable[tuple[int, str, Sequence[int]]], model: str | None = None
    ) -> Iterator[list[tuple[int, Answer]]]:
        """Send prompts, as many at a time as `Endpoint.concurrency` says, and yield the answers as they come.

        Args:
            form: How to ask.
            prompts: A number, a name and the token ids of each prompt. Answers come with the number, in any order.
            model: Name of another model on the server.

        Raises:
            ModelError: If the server refuses a prompt, or gives no answer for too long.
            DataError: If an answer lacks something.
        """
        answers = self._answers(form, prompts, model or self.endpoint.model)

        async def following() -> list[tuple[int, Answer]] | None:
            return await anext(answers, None)

        try:
            while (batch := self._loop.run(following())) is not None:
                yield batch
        finally:
            self._loop.run(_stop(answers))

    async def _answers(
        self, form: Form, prompts: Iterable[tuple[int, str, Sequence[int]]], model: str
    ) -> AsyncGenerator[list[tuple[int, Answer]], None]:
        waiting, under_way = iter(prompts), set[asyncio.Task[tuple[int, Answer]]]()
        try:
            while True:
                for number, name, ids in waiting:
                    under_way.add(asyncio.create_task(self._answer(form, number, name, ids, model)))
                    if len(under_way) >= self.endpoint.concurrency:
                        break
                if not under_way:
                    return
                done, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
                # What is answered is passed on even if another prompt failed at the same time.
                if answered := [task.result() for task in done if task.exception() is None]:
                    yield answered
                for task in done:
                    task.result()
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)

    async def _answer(self, form: Form, number: int, name: str, ids: Sequence[int], model: str) -> tuple[int, Answer]:
        url = f"{self.endpoint.base}/completions"
        try:
            content = await self._send("POST", url, {"model": model, **form.body(ids)}, self.endpoint.tries)
            return number, form.read(name, ids, read_completion(content))
        except _RefusedError as error:
            raise ModelError(f"{name!r}: {error}") from None
        except DataError as error:
            raise DataError(f"{url}: {error}") from None

    async def _get(self, url: str) -> bytes | None:
        """Return what lies at a URL; None if there is nothing."""
        try:
            return await self._send("GET", url, None, min(self.endpoint.tries, 3))
        except _RefusedError as error:
            if error.status in (401, 403):
                raise
            return None

    async def _send(self, method: str, url: str, body: dict[str, Any] | None, tries: int) -> bytes:
        retrying = AsyncRetrying(
            stop=stop_after_attempt(tries),
            wait=self._wait,
            retry=retry_if_exception_type(_PassingError),
            reraise=True,
        )
        try:
            return await retrying(self._send_once, method, url, body)
        except _PassingError as error:
            raise ModelError(
                f"{url}: {error}, {tries} times in a row. Check that the server runs there and is not overloaded "
                "(a smaller `concurrency` helps); what is recorded is kept, and the same command resumes"
            ) from None

    async def _send_once(self, method: str, url: str, body: dict[str, Any] | None) -> bytes:
        try:
            # The client's own limit is for each part of an answer; this one is for all of it.
            async with asyncio.timeout(self.endpoint.timeout), self._http.stream(method, url, json=body) as response:
                content = await _content(response, url)
        except (httpx2.TimeoutException, TimeoutError):
            raise _PassingError(f"no answer within {self.endpoint.timeout:g} s") from None
        except httpx2.RequestError as error:
            words = self.shown(str(error)) or type(error).__name__
            if CERTIFICATE in words:
                raise ModelError(f"{url}: {words}. {CERTIFICATE_CURE}") from None
            raise _PassingError(f"no connection ({words})") from None
        status = response.status_code
        if response.is_success:
            return content
        words = self.shown(content.decode("utf-8", "replace"))
        if status in (408, 425, 429) or (status >= 500 and not LASTING.search(words)):
            raise _PassingError(f"status {status}: {words}", _seconds(response.headers.get("Retry-After", "")))
        if response.has_redirect_location:
            words = f"it sends to {self.shown(response.headers['Location'])}, which is not followed"
        raise _RefusedError(url, status, words)

    def _wait(self, state: RetryCallState) -> float:
        """Return the seconds before the next try: longer each time, and as long as the server asks for."""
        error = state.outcome.exception() if state.outcome else None
        asked = error.wait if isinstance(error, _PassingError) else 0.0
        backed_off = wait_exponential_jitter(multiplier=self.endpoint.first_wait, jitter=self.endpoint.first_wait)
        return min(max(asked, backed_off(state)), LONGEST_WAIT)


async def _stop(answers: AsyncGenerator[Any, None]) -> None:
    """End all that is under way: a signal may have ended the wait in the midst of an answer."""
    await cancel_others()
    await answers.aclose()


async def _content(response: httpx2.Response, url: str) -> bytes:
    content = bytearray()
    async for part in response.aiter_bytes():
        content += part
        if len(content) > LARGEST_ANSWER:
            raise ModelError(
                f"{url}: its answer is larger than {LARGEST_ANSWER // 2**20} MiB; is it one of log-probabilities?"
            )
    return bytes(content)


class _RefusedError(ModelError):
    """A refusal that the same request would meet again."""

    def __init__(self, url: str, status: int, words: str) -> None:
        super().__init__(f"{url}: status {status}: {words}. {_cure(status, words)}")
        self.status = status


def _cure(status: int, words: str) -> str:
    if NO_ECHO.search(words):
        return (
            "This server gives log-probabilities only of tokens that it writes itself; serve the model with vLLM, "
            "SGLang or llama-cpp-python."
        )
    if "logprob" in words:
        return "Start the server with `--max-logprobs 20` or more; for the form with `echo`, with `--max-logprobs -1`."
    if "context" in words or "max_model_len" in words or "too long" in words:
        return "Set a smaller `max_length`, or start the server with a larger context (`--max-model-len`)."
    cure = CURES.get(status, "check `endpoint`, `served_model` and the server's log")
    return f"{cure[0].upper()}{cure[1:]}."


def _seconds(said: str) -> float:
    """Read the header Retry-After: seconds, or a date; anything else counts as nothing."""
    if said.isdecimal():
        return float(said)
    try:
        return parsedate_to_datetime(said).timestamp() - time.time()
    except ValueError:
        return 0.0
