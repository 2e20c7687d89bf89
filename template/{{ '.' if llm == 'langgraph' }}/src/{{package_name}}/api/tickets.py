"""Support tickets: answered by a workflow, of which a person decides whether its reply is sent."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from itertools import count
from typing import Annotated, Any, Self
from uuid import UUID

from fastapi import APIRouter, Depends, Header, HTTPException, Query, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.sse import format_sse_event
from pydantic import BaseModel, StringConstraints, model_validator
from pydantic_core import to_json
from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError

from ..flows.events import EVENT_ID, START, Event, TicketEvents
from ..queue import IdempotencyConflictError, QueueUnavailableError, TaskQueue
from ..settings import Settings
from ..tasks.tickets import Decision, advance_ticket
from ..tickets import ENDED, Ticket, TicketStatus
from .deps import AppResources, CurrentClient, Email, IdempotencyKey, Line, Queue, Session
from .jobs import Accept, JobAccepted

# U+0000 is the one character that PostgreSQL does not store.
Text = Annotated[str, StringConstraints(strip_whitespace=True, pattern=r"^[^\x00]+$")]
EventId = Annotated[str, Header(alias="Last-Event-ID", pattern=EVENT_ID)]
PAGE = 100  # tickets
POLL = 0.2  # seconds between two looks for new events
SILENCE = 15  # seconds, after which a watcher is told that the connection lives
STREAM: dict[int | str, Any] = {
    200: {"description": "Events.", "content": {"text/event-stream": {"schema": {}}}},
    204: {"description": "Nothing will follow."},
}
router = APIRouter(tags=["tickets"])


class TicketRequest(BaseModel):
    """What a customer has written."""

    email: Email
    subject: Line
    text: Text


class TicketAccepted(JobAccepted):
    """A ticket that the workflow will take to a draft, or to its end."""

    ticket_id: UUID


class DecisionRequest(Decision):
    """Approve the draft, edit it (`text` is sent in its place), or reject it: nothing is sent."""

    text: Text | None = None

    @model_validator(mode="after")
    def _has_text_to_edit(self) -> Self:
        if (self.text is not None) != (self.action == "edit"):
            raise ValueError('"edit" needs a text, and no other action has one')
        return self


class TicketInfo(TicketRequest):
    """A ticket with what the workflow has made of it so far."""

    id: UUID
    status: TicketStatus
    category: str | None
    draft: str | None
    reply: str | None
    job_id: str | None


async def get_ticket(ticket_id: str, session: Session, client: CurrentClient) -> Ticket:
    """Return a ticket of the client by an id that may not be one."""
    try:
        ticket = await session.get(Ticket, UUID(ticket_id))
    except ValueError:
        ticket = None
    if ticket is None or ticket.owner != client.owner:
        raise HTTPException(404, "There is no such ticket.")
    return ticket


@router.post("/tickets", status_code=202)
async def open_ticket(  # noqa: PLR0913, PLR0917 - what FastAPI is to pass
    body: TicketRequest,
    client: CurrentClient,
    session: Session,
    resources: AppResources,
    queue: Queue,
    accept: Accept,
    idempotency_key: IdempotencyKey = None,
) -> TicketAccepted:
    """Classify a ticket and draft a reply; for a known Idempotency-Key, answer with that ticket."""
    _check_length(body.text, resources.settings)
    ticket = Ticket(owner=client.owner, idempotency_key=idempotency_key, **body.model_dump())
    session.add(ticket)
    try:
        # The worker may look for the row as soon as the job is in the queue.
        await session.commit()
    except IntegrityError:
        await session.rollback()
        known = select(Ticket).where(
            Ticket.owner == client.owner, Ticket.idempotency_key == idempotency_key
        )
        ticket = (await session.scalars(known)).one()
        if any(getattr(ticket, name) != value for name, value in body.model_dump().items()):
            raise HTTPException(422, "The Idempotency-Key was used with another request.") from None
    try:
        receipt = await queue.once(idempotency_key).enqueue(advance_ticket, ticket_id=ticket.id)
    except QueueUnavailableError as error:
        if not (error.maybe_enqueued or idempotency_key):
            await session.delete(ticket)
            await session.commit()
        raise
    first = update(Ticket).where(Ticket.id == ticket.id, Ticket.job_id.is_(None))
    await session.execute(first.values(job_id=receipt.job_id))
    await session.commit()
    return TicketAccepted(ticket_id=ticket.id, job_id=accept(receipt).job_id)


@router.get("/tickets")
async def list_tickets(  # noqa: PLR0913, PLR0917 - what FastAPI is to pass
    client: CurrentClient,
    session: Session,
    queue: Queue,
    status: TicketStatus | None = None,
    limit: Annotated[int, Query(ge=1, le=PAGE)] = PAGE,
    offset: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
) -> list[TicketInfo]:
    """Return tickets, the oldest first; of those at work, `status` tells the failed ones apart."""
    tickets = select(Ticket).where(Ticket.owner == client.owner)
    if status is not None:
        stored = TicketStatus.WORKING if status is TicketStatus.FAILED else status
        tickets = tickets.where(Ticket.status == stored)
    tickets = tickets.order_by(Ticket.created_at, Ticket.id)
    if status not in {TicketStatus.WORKING, TicketStatus.FAILED}:
        page = await session.scalars(tickets.limit(limit).offset(offset))
        return [await _describe(each, session, queue) for each in page]
    found: list[TicketInfo] = []
    for start in count(0, PAGE):  # only a ticket's job tells whether it has failed
        at_work = (await session.scalars(tickets.limit(PAGE).offset(start))).all()
        described = [await _describe(each, session, queue) for each in at_work]
        found += [each for each in described if each.status is status]
        if len(at_work) < PAGE or len(found) >= offset + limit:
            break
    return found[offset : offset + limit]


@router.get("/tickets/{ticket_id}")
async def describe_ticket(
    ticket: Annotated[Ticket, Depends(get_ticket)], session: Session, queue: Queue
) -> TicketInfo:
    """Return a ticket; one at work whose job has ended has failed, until its job is retried."""
    return await _describe(ticket, session, queue)


@router.post("/tickets/{ticket_id}/decision", status_code=202)
async def decide(  # noqa: PLR0913, PLR0917 - what FastAPI is to pass
    body: DecisionRequest,
    ticket: Annotated[Ticket, Depends(get_ticket)],
    session: Session,
    resources: AppResources,
    queue: Queue,
    accept: Accept,
) -> JobAccepted:
    """Send the draft, or an edited one, or nothing. A ticket is decided once: 409 afterwards.

    Where the decision's job was aborted, it may be made again: another one only if it had not begun.
    """
    _check_length(body.text or "", resources.settings)
    decision = Decision(**body.model_dump())
    status = (await _describe(ticket, session, queue)).status
    again = ticket.draft is not None and ticket.decision in (None, decision.model_dump())
    if status is not TicketStatus.WAITING and not (status is TicketStatus.FAILED and again):
        raise HTTPException(409, f"The ticket does not wait for a decision: it is {status}.")
    try:
        # The queue takes one of several at once: they have one key, which names the job before.
        receipt = await queue.once(f"decision/{ticket.id}/{ticket.job_id}").enqueue(
            advance_ticket, ticket_id=ticket.id, decision=decision
        )
    except IdempotencyConflictError:
        raise HTTPException(409, "The ticket is decided already.") from None
    if not receipt.created:
        raise HTTPException(409, "The ticket is decided already.")
    # Its job may have begun, and ended.
    not_begun = update(Ticket).where(Ticket.id == ticket.id, Ticket.decision.is_(None))
    await session.execute(not_begun.values(status=TicketStatus.WORKING, job_id=receipt.job_id))
    await session.commit()
    return accept(receipt)


@router.get("/tickets/{ticket_id}/events", response_class=StreamingResponse, responses=STREAM)
async def watch_ticket(
    request: Request,
    ticket: Annotated[Ticket, Depends(get_ticket)],
    session: Session,
    resources: AppResources,
    last_event_id: EventId = START,
) -> Response:
    """Send a ticket's steps and its draft's tokens as server-sent events, from an event on.

    A step that is repeated after a crash begins with its event again. 204, which tells a browser not
    to come again, where nothing will follow.
    """
    await session.close()  # others need its connection
    events = TicketEvents(resources, ticket.id)
    more = await events.after(last_event_id)
    if ticket.status in ENDED and not more:
        return Response(status_code=204)
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}

    async def has_ended() -> bool:
        async with resources.sessions() as another:
            now = await another.get(Ticket, ticket.id)
        return now is None or now.status in ENDED

    stream = follow(events, last_event_id, has_ended, request.app.state.is_ending)
    return StreamingResponse(stream, media_type="text/event-stream", headers=headers)


async def follow(
    events: TicketEvents,
    event_id: str,
    has_ended: Callable[[], Awaitable[bool]],
    is_ending: Callable[[], bool],
) -> AsyncGenerator[bytes]:
    """Yield the events after one as they come, until the last; a comment where there is silence.

    Args:
        events: The events of a ticket.
        event_id: The event.
        has_ended: Whether the ticket has come to its end, asked where there is silence: its last
            event may have been lost.
        is_ending: Whether the process is to end.
    """
    silence = float(SILENCE)
    while not is_ending():
        for event in await events.after(event_id):
            yield _format(event)
            if event.is_last:
                return
            event_id, silence = str(event.id), 0
        if silence >= SILENCE:
            if await has_ended():
                return
            yield format_sse_event(comment="")
            silence = 0
        await asyncio.sleep(POLL)
        silence += POLL


def _format(event: Event) -> bytes:
    data = to_json({"text": event.text}).decode()
    return format_sse_event(event=event.kind, data_str=data, id=str(event.id))


async def _describe(ticket: Ticket, session: Session, queue: TaskQueue) -> TicketInfo:
    status = ticket.status
    if status is TicketStatus.WORKING and ticket.job_id is not None:
        job = await queue.job(ticket.job_id)
        if job is None or job.finished_at is not None:
            await session.refresh(ticket)  # the job may have ended since the row was read
            status = ticket.status
            if status is TicketStatus.WORKING:
                status = TicketStatus.FAILED
    fields = ("id", "email", "subject", "text", "category", "draft", "reply", "job_id")
    return TicketInfo(status=status, **{name: getattr(ticket, name) for name in fields})


def _check_length(text: str, settings: Settings) -> None:
    if len(text) > settings.max_ticket:
        raise HTTPException(422, f"The text is longer than {settings.max_ticket} characters.")
