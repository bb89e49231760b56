"""Where a server is: neither passwords nor keys are shown, and proxies do not see what stays on this machine."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Barrier, Event, Thread, Timer

import pytest

from ltmia.endpoint import client
from ltmia.endpoint.address import Endpoint
from ltmia.endpoint.client import Server, _seconds
from ltmia.endpoint.protocol import PromptLogprobs
from ltmia.errors import ConfigError, LtmiaError, ModelError

KEY = "sk-very-secret-9f3a"
Answer = Callable[[BaseHTTPRequestHandler], tuple[int, dict[str, str], str]]


@contextmanager
def answering(answer: Answer) -> Iterator[str]:
    """Serve what a function says, and give the URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = answer(self)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body.encode())), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body.encode())

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    class Web(ThreadingHTTPServer):
        request_queue_size = 200

    with Web(("127.0.0.1", 0), Handler) as web:
        thread = Thread(target=web.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{web.server_port}/v1"
        finally:
            web.shutdown()
            thread.join()


def quick(url: str, key: str | None = KEY) -> Endpoint:
    return Endpoint(url=url, model="m", api_key=key, tries=1)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("localhost:8000", "localhost:8000`: expected a URL"),
        ("file:///etc/passwd", "expected a URL"),
        ("http://host:99999/v1", "99999/v1`: expected a URL"),
        ("http://me:pa55@host/v1", "the URL of host holds a password"),
        ("https://host/v1?key=pa55", "the URL of host holds a password, a query"),
        ("http://me:pa55@host:port/v1", "`endpoint`: expected a URL"),
        ("me:pa55@host/v1", "`endpoint`: expected a URL"),
        ("http://[::1/v1?key=pa55", "`endpoint`: expected a URL"),
    ],
)
def test_addresses_are_checked(url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        Endpoint(url=url, model="m")
    assert "pa55" not in str(refused.value)


@pytest.mark.parametrize("key", [f"{KEY}\n", f"{KEY} ", f"{KEY}é", ""])
def test_a_key_that_no_header_can_hold_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(ConfigError, match=r"LTMIA_API_KEY: a key has no spaces") as refused:
        quick("http://127.0.0.1:9/v1", key)
    assert KEY not in str(refused.value)


def test_a_server_that_repeats_the_key_is_quoted_without_it() -> None:
    def version(asked: BaseHTTPRequestHandler) -> tuple[int, dict[str, str], str]:
        return 200, {}, f'{{"version": "1 {asked.headers["Authorization"]}"}}'

    def late(asked: BaseHTTPRequestHandler) -> tuple[int, dict[str, str], str]:
        # The key lies across the end of what is read of the answer.
        return 401, {}, " " * 1190 + asked.headers["Authorization"]

    with answering(version) as url, Server(quick(url)) as server:
        assert server.facts().version == "1 Bearer …"
    with answering(late) as url, Server(quick(url)) as server, pytest.raises(ModelError, match="401") as refused:
        server.facts()
    assert KEY[:4] not in str(refused.value)


def test_a_redirection_is_told_and_not_followed() -> None:
    asked: list[str] = []

    def other(handler: BaseHTTPRequestHandler) -> tuple[int, dict[str, str], str]:
        asked.append(handler.path)
        return 200, {}, "{}"

    with answering(other) as there, answering(lambda _: (307, {"Location": f"{there}/x"}, "")) as here:
        with Server(quick(here)) as server, pytest.raises(ModelError, match=rf"307: it sends to {there}/x, which is"):
            server.known_form({})
        assert asked == []


def test_an_answer_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part comes at once, so that no wait for a part is ever too long."""

    def dripping(handler: BaseHTTPRequestHandler) -> tuple[int, dict[str, str], str]:
        handler.send_response(200)
        handler.end_headers()
        with suppress(OSError):  # the client has left
            for _ in range(200):
                handler.wfile.write(b" ")
                time.sleep(0.01)
        return 200, {}, ""

    with answering(dripping) as url:
        with (
            Server(replace(quick(url), timeout=0.2)) as server,
            pytest.raises(ModelError, match=r"no answer within 0\.2 s"),
        ):
            server.known_form({})
        monkeypatch.setattr(client, "LARGEST_ANSWER", 10)
        with Server(quick(url)) as server, pytest.raises(ModelError, match="its answer is larger than"):
            server.known_form({})


@pytest.mark.parametrize(
    "setting",
    [
        {"ALL_PROXY": "socks5://me:pa55@host:1"},
        {"HTTP_PROXY": "foo://me:pa55@host:1"},
        {"HTTPS_PROXY": "http://me:pa55/x@host:1"},
        {"SSL_CERT_FILE": "/nonesuch"},
    ],
)
def test_proxies_and_certificates_of_the_environment(setting: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in setting.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"the environment names a proxy or certificates") as refused:
        Server(quick("https://192.0.2.1/v1"))
    assert "pa55" not in str(refused.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_no_proxy_sees_what_is_sent_to_this_machine(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def proxy(asked: BaseHTTPRequestHandler) -> tuple[int, dict[str, str], str]:
        seen.append(str(asked.headers["Authorization"]))
        return 200, {}, '{"version": "of the proxy"}'

    with answering(proxy) as through, answering(lambda _: (200, {}, '{"version": "own"}')) as url:
        monkeypatch.setenv("HTTP_PROXY", through)
        with Server(quick(url.replace("127.0.0.1", host))) as server:
            assert server.facts().version == "own"
        with Server(quick("http://192.0.2.1/v1")) as server:
            assert server.facts().version == "of the proxy"
    assert len(seen) == 2


def test_as_many_texts_are_asked_for_at_once_as_was_said() -> None:
    n = 110  # the library's own limit is 100
    together = Barrier(n)

    def wait(_: BaseHTTPRequestHandler) -> tuple[int, dict[str, str], str]:
        together.wait(20)
        return 400, {}, "all are here"

    with answering(wait) as url, Server(replace(quick(url), concurrency=n, timeout=30)) as server:
        prompts = ((i, f"text {i}", (1, 2)) for i in range(n))
        with pytest.raises(ModelError, match=r"'text \d+': .* all are here"):
            list(server.ask(PromptLogprobs(n_top=3), prompts))


@pytest.mark.parametrize(("said", "seconds"), [("7", 7), ("", 0), ("soon", 0), ("-3", 0), ("1e3", 0)])
def test_the_wait_that_a_server_asks_for(said: str, seconds: float) -> None:
    assert _seconds(said) == seconds
    assert _seconds(formatdate(time.time() + 30, usegmt=True)) == pytest.approx(30, abs=1.5)


def test_a_signal_while_waiting_for_answers_is_what_ends_them() -> None:
    class SignalError(BaseException):
        pass

    def struck(*_: object) -> None:
        raise SignalError

    def waiting(_: BaseHTTPRequestHandler) -> tuple[int, dict[str, str], str]:
        struck_often.wait(60)
        return 200, {}, "{}"

    struck_often = Event()
    before = signal.signal(signal.SIGUSR1, struck)
    try:
        with answering(waiting) as url:
            for part in range(20):  # at any moment, also inside the library of connections
                strike = Timer(0.0005 * part, os.kill, (os.getpid(), signal.SIGUSR1))
                with Server(quick(url)) as server:
                    answers = server.ask(PromptLogprobs(n_top=3), [(0, "a", [1, 2, 3])])
                    with pytest.raises(SignalError):
                        _ = strike.start(), list(answers)
                strike.join()
            struck_often.set()
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_what_cannot_be_reached_is_told() -> None:
    with Server(quick("http://127.0.0.1:9/v1")) as server, pytest.raises(LtmiaError, match="no connection"):
        server.facts()
