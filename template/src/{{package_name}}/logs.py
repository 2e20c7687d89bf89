"""The log: one line per event, to standard error."""

import json
import logging
from datetime import UTC, datetime
from typing import Any

from .queue import current_job, current_trace_id
from .settings import Settings

TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class TextFormatter(logging.Formatter):
    """Writes an event as text, with the job that it belongs to."""

    def __init__(self) -> None:
        super().__init__(TEXT)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Return the first line."""
        text = super().formatMessage(record)
        job = current_job()
        if job is None or job.job_id in record.message:
            return text
        return f"{text} (job {job.job_id}, {job.task})"


class JsonFormatter(logging.Formatter):
    """Writes an event as a JSON object in one line, with its job and its trace."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        time = datetime.fromtimestamp(record.created, UTC)
        event: dict[str, Any] = {
            "time": time.isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": _valid(_message(record)),
        }
        if record.exc_info:
            event["exception"] = _valid(record.exc_text or self.formatException(record.exc_info))
        return json.dumps(event | current_fields())


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
        logging.captureWarnings(capture=True)
        for name in ("uvicorn", "uvicorn.access"):
            for each in logging.getLogger(name).handlers:
                each.setFormatter(formatter)


def as_json(logger: str, text: str) -> str:
    """Return a line of text as an event of the log, unless it is one already."""
    record = logging.LogRecord(logger, logging.INFO, "", 0, text, None, None)
    return text if text.startswith("{") else JsonFormatter().format(record)


def current_fields() -> dict[str, Any]:
    """Return the job that the calling code runs for and its trace, as far as there are any."""
    if job := current_job():
        fields = {"job_id": job.job_id, "task": job.task, "attempt": job.attempt}
        trace_id = job.trace_id
    else:
        fields, trace_id = {}, current_trace_id()
    return fields | {"trace_id": trace_id} if trace_id else fields


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception as error:  # noqa: BLE001 - logging would write a traceback between the lines
        return f"{record.msg!r} cannot be formatted: {type(error).__name__}"


def _valid(text: str) -> str:
    """Return text as every reader of JSON takes it, without halves of surrogate pairs."""
    return text.encode("utf-8", "backslashreplace").decode()
