"""Workflows with a language model, whose finished steps survive a crash.

LangGraph is imported when the first workflow runs: the API never needs it.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from importlib import import_module
from typing import TYPE_CHECKING

from ..settings import Settings

if TYPE_CHECKING:
    from .tickets import TicketFlow


class Flows:
    """The workflows of a process, each opened when it is first used."""

    def __init__(self, settings: Settings, stack: AsyncExitStack) -> None:
        self._settings = settings
        self._stack = stack
        self._lock = asyncio.Lock()
        self._tickets: TicketFlow | None = None

    async def tickets(self) -> "TicketFlow":
        """Return the workflow of tickets."""
        async with self._lock:
            if self._tickets is not None:
                return self._tickets
            # In a thread, since it takes seconds, in which other jobs go on.
            module = await asyncio.to_thread(import_module, f"{__package__}.tickets")
            opening: AbstractAsyncContextManager[TicketFlow]
            opening = module.open_ticket_flow(self._settings)
            self._tickets = await self._stack.enter_async_context(opening)
            return self._tickets


@asynccontextmanager
async def open_flows(settings: Settings) -> AsyncGenerator[Flows]:
    """Return the workflows; what they have opened is closed at the end of the block."""
    async with AsyncExitStack() as stack:
        yield Flows(settings, stack)
