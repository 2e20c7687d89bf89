"""What can go wrong, told where the cause is known, and printed by the command line alone."""


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
