"""Support tickets: each job takes one as far as it gets, to a person's decision or to its end."""

from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel
from sqlalchemy import delete, select, update

from ..flows.events import TicketEvents
from ..queue import Discard, task
from ..resources import Context
from ..tickets import ENDED, Ticket, TicketStatus
from .emails import send_email

BATCH = 1000  # tickets in one transaction


class Decision(BaseModel):
    """What a person has decided on a draft; `text` is the reply where it is edited."""

    action: Literal["approve", "edit", "reject"]
    text: str | None = None


@task(retries=5, timeout=500)
async def advance_ticket(ctx: Context, ticket_id: UUID, decision: Decision | None = None) -> str:
    """Run the workflow of a ticket from its last finished step on, and return the new status.

    A worker may be lost between any two lines: the next attempt goes on after the last checkpoint.
    """
    resources, events = ctx.resources, TicketEvents(ctx.resources, ticket_id)
    begun: dict[str, Any] = {"job_id": ctx.job_id, "status": TicketStatus.WORKING}
    if decision is not None:
        begun["decision"] = decision.model_dump()
    async with resources.sessions.begin() as session:
        ticket = await session.get(Ticket, ticket_id)
        if ticket is None:
            raise Discard("the ticket was deleted")
        ended = ticket.status in ENDED
        if not ended:
            if decision is None and ticket.decision is not None:
                return ticket.status  # this job runs once more, after the next one has begun
            await session.execute(update(Ticket).where(Ticket.id == ticket_id).values(begun))
    if ended:
        await events.publish("status", ticket.status)  # its worker may have been lost before
        return ticket.status

    async def send(reply: str) -> None:
        queue = resources.queue.once(f"ticket/{ticket_id}")
        await queue.enqueue(
            send_email, to=ticket.email, subject=f"Re: {ticket.subject}", body=reply
        )

    flow = await resources.flows.tickets()
    from ..flows.tickets import TicketActions  # noqa: PLC0415 - `flows` has imported LangGraph

    try:
        state = await flow.advance(
            ticket_id, ticket.text, begun.get("decision"), TicketActions(send, events.publish)
        )
    except Exception:
        await events.publish("error", f"attempt {ctx.attempt} failed")
        raise
    reply = state.get("reply")
    if reply is None:
        status = TicketStatus.WAITING
    else:
        status = TicketStatus.SENT if reply else TicketStatus.REJECTED
    values = {
        "status": status,
        "category": state.get("category"),
        "draft": state.get("draft"),
        "reply": reply or None,
    }
    here = update(Ticket).where(Ticket.id == ticket_id)
    if reply is None:
        here = here.where(Ticket.decision.is_(None))  # the next job may have begun
    async with resources.sessions.begin() as session:
        await session.execute(here.values(values))
    await events.publish("status", status)
    return status


@task(cron="30 3 * * *", retries=3)
async def remove_old_tickets(ctx: Context) -> int:
    """Remove tickets older than `ticket_retention_days`, and return their number.

    Their checkpoints and events go with them.
    """
    checkpoints = (await ctx.resources.flows.tickets()).checkpoints
    days = ctx.resources.settings.ticket_retention_days
    oldest = datetime.now(UTC) - timedelta(days=days)
    removed = 0
    while True:
        async with ctx.resources.sessions() as session:
            old = select(Ticket.id).where(Ticket.created_at < oldest).limit(BATCH)
            ids = (await session.scalars(old)).all()
        # The rows last: what a crash leaves over has a row, and is removed next time.
        for ticket_id in ids:
            await checkpoints.adelete_thread(str(ticket_id))
            await TicketEvents(ctx.resources, ticket_id).delete()
        async with ctx.resources.sessions.begin() as session:
            await session.execute(delete(Ticket).where(Ticket.id.in_(ids)))
        removed += len(ids)
        if len(ids) < BATCH:
            return removed
