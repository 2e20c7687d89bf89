"""Who calls: a client with an API key, or the operator with the admin token. Nobody else may."""

import hmac
from base64 import b64decode
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from typing import Annotated

from fastapi import Depends, HTTPException, Request
from fastapi.openapi.models import HTTPBase
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi.security.base import SecurityBase
from fastapi.security.utils import get_authorization_scheme_param
from pydantic import SecretStr

from .settings import Settings

SAFE_METHODS = {"GET", "HEAD"}
OWN_PAGES = {"same-origin", "none"}


class _Password(SecurityBase):
    """Reads a password. FastAPI's `HTTPBasic` refuses UTF-8, and raises for a malformed header."""

    model = HTTPBase(scheme="basic", description="The admin token as a password.")
    scheme_name = "Admin password"

    async def __call__(self, request: Request) -> str:
        scheme, encoded = get_authorization_scheme_param(request.headers.get("Authorization"))
        text = ""
        if scheme.lower() == "basic":
            with suppress(ValueError):
                text = b64decode(encoded).decode()
        return text.partition(":")[2]


_key = HTTPBearer(auto_error=False, scheme_name="API key", description="One of `API_KEYS`.")
_token = HTTPBearer(auto_error=False, scheme_name="Admin token", description="`ADMIN_TOKEN`.")
Bearer = HTTPAuthorizationCredentials | None


@dataclass(frozen=True, slots=True)
class Client:
    """A client of the API, by its name in `API_KEYS`: it keeps its jobs when its key changes."""

    name: str

    @property
    def owner(self) -> str:
        """What the ids of its jobs begin with, which tells no stranger its name."""
        return _owner(self.name)


async def require_client(request: Request, credentials: Annotated[Bearer, Depends(_key)]) -> Client:
    """Return the client whose API key a request carries.

    Raises:
        HTTPException: 401, it carries none. Without `API_KEYS`, all requests are refused.
    """
    given = credentials.credentials if credentials else ""
    keys = _settings(request).api_keys
    # All are compared, each in constant time: how long it takes tells nothing of any.
    found = [name for name, key in keys.items() if _equal(given, key)]
    if not found:
        headers = {"WWW-Authenticate": "Bearer"}
        raise HTTPException(401, "Send one of API_KEYS as a Bearer token.", headers)
    return Client(found[0])


async def is_admin(
    request: Request,
    credentials: Annotated[Bearer, Depends(_token)],
    password: Annotated[str, Depends(_Password())],
) -> bool:
    """Return whether a request carries the admin token, as Bearer or as a browser's password."""
    token = _settings(request).admin_token
    given = credentials.credentials if credentials else password
    return token is not None and _equal(given, token)


async def require_admin(request: Request, admin: Annotated[bool, Depends(is_admin)]) -> None:
    """Let only the operator in.

    Raises:
        HTTPException: 401, without the admin token; 403, a change that another site's page asks for,
            with which the browser sends the operator's password along.
    """
    if not admin:
        headers = {"WWW-Authenticate": 'Basic realm="admin", charset="UTF-8"'}
        raise HTTPException(401, "Send ADMIN_TOKEN as a Bearer token, or as a password.", headers)
    if request.method not in SAFE_METHODS:
        site = request.headers.get("sec-fetch-site", "none")
        if site not in OWN_PAGES:
            raise HTTPException(403, "Another site's page must not change anything here.")


@cache
def _owner(name: str) -> str:
    return hmac.new(b"owner of jobs", name.encode(), sha256).hexdigest()[:16]


def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


def _equal(given: str, secret: SecretStr) -> bool:
    return hmac.compare_digest(given.encode(), secret.get_secret_value().encode())
