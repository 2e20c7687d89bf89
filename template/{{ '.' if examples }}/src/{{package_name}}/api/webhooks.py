"""Webhooks from other services, each with secrets and a signature scheme of its own."""

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Path, Request, Response
from pydantic import JsonValue, TypeAdapter, ValidationError

from ..tasks.webhooks import process_webhook
from .deps import AppResources, ServiceQueue
from .jobs import Accept, JobAccepted
from .signatures import delivery_id, is_signed

LONGEST_ID = 200
KNOWN: dict[int | str, Any] = {200: {"model": JobAccepted, "description": "It is known already."}}
router = APIRouter(tags=["webhooks"])
_payload = TypeAdapter(dict[str, JsonValue])


@dataclass(frozen=True, slots=True)
class Webhook:
    """A webhook whose signature is right."""

    source: str
    id: str
    payload: dict[str, JsonValue]


async def verify_webhook(
    source: Annotated[str, Path(max_length=50, pattern=r"^[A-Za-z0-9_.-]+$")],
    request: Request,
    resources: AppResources,
) -> Webhook:
    """Verify the signature of a request, and return its webhook."""
    sender = resources.settings.webhook_sources.get(source)
    body = await request.body()
    if sender is None or not is_signed(sender, request.headers, body):
        detail = "The webhook's signature is missing, wrong or too old."
        raise HTTPException(401, detail, {"WWW-Authenticate": "Signature"})
    try:
        payload = _payload.validate_json(body)
    except ValidationError as error:
        message = error.errors(include_input=False)[0]["msg"]
        status = 400 if "recursion" in message else 422
        raise HTTPException(status, f"The webhook's body: {message}.") from None
    webhook_id = delivery_id(sender, request.headers, payload)
    if not webhook_id or len(webhook_id) > LONGEST_ID or not webhook_id.isprintable():
        detail = f"The webhook needs an id of at most {LONGEST_ID} characters, all printable."
        raise HTTPException(422, detail)
    return Webhook(source, webhook_id, payload)


@router.post("/webhooks/{source}", status_code=202, responses=KNOWN)
async def receive_webhook(
    webhook: Annotated[Webhook, Depends(verify_webhook)],
    queue: ServiceQueue,
    response: Response,
    accept: Accept,
) -> JobAccepted:
    """Process a webhook once: sent again under its id, it is answered with the same job.

    A webhook whose job has failed is processed again.
    """
    receipt = await queue.enqueue(
        process_webhook, source=webhook.source, webhook_id=webhook.id, payload=webhook.payload
    )
    if not receipt.created:
        response.status_code = 200
    return accept(receipt)
