"""OpenAI-compatible and pooling servers in this process: what a served policy and a served reward model speak with."""

from __future__ import annotations

import contextlib
import json
import random
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

WORDS = ["please", "help", "café", "thanks", "日本", "oven", "now", "kindly"]


class FakeServer(BaseHTTPRequestHandler):
    """Words drawn by the request's seed; a reward that counts letters. The server object holds what a test sets."""

    def do_GET(self):
        if self.server.fails:
            return self.reply(self.server.fails, {"error": {"message": self.server.message}})
        return self.reply(
            200, {"object": "list", "data": [{"id": name, "object": "model"} for name in self.server.models]}
        )

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append((self.path, body))
        if self.server.failures and (status := self.server.failures.pop()):
            return self.reply(status, {"error": {"message": self.server.message}})
        if body.get("logprobs") is not None and self.server.without_logprobs:
            return self.reply(400, {"error": {"message": "logprobs are not supported by this model"}})
        if self.path == "/v1/chat/completions":
            return self.reply(200, chat(body, self.server))
        if self.path == "/v1/completions":
            return self.reply(200, completion(body, self.server))
        return self.rewards(body)

    def rewards(self, body):
        texts = body.get("input") or [json.dumps(body["messages"], ensure_ascii=False)]
        if any("too long" in text for text in texts):
            return self.reply(400, {"error": {"message": "longer than the model's context"}})
        key = {"/classify": "probs", "/pooling": "data"}[self.path]
        data = [{"index": i, key: [*self.server.before, float(text.count("e"))]} for i, text in enumerate(texts)]
        return self.reply(200, {"data": data[::-1], "usage": {"prompt_tokens": 7 * len(texts)}})

    def reply(self, status, values):
        data = json.dumps(values).encode()
        self.send_response(status)
        for name, value in (("Content-Type", "application/json"), ("retry-after-ms", "5")):
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


def drawn(body, begun):
    """(tokens, finish reason): words up to max_tokens in all, or an end after eight."""
    rng = random.Random(f"{body['seed']} {body['temperature']}")
    left = 8 - len(begun.split())
    tokens = [
        " " + rng.choice(WORDS) if begun or i else rng.choice(WORDS) for i in range(min(left, body["max_tokens"]))
    ]
    return tokens, "length" if left > body["max_tokens"] else "stop"


def chat(body, server):
    last = body["messages"][-1]
    begun = last["content"] if last["role"] == "assistant" else ""
    assert bool(begun) == body.get("continue_final_message", False)
    tokens, finish = drawn(body, begun)
    count = len(tokens) + (finish == "stop")
    ends = [*tokens, "<end>"][:count]
    content = [{"token": t, "bytes": list(t.encode()), "logprob": -0.5, "top_logprobs": []} for t in ends]
    choice = {
        "index": 0,
        "finish_reason": finish,
        "message": {"role": "assistant", "content": None if server.thinks else "".join(tokens)},
        "logprobs": {"content": content} if body.get("logprobs") else None,
    }
    return whole(choice, count)


def completion(body, server):
    begun = body["prompt"].rpartition("Assistant:")[2].strip()
    tokens, finish = drawn(body, begun)
    listed = {"tokens": tokens, "token_logprobs": [-0.5] * len(tokens), "text_offset": [0] * len(tokens)}
    choice = {"index": 0, "text": "".join(tokens), "finish_reason": finish, "logprobs": listed}
    return whole(choice | ({} if "logprobs" in body else {"logprobs": None}), len(tokens))


def whole(choice, count):
    usage = {"prompt_tokens": 20, "completion_tokens": count, "total_tokens": 20 + count}
    return {"id": "1", "object": "x", "created": 0, "model": "m", "choices": [choice], "usage": usage}


@contextlib.contextmanager
def serving(**settings):
    """A server with a `base_url`, its `bodies` (path, request) and its switches."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeServer)
    usual = {
        "models": ["small"],
        "message": "not now",
        "without_logprobs": False,
        "thinks": False,
        "before": [],
        "fails": 0,
    }
    for name, value in {**usual, "bodies": [], "failures": [], **settings}.items():
        setattr(server, name, value)
    server.base_url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
