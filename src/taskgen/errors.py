"""Errors that a user can act on, raised where the cause is known and printed by the CLI."""


class TaskgenError(Exception):
    """Raised when a command cannot be completed.

    Args:
        message: What is wrong, in one sentence.
        hint: What to do about it.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(TaskgenError):
    """Raised when the command line is invalid, whatever the state of the machine."""

    exit_code = 2


class OutputError(TaskgenError):
    """Raised when standard output cannot be written.

    Args:
        problem: The error of the write.
        hint: What was done all the same.
    """

    def __init__(self, problem: OSError, hint: str) -> None:
        super().__init__(f"Standard output: {problem.strerror or problem}.", hint)
