"""The log, to standard error: lines of text, or one JSON object for each event."""

import json
import logging
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from .queue import current_job
from .settings import Settings

TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
SERVERS = ("uvicorn", "uvicorn.access")  # whose handlers uvicorn makes before it loads the app


def configure_logging(settings: Settings) -> None:
    """Write this package's log to standard error, unless somebody has set up logging already.

    With `LOG_FORMAT=json`, the log of the web server has that form, too.
    """
    package = logging.getLogger(__package__)
    level = settings.log_level.upper()
    package.setLevel(int(level) if level.isdecimal() else level)
    formatter = JsonFormatter() if settings.log_format == "json" else TextFormatter(TEXT)
    if not package.hasHandlers():
        package.addHandler(logging.StreamHandler())
        package.handlers[0].setFormatter(formatter)
    for name in SERVERS if settings.log_format == "json" else ():
        for handler in logging.getLogger(name).handlers:
            handler.setFormatter(formatter)


class TextFormatter(logging.Formatter):
    """Names the job, where a task has written the line and not named it."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the lines of an event."""
        text = super().format(record)
        job = current_job()
        if job is None or job.job_id in text:
            return text
        first, *rest = text.split("\n", 1)
        named = f"{first} (job {job.job_id}, {job.task}, attempt {job.attempt})"
        return "\n".join([named, *rest])


class JsonFormatter(logging.Formatter):
    """Writes an event as one line of JSON; inside a task, with its job, task and attempt."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of an event."""
        event: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if job := current_job():
            event |= asdict(job)
        if record.exc_info:
            event["exception"] = self.formatException(record.exc_info)
        return json.dumps(event, default=str)
