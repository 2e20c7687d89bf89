"""What can go wrong, told where the cause is known, and printed by the command line alone."""

import signal

# What ends the program, with everything half-made removed first.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class TaskgenError(Exception):
    """Something failed, and the user can do something about it.

    Args:
        message: One sentence: what is wrong.
        hint: What to do about it.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(TaskgenError):
    """The command line asks for something that cannot be, whatever the machine's state."""

    exit_code = 2


class Interrupted(BaseException):
    """The user, or the system, wants the program to stop.

    Args:
        signal_number: Which signal said so.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.exit_code = 128 + signal_number
