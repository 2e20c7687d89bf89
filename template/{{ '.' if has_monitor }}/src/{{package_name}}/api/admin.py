"""The jobs page under `/admin/`, and its requests: one for each refresh, one for each action."""

import logging
from base64 import b64encode
from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Depends, FastAPI, Query, Request, Response
from pydantic import BaseModel, Field, SerializeAsAny
from pydantic_core import to_json
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..auth import require_admin
from ..queue import Job, JobDetails, JobStatus, Overview
from .deps import ServiceQueue

STATIC = Path(__file__).parent / "static"
PAGE = (STATIC / "admin.html").read_bytes()
SCRIPT = (STATIC / "admin.js").read_bytes()
STYLE = PAGE.partition(b"<style>")[2].partition(b"</style>")[0]
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; connect-src 'self'; "
    f"style-src 'sha256-{b64encode(sha256(STYLE).digest()).decode()}'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
MOST_JOBS = 500  # of a list, and of an action
LONGEST_VALUE = 100_000  # characters that the page shows
VALUES = {"positional", "arguments", "result", "traceback"}
CHANGED = "Its status has changed, or it is unknown."

router = APIRouter(prefix="/admin", dependencies=[Depends(require_admin)], include_in_schema=False)
logger = logging.getLogger(__name__)


class View(BaseModel):
    """What the page asks for: a list of jobs, and one job."""

    status: JobStatus | None = None
    task: str | None = None
    search: Annotated[str, Field(max_length=200)] = ""
    limit: Annotated[int, Field(ge=1, le=MOST_JOBS)] = 50
    job: str | None = None


class State(BaseModel):
    """What the page shows; `texts` are the values of `job`, whose numbers JavaScript would round."""

    service: str
    now: datetime
    overview: Overview
    jobs: Sequence[SerializeAsAny[Job]]
    job: JobDetails | None
    texts: dict[str, str]


def add_admin_page(app: FastAPI) -> None:
    """Add the page to the API, with headers that forbid browsers all that it does not need."""
    app.include_router(router)
    app.add_middleware(_with_headers)


@router.get("/")
async def get_page() -> Response:
    """Return the page."""
    return Response(PAGE, media_type="text/html")


@router.get("/admin.js")
async def get_script() -> Response:
    """Return the page's script."""
    return Response(SCRIPT, media_type="text/javascript")


@router.get("/state", response_model_exclude={"job": VALUES})
async def get_state(request: Request, queue: ServiceQueue, view: Annotated[View, Query()]) -> State:
    """Return all that a refresh of the page shows."""
    job = await queue.monitor.details(view.job) if view.job else None
    return State(
        service=request.app.title,
        now=datetime.now(UTC),
        overview=await queue.monitor.overview(),
        jobs=await queue.monitor.jobs(**view.model_dump(exclude={"job"})),
        job=job,
        texts=_texts(job) if job else {},
    )


@router.post("/{action}")
async def act(
    action: Literal["retry", "abort", "delete", "pause", "resume"],
    targets: Annotated[set[str], Body(embed=True, min_length=1, max_length=MOST_JOBS)],
    queue: ServiceQueue,
) -> dict[str, str]:
    """Retry, abort or delete jobs, pause or resume queues; return why it was not done for some."""
    call = getattr(queue if action == "abort" else queue.monitor, action)
    refused: dict[str, str] = {}
    for target in targets:
        try:
            if await call(target) is False:
                refused[target] = CHANGED
        except ValueError as error:
            refused[target] = f"{error}."
    logger.info("admin: %s %d, refused %d", action, len(targets), len(refused))
    return refused


def _texts(job: JobDetails) -> dict[str, str]:
    texts = {
        "Error": job.error or "",
        "Traceback": job.traceback,
        "Arguments": _json(job.arguments),
        "Arguments by position": _json(job.positional) if job.positional else "",
        "Result": _json(job.result) if job.status is JobStatus.COMPLETE else "",
    }
    return {title: text for title, text in texts.items() if text}


def _json(value: Any) -> str:
    text = to_json(value, indent=2).decode()
    return f"{text[:LONGEST_VALUE]}... (cut)" if len(text) > LONGEST_VALUE else text


def _with_headers(app: ASGIApp) -> ASGIApp:
    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
        await app(scope, receive, send_with_headers if path.startswith("/admin/") else send)

    return answer
