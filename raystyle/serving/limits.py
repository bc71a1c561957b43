"""How much is taken on at a time: choices in flight over all requests, and rates of each key.

All of it lives in one event loop and is checked and changed without awaiting, so nothing is locked.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

from raystyle.config import ServeConfig
from raystyle.serving.errors import RequestError

MAX_HEADERS = 100
MAX_HEADER_BYTES = 32_768
MAX_TARGET_BYTES = 2_048
# The connection's own, which `wall` keeps. Beyond the first a head is not read to its end; below, the application refuses it
# by its own, smaller limits. Other bytes that are no body, such as trailers, may be as many.
MAX_HEAD_BYTES = 2 * (MAX_HEADER_BYTES + MAX_TARGET_BYTES)
HEAD_TIMEOUT_S = 15.0  # from a connection's first moment, or from the end of an answer to the next request
UNREAD_TIMEOUT_S = 60.0  # how long an answer may wait for a client that takes none of it
MAX_CONNECTIONS = 800  # several times what may be in flight, and fewer than the files a process may open at the least
# A body of the default limit takes a second on a slow line; a client that drips one in must not hold a place.
BODY_TIMEOUT_S = 15.0
# The cells of a comparison, in units of `max_n`: a base and an adapter, each with as many choices as one request may have.
CELLS_PER_N = 2
# When to come back where no rate says it: a second frees some rows on any machine that is not overrun.
BUSY_RETRY_AFTER_S = 1.0
DRAINING_RETRY_AFTER_S = 5.0  # another one may have taken its place by then
LAST_WORDS_S = 5.0  # for what is ended by a stop, to be told so


def max_choices(config: ServeConfig) -> int:
    """The most choices of one completion, over its prompts."""
    return min(config.max_n, capacity(config))


def max_cells(config: ServeConfig) -> int:
    """The most cells of one comparison."""
    return min(CELLS_PER_N * config.max_n, capacity(config))


def capacity(config: ServeConfig) -> int:
    """The most choices in flight: those that all replicas continue at the same time, and those that wait."""
    return config.max_batch_size * config.max_replicas + config.max_queue


class Admission:
    """Counts choices in flight, takes no more once it is drained, and then ends those that take too long."""

    def __init__(self, most: int) -> None:
        self.most, self.in_flight, self.is_draining, self.is_over = most, 0, False, False
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self._waits: set[asyncio.Timeout] = set()

    @contextmanager
    def admitted(self, choices: int) -> Iterator[None]:
        """Holds room for so many choices as long as the block lasts. Raises `RequestError`: `server_busy` if there is none,
        `unavailable` while draining."""
        if self.is_draining:
            raise RequestError("unavailable", "the server is about to stop", retry_after_s=DRAINING_RETRY_AFTER_S)
        if self.in_flight + choices > self.most:
            raise RequestError(
                "server_busy",
                f"the server has {self.in_flight} choices in flight, and room for {self.most}; come back a little later",
                retry_after_s=BUSY_RETRY_AFTER_S,
            )
        self.in_flight += choices
        self._is_idle.clear()
        try:
            yield
        finally:
            self.in_flight -= choices
            if not self.in_flight:
                self._is_idle.set()

    @asynccontextmanager
    async def waiting_until(self, deadline_s: float) -> AsyncIterator[asyncio.Timeout]:
        """`asyncio.timeout_at`, which a drained server brings forward: `TimeoutError`, and `is_over` says which it was."""
        async with asyncio.timeout_at(0.0 if self.is_over else deadline_s) as timeout:
            self._waits.add(timeout)
            try:
                yield timeout
            finally:
                self._waits.discard(timeout)

    async def drain(self, timeout_s: float) -> bool:
        """Takes no more, and waits for what is in flight; False where that took longer, and was told to end."""
        self.is_draining = True
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._is_idle.wait()
                return True
        self.is_over = True
        for wait in self._waits:
            if not wait.expired():
                wait.reschedule(0.0)
        with suppress(TimeoutError):  # one that does not read its answer is not waited for
            async with asyncio.timeout(LAST_WORDS_S):
                await self._is_idle.wait()
        return False


class Bucket:
    """A token bucket: full at first, it holds a minute's worth and fills evenly."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_minute, self._clock = per_minute, clock
        self._level, self._at_s = float(per_minute), clock()

    def take(self, amount: int) -> float:
        """Takes the amount and returns 0, or takes nothing and returns in how many seconds there will be enough."""
        self._fill()
        if amount <= self._level:
            self._level -= amount
            return 0.0
        return (amount - self._level) * 60 / self.per_minute

    def give(self, amount: int) -> None:
        """Gives back what was taken and not used; a negative amount is what was used beyond it, and owed."""
        self._fill()
        self._level = min(self.per_minute, self._level + amount)

    def _fill(self) -> None:
        now_s = self._clock()
        self._level = min(self.per_minute, self._level + (now_s - self._at_s) * self.per_minute / 60)
        self._at_s = now_s


