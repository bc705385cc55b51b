"""Models behind an HTTP endpoint: one client, its retries, and what an outage means, for policies, rewards and judges.

The client of the `openai` package speaks: it repeats a request after lost connections, time-outs, 408, 409, 429
and 5xx with growing waits. What still fails then is an outage (`errors.is_away`): it is raised, the run waits, and what
had been answered is kept, because the same requests come again.
"""

from __future__ import annotations

import base64
import importlib.util
import os
import threading
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

from aisp_ray.errors import LoadError, keep_secret, redacted

_MOST_KEPT = 65536  # answers


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """Settings of a model that is spoken to over HTTP. Settings of policies, reward models and judges inherit them."""

    model: str  # name of the model at the endpoint
    base_url: str | None = None  # address of the endpoint, ending in /v1; null: OpenAI's
    api_key_env: str | None = "OPENAI_API_KEY"  # environment variable with the key; null: the endpoint wants none
    extra: dict[str, Any] = field(default_factory=dict)  # further fields of the request body
    concurrency: int = 8  # requests at the endpoint at a time
    retries: int = 5  # of a request after lost connections, time-outs, 408, 409, 429 and 5xx, with growing waits
    timeout_seconds: float = 120.0  # of one try

    def check_served(self) -> None:
        """Raises ValueError for a number that cannot be; part of `__post_init__`."""
        if self.concurrency < 1 or self.retries < 0 or self.timeout_seconds <= 0:
            raise ValueError("concurrency must be at least 1, retries at least 0 and timeout_seconds above 0")

    def unreachable(self, what: str, where: str) -> list[str]:
        """Why the endpoint cannot be spoken to from here, before anything is sent. what: e.g. "a judge"."""
        if importlib.util.find_spec("openai") is None:
            return [f"{what} speaks through the openai package, which is not installed: pip install openai"]
        if self.api_key_env is not None and not os.environ.get(self.api_key_env):
            return [
                f"the key of {what} is not in the environment: set {self.api_key_env}, or {where}.api_key_env=null for "
                "an endpoint that wants none"
            ]
        return []


class Endpoint:
    """A connection to an endpoint, with counters. One thread starts and collects batches."""

    def __init__(self, settings: ServedModel, name: str):
        from openai import OpenAI

        self.settings, self.name = settings, name
        key = os.environ.get(settings.api_key_env) if settings.api_key_env else "none"
        self.client: Any = OpenAI(
            base_url=settings.base_url, api_key=key, max_retries=settings.retries, timeout=settings.timeout_seconds
        )
        for secret in _secrets_of(settings.base_url, key if settings.api_key_env else None):
            keep_secret(secret)
        self.kept: dict[Hashable, Any] = {}  # answers to requests that others of their batch held up
        self._pool = ThreadPoolExecutor(settings.concurrency, thread_name_prefix=name)
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def start(self, asks: Mapping[Hashable, Callable[[], Any]]) -> Asked:
        """Send requests, each under a key that says all of it."""
        return Asked(self, list(asks), {k: self._pool.submit(ask) for k, ask in asks.items() if k not in self.kept})

    def require_model(self, where: str) -> None:
        """Look the model up in the endpoint's list, where it has one.

        Raises:
            ValueError: the endpoint does not serve it, or refuses the key.
            LoadError: nothing answers at its address, or a server that fails.
        """
        from openai import APIConnectionError, APIStatusError

        address = f"{where}.base_url={self.client.base_url}"
        try:
            served = [model.id for model in self.client.models.list().data]
        except APIConnectionError as error:
            why = self.redacted(f"{address}: no server answers there ({error.__cause__ or error})")
            raise LoadError(f"{why}. Start it, or change the address") from error
        except APIStatusError as error:
            if error.status_code in (401, 403):
                raise ValueError(self.redacted(f"{where}: the endpoint refuses the key: {error}")) from error
            if error.status_code >= 500:
                raise LoadError(self.redacted(f"{address}: the server fails: {error}")) from error
            return  # an endpoint without a list
        if served and self.settings.model not in served:
            raise ValueError(
                f"{where}.model={self.settings.model}: {self.client.base_url} serves {', '.join(served[:5])}"
            )

    def count(self, **amounts: float) -> None:
        with self._lock:
            self._counts.update(amounts)

    def counts(self, names: tuple[str, ...]) -> dict[str, float]:
        """Counters by name, the endpoint's own name in front."""
        with self._lock:
            return {f"{self.name}_{name}": float(self._counts[name]) for name in names}

    def redacted(self, text: str) -> str:
        """The text without the key and without the user part of the address, which an endpoint may send back."""
        key = self.client.api_key
        return redacted(text.replace(key, "***") if self.settings.api_key_env and key else text)


def _secrets_of(base_url: str | None, key: str | None) -> list[str]:
    """What a request carries to say who sends it: the key, and user:password of the address as HTTP sends them."""
    address = urlsplit(base_url or "")
    user, password = unquote(address.username or ""), unquote(address.password or "")
    coded = base64.b64encode(f"{user}:{password}".encode()).decode()
    return [*([key] if key else []), *([password, coded] if user or password else [])]


class Asked:
    """Requests that are under way together."""

    def __init__(self, endpoint: Endpoint, keys: list[Hashable], futures: dict[Hashable, Future[Any]]):
        self._endpoint, self._keys, self._futures = endpoint, keys, futures

    @property
    def settled(self) -> bool:
        """Whether nothing runs any more. After an exception what has not begun is cancelled."""
        if any(f.done() and not f.cancelled() and f.exception() is not None for f in self._futures.values()):
            for future in self._futures.values():
                future.cancel()
        return all(future.done() for future in self._futures.values())

    def answers(self) -> dict[Hashable, Any]:
        """The answer to each request, waited for.

        Raises:
            Exception: the first that a request raised; what was answered is kept for when its like comes again.
        """
        while not self.settled:
            wait([future for future in self._futures.values() if not future.done()], return_when="FIRST_COMPLETED")
        kept = self._endpoint.kept
        ended = {key: future for key, future in self._futures.items() if not future.cancelled()}
        answers = {key: future.result() for key, future in ended.items() if future.exception() is None}
        if len(answers) < len(self._futures):
            if len(kept) + len(answers) > _MOST_KEPT:
                kept.clear()
            kept.update(answers)
            raise next(error for future in ended.values() if (error := future.exception()) is not None)
        return answers | {key: kept.pop(key) for key in self._keys if key not in answers}
