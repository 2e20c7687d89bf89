"""The retry policy: how many attempts a job gets, and how long it waits between them."""

import random

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, PositiveInt

from .errors import Discard, InvalidJobError, InvalidResultError, JobExpiredError

# Another attempt changes nothing about these.
NEVER_RETRIED = (
    AttributeError,
    Discard,
    InvalidJobError,
    InvalidResultError,
    JobExpiredError,
    NameError,
    NotImplementedError,
    TypeError,
)


class RetryPolicy(BaseModel):
    """When an attempt that ended with an exception is followed by another.

    Attempt n is followed by attempt n + 1 after `backoff * 2 ** (n - 1)` seconds, at most
    `max_backoff`, of which a random half is left out so that jobs that failed together do not
    come back together. With the defaults: 1-2 s, 2-4, 4-8, 8-16, ... up to 300-600 s.

    Attributes:
        max_attempts: The number of attempts in all, the first one included.
        backoff: Seconds before the second attempt.
        max_backoff: Seconds, the longest wait between two attempts.
        never: Exceptions that fail the job at once, besides programming errors (`TypeError`,
            `AttributeError`, `NameError`, `NotImplementedError`) and `Discard`.

    Raises:
        ValueError: A value is out of range, or has the wrong type.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    max_attempts: PositiveInt = 1
    backoff: NonNegativeFloat = 2
    max_backoff: NonNegativeFloat = 600
    never: tuple[type[BaseException], ...] = ()

    def allows(self, error: BaseException, attempt: int) -> bool:
        """Return whether an attempt that ended with this exception may be followed by another."""
        if isinstance(error, NEVER_RETRIED + self.never):
            return False
        return attempt < self.max_attempts

    def delay(self, attempt: int) -> float:
        """Return the seconds to wait after an attempt; the first attempt is number 1."""
        longest = min(self.backoff * 2 ** min(attempt - 1, 60), self.max_backoff)
        return random.uniform(longest / 2, longest)  # noqa: S311 - no secret