class Rates:
    """The requests and new tokens that each key may have in a minute; where no keys are set, all share one."""

    def __init__(self, config: ServeConfig) -> None:
        self._requests_per_minute, self._tokens_per_minute = config.requests_per_minute, config.tokens_per_minute
        self._requests: dict[str | None, Bucket] = {}
        self._tokens: dict[str | None, Bucket] = {}

    def take_request(self, key: str | None) -> None:
        """Counts one request. Raises `RequestError` `rate_limit_exceeded`."""
        self._take(self._requests, self._requests_per_minute, key, 1, "requests")

    @contextmanager
    def tokens(self, key: str | None, most: int, made: Callable[[], int]) -> Iterator[None]:
        """Counts the most new tokens that a request can make while the block lasts, and from then on those that it made.
        Raises `RequestError`; `invalid_value` if it can never be."""
        if self._tokens_per_minute is not None and most > self._tokens_per_minute:
            raise RequestError(
                "invalid_value",
                f"the request asks for up to {most} new tokens, and a key has {self._tokens_per_minute} a minute; "
                "ask for fewer choices or tokens",
                "max_tokens",
            )
        self._take(self._tokens, self._tokens_per_minute, key, most, "new tokens")
        try:
            yield
        finally:
            if key in self._tokens:
                self._tokens[key].give(most - made())

    def as_many_as_fit(self, tokens: int) -> int:
        """What a request that names no most is counted with: no more than a key's rate, for it did not ask for more."""
        return tokens if self._tokens_per_minute is None else min(tokens, self._tokens_per_minute)

    def _take(
        self, buckets: dict[str | None, Bucket], per_minute: int | None, key: str | None, amount: int, what: str
    ) -> None:
        if per_minute is None:
            return
        if key not in buckets:
            buckets[key] = Bucket(per_minute)
        wait_s = buckets[key].take(amount)
        if wait_s:
            raise RequestError(
                "rate_limit_exceeded",
                f"a key may have {per_minute} {what} a minute; come back in {wait_s:.1f} s",
                retry_after_s=wait_s,
            )


def limits(config: ServeConfig) -> list[str]:
    """The limits in effect, a line each."""

    def rate(per_minute: int | None, what: str) -> str:
        return f"{'any number of' if per_minute is None else per_minute} {what} a minute for each key"

    return [
        f"tokens of a prompt and its continuation: {config.max_length} at most, or what the base can hold",
        f"choices of a request: {max_choices(config)}; cells of a comparison: {max_cells(config)}",
        f"choices in flight: {capacity(config)} ({config.max_batch_size} on each of {config.max_replicas} replicas, "
        f"{config.max_queue} waiting)",
        f"rates: {rate(config.requests_per_minute, 'requests')}, {rate(config.tokens_per_minute, 'new tokens')}",
        f"body: {config.max_body_bytes} bytes, within {BODY_TIMEOUT_S:g} s; headers: {MAX_HEADERS}, "
        f"{MAX_HEADER_BYTES} bytes; path and query: {MAX_TARGET_BYTES} bytes",
        f"time: {config.first_token_timeout_s:g} s to the first token, {config.total_timeout_s:g} s in all; "
        f"{config.drain_timeout_s:g} s to finish when the server stops",
        f"connections, where raystyle.serving.wall keeps the proxy: {MAX_CONNECTIONS}; {HEAD_TIMEOUT_S:g} s to the end of a "
        f"request's head, which has {MAX_HEAD_BYTES} bytes at most; {UNREAD_TIMEOUT_S:g} s in which none of an answer is read",
    ]
