"""Generate small FastAPI services whose background tasks really run."""

__version__ = "0.1.0"
