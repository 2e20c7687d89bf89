"""The log: one line per event, to standard error."""

import logging

from .settings import Settings


def configure_logging(settings: Settings) -> None:
    """Write this package's log to standard error, unless somebody has set up logging already."""
    package = logging.getLogger(__package__)
    level = settings.log_level.upper()
    package.setLevel(int(level) if level.isdecimal() else level)
    if not package.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        package.addHandler(handler)
