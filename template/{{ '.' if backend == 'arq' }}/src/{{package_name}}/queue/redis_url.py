"""`REDIS_URL`: one parser for all clients, redis-py's, and nothing that it would misread."""

import re
from dataclasses import fields
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from arq.connections import RedisSettings
from pydantic import SecretStr
from redis.asyncio.connection import ConnectionPool, SSLConnection, parse_url
from redis.exceptions import RedisError

SCHEMES = "expected redis://, rediss:// or unix://; Sentinel and Cluster are not supported"
MALFORMED = (
    "expected redis://user:password@host:port/database or unix:///path, with special characters of "
    "the password percent-encoded (/ as %2F, # as %23, ? as %3F, % as %25)"
)
OPTIONS = "options may be db, username, password, client_name, and for rediss:// redis-py's ssl_*"


def check_redis_url(secret: SecretStr) -> SecretStr:
    """Return a URL that all clients read as it was meant.

    Raises:
        ValueError: It is not one; the message holds nothing of it.
    """
    url = secret.get_secret_value()
    if not url.startswith(("redis://", "rediss://", "unix://")):
        raise ValueError(SCHEMES)
    try:
        parts = urlsplit(url)
        options = {name for name, _ in parse_qsl(parts.query, strict_parsing=bool(parts.query))}
        parse_url(url)
    except ValueError:
        raise ValueError(MALFORMED) from None
    if parts.scheme == "unix":
        understood = bool(parts.path) and not parts.hostname
    else:
        understood = re.fullmatch(r"[\d/]*", parts.path) is not None
    if parts.fragment or not understood:
        raise ValueError(MALFORMED)
    if not all(re.fullmatch("db|username|password|client_name|ssl_.+", each) for each in options):
        raise ValueError(OPTIONS)
    if len(options & {"ssl_certfile", "ssl_keyfile"}) == 1:
        raise ValueError("ssl_certfile needs ssl_keyfile, which may name the same file")
    _check_certificates(url)
    return secret


def _check_certificates(url: str) -> None:
    try:
        pool: Any = ConnectionPool.from_url(url)
        connection = pool.make_connection()
        if isinstance(connection, SSLConnection):
            connection.ssl_context.get()
    except TypeError:
        raise ValueError(OPTIONS) from None
    except OSError as error:  # those of ssl too
        reason = error.strerror or type(error).__name__
        raise ValueError(f"its certificates cannot be loaded: {reason}") from None
    except (RedisError, ValueError):
        raise ValueError("ssl_cert_reqs may be none, optional or required") from None


def arq_redis_settings(url: str) -> RedisSettings:
    """Return ARQ's description of the server."""
    options: dict[str, Any] = {**parse_url(url)}
    known = {field.name for field in fields(RedisSettings)}
    return RedisSettings(
        database=options.get("db", 0),
        unix_socket_path=options.get("path"),
        ssl=url.startswith("rediss://"),
        **{name: value for name, value in options.items() if name in known},
    )
