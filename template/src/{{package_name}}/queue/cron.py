"""Schedules of periodic jobs: five fields, as in crontab(5)."""

from datetime import datetime

from cronsim import CronSim, CronSimError

FIELDS = 5
EPOCH = datetime(2000, 1, 1)  # noqa: DTZ001 - only to validate the fields


class Cron:
    """A schedule such as "0 3 * * *".

    Around a change of the clock it follows Debian's cron: a time that is skipped runs right after
    the gap, a time that comes twice runs once.

    Raises:
        ValueError: The fields make no schedule.
    """

    def __init__(self, fields: str) -> None:
        self.fields = fields
        if len(fields.split()) != FIELDS:
            raise ValueError(f'{fields!r} must have five fields, as in "0 3 * * *"')
        try:
            self.next_after(EPOCH)
        except (CronSimError, StopIteration) as error:
            raise ValueError(f"{fields!r} is not a schedule: {error}") from None

    def next_after(self, moment: datetime) -> datetime:
        """Return the first time after this moment, in the moment's timezone."""
        return next(CronSim(self.fields, moment))
