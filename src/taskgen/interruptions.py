"""Ctrl-C and its kin: they end the program, but never between a deed and the note of it."""

import signal
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(SystemExit):
    """The user, or the system, wants the program to stop.

    A `SystemExit`, because asyncio lets no other pass when it comes while a question is asked.

    Args:
        signal_number: Which signal said so.
    """

    def __init__(self, signal_number: int) -> None:
        self.exit_code = 128 + signal_number
        super().__init__(self.exit_code)


def heed_signals() -> None:
    """Raise `Interrupted` where the program is when it is told to stop."""
    for number in _heeded():
        signal.signal(number, _interrupt)


@contextmanager
def undisturbed() -> Generator[None, None, None]:
    """Let a signal wait until the block has ended."""
    waiting: list[int] = []
    before = {number: signal.getsignal(number) for number in _heeded()}
    for number in before:
        signal.signal(number, lambda number, _frame: waiting.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for first in waiting[:1]:
            signal.raise_signal(first)


def _heeded() -> list[signal.Signals]:
    # `nohup` and a shell's background jobs have some of them ignored: that stays.
    return [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]


def _interrupt(number: int, _frame: FrameType | None) -> None:
    # What is half-made is about to be removed, and a second Ctrl-C must not stop that. With
    # SIG_IGN, Python would complain of one that is already on its way.
    for other in _heeded():
        signal.signal(other, lambda _number, _frame: None)
    raise Interrupted(number)
