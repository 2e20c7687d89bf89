"""The log, to standard error: readable text, or a JSON object per line."""

import json
import logging
from datetime import UTC, datetime
from typing import Any

from .queue import current_job, current_trace_id
from .settings import Settings

JOB_FIELDS = ("job_id", "task", "attempt", "trace_id")
SERVERS_LOGGERS = ("uvicorn", "uvicorn.access")  # uvicorn gives them handlers of their own


def configure_logging(settings: Settings) -> None:
    """Write the log to standard error, unless somebody has set up logging already."""
    package = logging.getLogger(__package__)
    level = settings.log_level.upper()
    package.setLevel(int(level) if level.isdecimal() else level)
    as_json = settings.log_format == "json"
    formatter = _JsonFormatter() if as_json else _TextFormatter()
    if not package.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(formatter)
        logging.getLogger().addHandler(handler)
    if as_json:
        logging.captureWarnings(capture=True)
        for name in SERVERS_LOGGERS:
            for each in logging.getLogger(name).handlers:
                each.setFormatter(formatter)


def job_fields(record: logging.LogRecord) -> dict[str, Any]:
    """Return the job that a record is of and its trace, as far as there are any."""
    fields: dict[str, Any] = {"trace_id": current_trace_id()}
    if job := current_job():
        context = job.context
        values = (context.job_id, job.task, context.attempt, job.trace_id)
        fields = dict(zip(JOB_FIELDS, values, strict=True))
    fields |= {name: value for name, value in vars(record).items() if name in JOB_FIELDS}
    return {name: value for name, value in fields.items() if value is not None}


def json_line(logger: str, message: str) -> str:
    """Return a message as a line of the log."""
    record = logging.LogRecord(logger, logging.INFO, "", 0, "%s", (message,), None)
    return _JsonFormatter().format(record)


class _TextFormatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        line = super().formatMessage(record)
        fields = job_fields(record)
        job_id = fields.get("job_id")
        if job_id is None or str(job_id) in record.message:
            return line
        return f"{line} [job {job_id} ({fields.get('task')})]"


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        try:
            message = record.getMessage()
        except Exception as error:  # noqa: BLE001 - arguments of any type may raise anything
            message = f"{record.msg!r}: its arguments do not fit: {type(error).__name__}"
        fields = {
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname,
            "logger": record.name,
            "message": message,
            **job_fields(record),
        }
        if record.exc_info and record.exc_info[1]:
            fields["exception"] = record.exc_text or self.formatException(record.exc_info)
        if record.stack_info:
            fields["stack"] = record.stack_info
        return json.dumps({name: _valid(value) for name, value in fields.items()})


def _valid(value: object) -> object:
    """Return a number as it is, anything else as text that every reader of JSON accepts."""
    if isinstance(value, int):
        return value
    return str(value).encode("utf-8", "backslashreplace").decode()
