"""Signatures of webhooks, as Standard Webhooks, GitHub and Stripe make them."""

import hmac
import time
from collections.abc import Mapping
from contextlib import suppress
from hashlib import sha256

from pydantic import JsonValue
from standardwebhooks import Webhook, WebhookVerificationError

from ..settings import WebhookSource

TOLERANCE = 300  # seconds between the clocks of sender and receiver
Headers = Mapping[str, str]


def is_signed(source: WebhookSource, headers: Headers, body: bytes) -> bool:
    """Return whether one of the source's secrets has signed this body, and not long ago."""
    is_signed_with = {"standard": _standard, "github": _github, "stripe": _stripe}[source.scheme]
    return any(is_signed_with(each.get_secret_value(), headers, body) for each in source.secrets)


def delivery_id(
    source: WebhookSource, headers: Headers, payload: Mapping[str, JsonValue]
) -> str | None:
    """Return the id that all deliveries of one webhook have in common."""
    if source.scheme == "stripe":
        return str(payload.get("id", ""))
    if source.scheme == "github":  # it signs neither an id nor a time
        return headers.get("x-github-delivery")
    return _standard_headers(headers).get("webhook-id")


def _standard_headers(headers: Headers) -> dict[str, str]:
    prefix = "webhook" if "webhook-id" in headers else "svix"
    names = ("id", "timestamp", "signature")
    return {f"webhook-{name}": headers.get(f"{prefix}-{name}", "") for name in names}


def _standard(secret: str, headers: Headers, body: bytes) -> bool:
    with suppress(WebhookVerificationError, ValueError):
        Webhook(secret).verify(body, _standard_headers(headers), json_parse=False)
        return True
    return False


def _github(secret: str, headers: Headers, body: bytes) -> bool:
    return _matches(secret, body, headers.get("x-hub-signature-256", "").removeprefix("sha256="))


def _stripe(secret: str, headers: Headers, body: bytes) -> bool:
    pairs = [pair.strip().split("=", 1) for pair in headers.get("stripe-signature", "").split(",")]
    with suppress(ValueError):
        values = [(name, value) for name, value in pairs]
        sent_at = dict(values).get("t", "")
        signed = f"{sent_at}.".encode() + body
        recent = abs(time.time() - float(sent_at)) <= TOLERANCE
        return recent and any(_matches(secret, signed, v) for name, v in values if name == "v1")
    return False


def _matches(secret: str, signed: bytes, signature: str) -> bool:
    expected = hmac.new(secret.encode(), signed, sha256).hexdigest()
    return hmac.compare_digest(expected.encode(), signature.encode())
