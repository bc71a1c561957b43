"""The client: streamed completions over HTTP, in a process of its own.

    python bench/serving/load.py URL FOLDER SIZE PID NAME

PID is the server's, for the CPU seconds of its tree; NAME says how it calls adapters, as `base:{}`.
"""

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import aiohttp
import work


async def main(url: str, folder: Path, size: str, pid: int, name: str) -> None:
    prompts = work.prompts(folder)
    # Connections are kept, as clients' libraries keep them.
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=600)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(900)) as session:

        async def one(asked: work.Asked, started_s: float) -> work.Said:
            body = {
                "model": name.format(f"a{asked.adapter}"),
                "prompt": prompts[asked.prompt],
                "max_tokens": asked.tokens,
                "temperature": 0,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
            texts: list[str] = []
            first_s, tokens = 0.0, 0
            async with session.post(f"{url}/v1/completions", json=body) as answer:
                if answer.status != 200:
                    raise RuntimeError(f"{answer.status} {await answer.text()}")
                async for line in answer.content:
                    if not line.startswith(b"data: {"):
                        continue
                    event = json.loads(line[6:])
                    if text := "".join(choice["text"] for choice in event["choices"]):
                        first_s = first_s or time.perf_counter() - started_s
                        texts.append(text)
                    if event.get("usage"):
                        tokens = event["usage"]["completion_tokens"]
            return work.Said(first_s, tokens, "".join(texts))

        async def ask(asked: Sequence[work.Asked]) -> list[work.Said]:
            started_s = time.perf_counter()
            return await asyncio.gather(*(one(each, started_s) for each in asked))

        await work.measure(ask, work.cells(size), pid)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), sys.argv[5]))
