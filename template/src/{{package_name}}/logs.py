"""The log: one line per event, to standard error."""

import json
import logging
from datetime import UTC, datetime
from typing import Any

from .queue import current_job, current_trace_id
from .settings import Settings

TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
QUEUE = f"{__package__}.queue."  # whose messages name the job, where they are about it


class TextFormatter(logging.Formatter):
    """Writes an event as text, with the job that it belongs to."""

    def __init__(self) -> None:
        super().__init__(TEXT)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Return all but the exception."""
        job = current_job()
        if job and not (record.name.startswith(QUEUE) and job.job_id in record.message):
            record.message += f" [job {job.job_id} {job.task} attempt {job.attempt}]"
        return super().formatMessage(record)


class JsonFormatter(logging.Formatter):
    """Writes an event as a JSON object in one line, with its job and its trace."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        event: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            event["exception"] = self.formatException(record.exc_info)
        job = current_job()
        if job:
            event |= {"job_id": job.job_id, "task": job.task, "attempt": job.attempt}
        if trace_id := job.trace_id if job else current_trace_id():
            event["trace_id"] = trace_id
        return json.dumps(event)


def configure_logging(settings: Settings) -> None:
    """Write the log to standard error, unless somebody has set up logging already.

    As text, that is this package's log. As JSON it is everybody's, so that each line is JSON: also
    that of uvicorn, which has set up its own handlers by now.
    """
    package = logging.getLogger(__package__)
    level = settings.log_level.upper()
    package.setLevel(int(level) if level.isdecimal() else level)
    as_json = settings.log_format == "json"
    formatter = JsonFormatter() if as_json else TextFormatter()
    if not package.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(formatter)
        (logging.getLogger() if as_json else package).addHandler(handler)
    if as_json:
        for name in ("uvicorn", "uvicorn.access"):
            for each in logging.getLogger(name).handlers:
                each.setFormatter(formatter)
