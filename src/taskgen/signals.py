"""Signal handling: SIGINT, SIGTERM and SIGHUP end the program, but never halfway through a step.

A handler that raises wherever the program happens to be is not enough: raised in a callback of
the import system or of the garbage collector, the exception is printed and lost. So a signal
either ends the process at once, while there is nothing to clean up, or it is deferred, and raised
only where the program waits.
"""

import os
import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_deferred: list[int] = []


class Interrupted(SystemExit):
    """Raised to end the program after a signal.

    A `SystemExit`, because asyncio, which runs the prompts, lets no other exception pass.

    Args:
        signal_number: The signal that arrived first.
    """

    def __init__(self, signal_number: int) -> None:
        self.exit_code = 128 + signal_number
        super().__init__(self.exit_code)


def install_signal_handlers() -> None:
    """End the process at once when a signal arrives.

    Call it first: Python prints a traceback for a Ctrl-C during its imports.
    """
    _handle_signals(_exit)


@contextmanager
def defer_signals() -> Generator[None, None, None]:
    """Keep signals from interrupting a block, except where it allows them to.

    Raises:
        Interrupted: A signal arrived too late for the block to act on it.
    """
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    _handle_signals(_defer)
    try:
        yield
        check_signals()
    finally:
        _deferred.clear()
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def interruptible() -> Generator[None, None, None]:
    """Let a signal interrupt a block that waits, inside `defer_signals`.

    Raises:
        Interrupted: A signal arrived, before the block or within it.
    """
    _handle_signals(_interrupt)
    try:
        check_signals()
        yield
    finally:
        _handle_signals(_defer)


def check_signals() -> None:
    """Raise if a signal has been deferred.

    Raises:
        Interrupted: A signal has arrived since `defer_signals` began.
    """
    if _deferred:
        raise Interrupted(_deferred[0])


def _handle_signals(handler: Callable[[int, FrameType | None], None]) -> None:
    for number in _SIGNALS:
        # `nohup` and a shell's background jobs ignore some of them: that stays.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def _exit(number: int, _frame: FrameType | None) -> None:
    with suppress(OSError):
        os.write(2, b"Interrupted.\n")
    os._exit(128 + number)


def _defer(number: int, _frame: FrameType | None) -> None:
    _deferred.append(number)


def _interrupt(number: int, _frame: FrameType | None) -> None:
    # Remembered too, in case the exception is lost on its way; and a second signal must not
    # interrupt the rollback that the first one causes.
    _deferred.append(number)
    _handle_signals(_defer)
    raise Interrupted(number)
