"""A live server of vLLM's completions API around small real models, computed by plain transformers."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from transformers import AutoModelForCausalLM, AutoTokenizer

Entry = dict[str, dict[str, Any]]
Twist = Callable[["LiveServer", dict[str, Any], list[Entry | None]], Any]
"""Given the server, a request and the honest entries, returns other entries, or a whole response."""


@dataclass
class LiveServer:
    """Models by name, and how the server differs from an honest one."""

    folders: dict[str, Path]
    tokenizer: Path
    twist: Twist = lambda _server, _body, entries: entries
    max_model_len: int = 1000
    max_logprobs: int = 20
    key: str | None = None
    knows: tuple[str, ...] = ("prompt_logprobs", "echo")
    is_strict: bool = False
    takes_texts: bool = False
    """Be like the server of llama-cpp-python 0.3.36, which takes texts only."""
    bos: int | None = None
    """Token that such a server puts before each text."""
    asked: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""

    def __post_init__(self) -> None:
        self.models = {
            name: AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
            for name, folder in self.folders.items()
        }
        self.tokens = AutoTokenizer.from_pretrained(self.tokenizer)
        self.words = [self.tokens.decode([token]) for token in range(len(self.tokens))]

    def entries(self, name: str, ids: list[int], n_top: int) -> list[Entry | None]:
        """Compute what vLLM would say: the true token, and the most likely ones; ranks count ties against a token."""
        with torch.inference_mode():
            table = self.models[name](torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        true = table.gather(1, torch.tensor(ids[1:])[:, None])
        ranks = (table >= true).sum(1).tolist()
        values, likely = (part.tolist() for part in table.topk(n_top))
        found: list[Entry | None] = [None]
        for i, token in enumerate(ids[1:]):
            said = list(zip(likely[i], values[i], range(1, n_top + 1), strict=True))
            said.append((token, true[i].item(), ranks[i]))
            found.append({str(t): {"logprob": v, "rank": r, "decoded_token": self.words[t]} for t, v, r in said})
        return found

    async def complete(self, request: Request) -> Response:
        body = await request.json()
        self.asked.append(body)
        if self.key is not None and request.headers.get("authorization") != f"Bearer {self.key}":
            said = f"Incorrect API key provided:\x1b[2J\n{request.headers.get('authorization')}"
            return JSONResponse({"error": {"message": said}}, 401)
        return self.complete_text(body) if self.takes_texts else self.complete_ids(body)

    def complete_ids(self, body: dict[str, Any]) -> Response:
        """Answer as vLLM does."""
        if self.is_strict and (extra := {"prompt_logprobs", "return_token_ids"} & set(body)):
            return JSONResponse({"detail": [{"loc": ["body", *extra], "msg": "Extra inputs are not permitted"}]}, 422)
        n_top = body.get("prompt_logprobs", body.get("logprobs", 0))
        if n_top > self.max_logprobs:
            said = f"Requested prompt logprobs of {n_top}, which is greater than max allowed: {self.max_logprobs}"
            return JSONResponse({"error": {"message": said, "code": 400}}, 400)
        if len(body["prompt"]) + body["max_tokens"] > self.max_model_len:
            said = f"This model's maximum context length is {self.max_model_len} tokens."
            return JSONResponse({"error": {"message": said, "code": 400}}, 400)
        entries = self.twist(self, body, self.entries(body["model"], body["prompt"], n_top))
        if isinstance(entries, Response):
            return entries
        choice: dict[str, Any] = {"index": 0, "text": "!", "finish_reason": "length", "logprobs": None}
        if "prompt_logprobs" in body and "prompt_logprobs" in self.knows:
            choice |= {"prompt_logprobs": entries, "prompt_token_ids": body["prompt"][: len(entries)]}
        elif body.get("echo"):
            choice["logprobs"] = self.echoed(body["prompt"], entries)
        usage = {"prompt_tokens": len(entries), "completion_tokens": 1, "total_tokens": len(entries) + 1}
        return JSONResponse({"id": "x", "object": "text_completion", "choices": [choice], "usage": usage})

    def echoed(self, ids: list[int], entries: list[Entry | None]) -> dict[str, Any]:
        """Return the older form, with the token that was generated at its end."""
        ids, entries = [*ids[: len(entries)], ids[-1]], [*entries, entries[-1]]
        tops = [e and {f"{v['decoded_token']}#{t}": v["logprob"] for t, v in e.items()} for e in entries]
        true = [e and e[str(t)]["logprob"] for t, e in zip(ids, entries, strict=True)]
        tokens = [self.words[token] for token in ids]
        return {"tokens": tokens, "token_logprobs": true, "top_logprobs": tops, "text_offset": []}

    def complete_text(self, body: dict[str, Any]) -> Response:
        """Answer as llama-cpp-python does.

        Without BOS its numbers are those of the next token; of the first one it shows, it says nothing; special tokens
        and bytes of a character share an empty text.
        """
        if not isinstance(body["prompt"], str):
            found = {"type": "string_type", "loc": ("body", "prompt", "str"), "msg": "Input should be a valid string"}
            said = f"2 validation errors:\n  {found}\n  ..."
            return JSONResponse({"error": {"message": said, "type": "internal_server_error"}}, 500)
        text = self.tokens(body["prompt"], add_special_tokens=False)["input_ids"]
        ids = text if self.bos is None else [self.bos, *text]
        with torch.inference_mode():
            table = self.models[body["model"]](torch.tensor([ids])).logits[0].log_softmax(-1)
        special = set(self.tokens.all_special_ids)
        words = ["" if i in special else word.replace("\ufffd", "") for i, word in enumerate(self.words)]
        tokens, true, tops = [words[token] for token in text], [], []
        for token, row in zip(text, table, strict=False):
            likely = row.topk(min(body["logprobs"], len(row)))
            tops.append({words[i]: v for i, v in zip(likely.indices.tolist(), likely.values.tolist(), strict=True)})
            tops[-1][words[token]] = row[token].item()
            true.append(row[token].item())
        logprobs = {"tokens": tokens, "token_logprobs": [None, *true[1:]], "top_logprobs": [None, *tops[1:]]}
        usage = {"prompt_tokens": len(ids), "completion_tokens": 1, "total_tokens": len(ids) + 1}
        choice = {"index": 0, "text": body["prompt"], "finish_reason": "length", "logprobs": logprobs}
        return JSONResponse({"id": "x", "object": "text_completion", "choices": [choice], "usage": usage})

    async def list_models(self, _request: Request) -> Response:
        rows = [{"id": name, "object": "model", "max_model_len": self.max_model_len} for name in self.models]
        return JSONResponse({"object": "list", "data": rows})

    async def version(self, _request: Request) -> Response:
        return JSONResponse({"version": "0.99.0"})


@contextmanager
def running(server: LiveServer) -> Iterator[LiveServer]:
    """Serve on a free port while the block runs."""
    app = Starlette(
        routes=[
            Route("/v1/completions", server.complete, methods=["POST"]),
            Route("/v1/models", server.list_models),
            Route("/version", server.version),
        ]
    )
    web = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=web.run, daemon=True)
    thread.start()
    while not web.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.01)
    server.url = f"http://127.0.0.1:{web.servers[0].sockets[0].getsockname()[1]}/v1"
    yield server
    web.should_exit = True
    thread.join()
