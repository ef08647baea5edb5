"""What a benchmark asked of an engine, and how much came back."""

import asyncio
from collections.abc import Sequence

from treeopo.ports import Generate
from treeopo.records import Completion, Request


class Recorded:
    """`Generate` that keeps what it was asked and counts what it answered."""

    def __init__(self, engine: Generate) -> None:
        self.engine = engine
        self.requests: list[Request] = []
        self.tokens = 0

    async def generate(self, request: Request) -> Completion:
        self.requests.append(request)
        completion = await self.engine.generate(request)
        self.tokens += len(completion.token_ids)
        return completion

    async def ask(self, requests: Sequence[Request]) -> list[Completion]:
        """All of them at once."""
        return await asyncio.gather(*map(self.generate, requests))
