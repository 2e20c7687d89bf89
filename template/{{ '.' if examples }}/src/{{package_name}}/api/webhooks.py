"""Webhooks from other services, signed as Standard Webhooks (standardwebhooks.com) says."""

from typing import Annotated

from fastapi import APIRouter, HTTPException, Path, Request, Response
from pydantic import JsonValue, TypeAdapter, ValidationError
from standardwebhooks import Webhook, WebhookVerificationError

from ..tasks.webhooks import process_webhook
from .deps import AppResources, Queue
from .jobs import JobAccepted, accept

router = APIRouter(tags=["webhooks"])
_payload = TypeAdapter(dict[str, JsonValue])


@router.post("/webhooks/{source}", status_code=202, responses={200: {"description": "Known"}})
async def receive_webhook(
    source: Annotated[str, Path(max_length=50, pattern=r"^[A-Za-z0-9_.-]+$")],
    request: Request,
    resources: AppResources,
    queue: Queue,
    response: Response,
) -> JobAccepted:
    """Take a webhook once; sent again under the same id, it is answered with the same job."""
    secret = resources.settings.webhook_secret
    if secret is None:
        raise HTTPException(401, "WEBHOOK_SECRET is not set, so no signature can be right.")
    body = await request.body()
    try:
        Webhook(secret.get_secret_value()).verify(body, dict(request.headers), json_parse=False)
    except (WebhookVerificationError, ValueError) as error:
        raise HTTPException(401, "The webhook's signature is missing, wrong or too old.") from error
    webhook_id = request.headers["webhook-id"]
    try:
        payload = _payload.validate_json(body)
        receipt = await queue.enqueue(
            process_webhook, source=source, webhook_id=webhook_id, payload=payload
        )
    except (ValidationError, TypeError) as error:
        raise HTTPException(422, "The webhook's body is no JSON object.") from error
    if not receipt.created:
        response.status_code = 200
    return accept(receipt, response)
