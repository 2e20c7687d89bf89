"""The log: one line per event, to standard error."""

import json
import logging
from datetime import UTC, datetime
from typing import Any

from .queue import current_job
from .settings import Settings

TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class JsonFormatter(logging.Formatter):
    """Writes an event as a JSON object in one line, with the job that it belongs to."""

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
        if job := current_job():
            event |= {"job_id": job.job_id, "task": job.task, "attempt": job.attempt}
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
    formatter = JsonFormatter() if as_json else logging.Formatter(TEXT)
    if not package.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(formatter)
        (logging.getLogger() if as_json else package).addHandler(handler)
    if as_json:
        for name in ("uvicorn", "uvicorn.access"):
            for each in logging.getLogger(name).handlers:
                each.setFormatter(formatter)
