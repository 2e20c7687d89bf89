"""An example to replace: the smallest task."""

from ..queue import task
from ..resources import Context


@task
async def ping(ctx: Context, message: str) -> str:
    """Answer a message, and tell since when tasks run here."""
    return f"{message}: pong, up since {ctx.resources.started_at:%Y-%m-%d %H:%M:%S %Z}"
