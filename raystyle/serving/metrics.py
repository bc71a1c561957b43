"""Prometheus metrics of one application, in a registry of its own.

A model's label is a name that the listing had or `unknown`, and a key's is its name in the key file, so that no client can
make up new series.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from raystyle.serving.contract import Listing

UNKNOWN = "unknown"
# From a GPU's few milliseconds to the deadline's two minutes, about a factor of two apart.
FIRST_TOKEN_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
TOKEN_BUCKETS_S = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class Metrics:
    """What `/metrics` shows."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._requests = Counter("raystyle_requests", "Requests answered", ["model", "code", "key"], registry=registry)
        self._prompt_tokens = Counter("raystyle_prompt_tokens", "Tokens of prompts", ["model"], registry=registry)
        self._tokens = Counter("raystyle_generated_tokens", "Tokens generated", ["model"], registry=registry)
        self._first_token = Histogram(
            "raystyle_first_token_seconds",
            "From a request's arrival to its first token",
            ["model"],
            buckets=FIRST_TOKEN_BUCKETS_S,
            registry=registry,
        )
        self._token = Histogram(
            "raystyle_token_seconds",
            "From a choice's token to its next, mean of a generation",
            ["model"],
            buckets=TOKEN_BUCKETS_S,
            registry=registry,
        )
        self._ready = Gauge("raystyle_ready", "1 where the model answers", registry=registry)
        self._admitted = Gauge("raystyle_admitted_choices", "Choices in flight", ["model"], registry=registry)
        self._running = Gauge("raystyle_running_rows", "Rows that the model continues now", registry=registry)
        self._waiting = Gauge("raystyle_waiting_rows", "Rows that wait for the model", registry=registry)

    def request(self, model: str | None, code: str, key: str | None) -> None:
        """One request is answered; `code` is `ok`, an error's, or `cancelled`."""
        self._requests.labels(model or UNKNOWN, code, key or "").inc()

    @contextmanager
    def admitted(self, choices: Mapping[str, int]) -> Iterator[None]:
        """So many choices of each model are in flight as long as the block lasts."""
        for model, count in choices.items():
            self._admitted.labels(model).inc(count)
        try:
            yield
        finally:
            for model, count in choices.items():
                self._admitted.labels(model).dec(count)

    def generation(
        self, model: str, prompt_tokens: int, tokens: int, first_token_s: float | None, token_s: float | None
    ) -> None:
        """One generation is over, whole or not. Times are None where there were too few tokens to tell."""
        self._prompt_tokens.labels(model).inc(prompt_tokens)
        self._tokens.labels(model).inc(tokens)
        if first_token_s is not None:
            self._first_token.labels(model).observe(first_token_s)
        if token_s is not None:
            self._token.labels(model).observe(token_s)

    def text(self, listing: Listing | None) -> bytes:
        """Everything, in Prometheus' text format. `listing` is None where the model does not answer."""
        self._ready.set(listing is not None)
        self._running.set(listing.running if listing else 0)
        self._waiting.set(listing.waiting if listing else 0)
        return generate_latest(self.registry)
