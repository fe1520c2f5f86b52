"""The trainer's way to the replicas: tokens in, tokens out, by least load. Torch-free."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import aiohttp
import msgspec

from wire.errors import ServiceError, Unauthorized
from wire.generation import Choice, Chunk, Completion, VersionSpan
from wire.token import auth_headers

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 5.0
NEVER_STREAM_PARTS = 2**30  # tokens: each completion comes in one or two pieces, not token by token

CompletionFutures = Sequence["asyncio.Future[Completion]"]


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn. `stop_token_ids` end a completion and are part of it."""

    max_tokens: int
    temperature: float
    stop_token_ids: tuple[int, ...]


@dataclass
class _Part:
    """A completion while its pieces arrive."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: tuple[VersionSpan, ...] = ()

    def add(self, choice: Choice) -> None:
        self.token_ids += choice.token_ids or []
        if choice.logprobs is not None and choice.logprobs.content is not None:
            self.logprobs += [token.logprob for token in choice.logprobs.content]
        if choice.weight_versions:
            self.versions = tuple(choice.weight_versions)


class RolloutClient:
    """Sends each prompt to the replica with the fewest prompts in flight.

    Args:
        members: called for every request; the URLs that hold the current weights.
        token: the run's access token.
        sampling: how completions are drawn.
        timeout_s: deadline of one prompt, retries on other replicas included.
    """

    def __init__(self, members: Callable[[], Sequence[str]], token: str, sampling: Sampling, timeout_s: float) -> None:
        self._members, self._token, self._sampling, self._timeout_s = members, token, sampling, timeout_s
        self._load: Counter[str] = Counter()
        self._decoder = msgspec.json.Decoder(Chunk)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            headers=auth_headers(self._token),
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10.0),
            read_bufsize=2**22,  # bytes: one event carries a whole completion
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._session is not None
        await self._session.close()

    @property
    def in_flight(self) -> dict[str, int]:
        """Prompts in flight by replica."""
        return dict(+self._load)

    @asynccontextmanager
    async def generate(
        self, token_ids: Sequence[int], num: int, *, seed: int, salt: Callable[[], str]
    ) -> AsyncIterator[CompletionFutures]:
        """Ask for `num` completions of one prompt; yields a future for each, done as it arrives.

        All are written by one replica, which reads the prompt once. If that replica fails, another one writes what is
        still missing. Leaving the context cancels what is unfinished.

        Args:
            token_ids: the prompt.
            num: completions (K).
            seed: 63-bit; completion i is drawn with seed + i, by whichever replica.
            salt: called for every request; keeps prefixes of different weights apart in the replica's cache.

        Raises (from the futures):
            ServiceError: no replica wrote it within the deadline.
            Unauthorized: a replica refused the token.
        """
        futures = [asyncio.get_running_loop().create_future() for _ in range(num)]
        task = asyncio.create_task(self._fill(futures, token_ids, seed, salt))
        try:
            yield futures
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            for future in futures:
                if future.done() and not future.cancelled():
                    future.exception()  # marks it as seen
                future.cancel()

    async def _fill(
        self, futures: CompletionFutures, token_ids: Sequence[int], seed: int, salt: Callable[[], str]
    ) -> None:
        """Fill the futures, from another replica after a failure, until all are done or the deadline has passed."""
        problem: Exception = ServiceError("no rollout replica holds the current weights")
        avoid: set[str] = set()
        try:
            async with asyncio.timeout(self._timeout_s):
                pause = FIRST_PAUSE_S
                while not all(future.done() for future in futures):
                    replica = self._least_loaded(avoid)
                    if replica is None:
                        avoid.clear()
                        await asyncio.sleep(pause)
                        pause = min(2 * pause, LONGEST_PAUSE_S)
                        continue
                    self._load[replica] += 1
                    problem = ServiceError(f"{replica}: it has not finished")  # should the deadline pass meanwhile
                    try:
                        await self._stream(replica, futures, token_ids, seed, salt())
                    except Unauthorized:
                        raise
                    except (aiohttp.ClientError, ConnectionError, ServiceError, msgspec.MsgspecError) as error:
                        problem = ServiceError(f"{replica}: {error or type(error).__name__}")
                        avoid.add(replica)
                    finally:
                        self._load[replica] -= 1
        except TimeoutError:
            self._fail(
                futures, ServiceError(f"a prompt was not answered within {self._timeout_s:.0f} s; last: {problem}")
            )
        except Exception as error:  # noqa: BLE001 - handed on to whoever awaits the completions
            self._fail(futures, error)

    @staticmethod
    def _fail(futures: CompletionFutures, error: Exception) -> None:
        for future in futures:
            if not future.done():
                future.set_exception(error)

    def _least_loaded(self, avoid: set[str]) -> str | None:
        candidates = [url for url in self._members() if url not in avoid]
        return min(candidates, key=lambda url: self._load[url], default=None)

    async def _stream(
        self, replica: str, futures: CompletionFutures, token_ids: Sequence[int], seed: int, salt: str
    ) -> None:
        assert self._session is not None
        parts = [_Part() for _ in futures]
        request = self._request(token_ids, len(futures), seed, salt)
        async with self._session.post(f"{replica}/inference/v1/generate", json=request) as reply:
            if reply.status == 401:
                raise Unauthorized(f"{replica} refuses the token: give both sides the same token_file")
            if reply.status != 200:
                raise ServiceError(f"HTTP {reply.status}: {(await reply.text())[:300]}")
            async for line in reply.content:
                if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                    continue
                chunk = self._decoder.decode(line[6:])
                if chunk.error is not None:
                    raise ServiceError(f"generation failed: {chunk.error}")
                for choice in chunk.choices:
                    self._take(choice, parts[choice.index], futures[choice.index], replica)
        if not all(future.done() for future in futures):
            raise ServiceError("the stream ended before all completions were there")

    @staticmethod
    def _take(choice: Choice, part: _Part, future: asyncio.Future[Completion], replica: str) -> None:
        part.add(choice)
        if choice.finish_reason is None or future.done():
            return
        if choice.finish_reason not in ("stop", "length"):
            raise ServiceError(f"a completion ended with {choice.finish_reason!r}")
        if len(part.logprobs) != len(part.token_ids):
            raise ServiceError(f"{len(part.logprobs)} log-probs for {len(part.token_ids)} tokens")
        finished = choice.finish_reason == "stop"
        ids, logprobs = tuple(part.token_ids), tuple(part.logprobs)
        future.set_result(Completion(choice.index, ids, logprobs, finished, part.versions, replica))

    def _request(self, token_ids: Sequence[int], num: int, seed: int, salt: str) -> dict[str, Any]:
        return {
            "token_ids": list(token_ids),
            "sampling_params": {
                "n": num,
                "seed": seed,
                "max_tokens": self._sampling.max_tokens,
                "temperature": self._sampling.temperature,
                "top_p": 1.0,
                "top_k": 0,
                "logprobs": 0,
                "stop_token_ids": list(self._sampling.stop_token_ids),
                "detokenize": False,
                "stream_interval": NEVER_STREAM_PARTS,
            },
            "stream": True,
            "cache_salt": salt,
        }
