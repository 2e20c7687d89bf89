"""The server's shutdown: it waits for open responses, so an endless stream has to end itself."""

import signal
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from types import FrameType
from typing import Any


@asynccontextmanager
async def watch_shutdown() -> AsyncGenerator[Callable[[], bool]]:
    """Return a function that tells whether a signal has told the server to end."""
    ending = False

    def note(handler: Callable[[int, FrameType | None], Any]) -> Callable[..., None]:
        def handle(number: int, frame: FrameType | None) -> None:
            nonlocal ending
            ending = True
            handler(number, frame)

        return handle

    # The server's own handlers, in the one thread that may change them.
    handlers = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    theirs = {each: handler for each, handler in handlers.items() if callable(handler)}
    for each, handler in theirs.items():
        signal.signal(each, note(handler))
    try:
        yield lambda: ending
    finally:
        for each, handler in theirs.items():
            signal.signal(each, handler)
