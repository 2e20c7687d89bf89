"""An example to replace: the smallest task."""

from ..resources import Context
from ..task import task


@task
async def ping(ctx: Context, message: str) -> str:
    """Answer a message, and say since when tasks can run here."""
    return f"{message}: pong, up since {ctx['started_at']:%Y-%m-%d %H:%M:%S %Z}"
