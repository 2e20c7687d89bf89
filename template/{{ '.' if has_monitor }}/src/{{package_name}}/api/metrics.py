"""`/metrics` for Prometheus: the jobs of the whole service, and the requests to this process."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from time import perf_counter

import prometheus_client as prometheus
from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.responses import PlainTextResponse
from fastapi.routing import iter_route_contexts
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..auth import require_admin
from ..queue import BOUNDS, JobStatus, Overview, QueueUnavailableError, TaskFigures
from .deps import ServiceQueue
from .errors import PROBLEM_RESPONSES

METHODS = {"DELETE", "GET", "OPTIONS", "PATCH", "POST", "PUT"}
OTHER = "other"  # what strangers make up gets no series of its own
UNFINISHED = JobStatus.DEFERRED, JobStatus.QUEUED, JobStatus.IN_PROGRESS
BUCKETS = [*(str(float(bound)) for bound in BOUNDS), "+Inf"]

prometheus.disable_created_metrics()  # type: ignore[no-untyped-call]  # "_created"
logger = logging.getLogger(__name__)
router = APIRouter(dependencies=[Depends(require_admin)], responses=PROBLEM_RESPONSES)


def add_metrics(app: FastAPI) -> None:
    """Add `/metrics` to the API, and count its requests."""
    app.state.metrics = prometheus.CollectorRegistry()
    app.add_middleware(_CountRequests, app)
    app.include_router(router)


@router.get("/metrics", response_class=PlainTextResponse, tags=["metrics"])
async def get_metrics(request: Request, queue: ServiceQueue) -> Response:
    """Return all metrics; while the queue cannot be reached, those of requests alone."""
    metrics = prometheus.generate_latest(request.app.state.metrics)
    try:
        jobs = _Jobs(await queue.monitor.figures(), await queue.monitor.overview())
        metrics += prometheus.generate_latest(jobs)
    except QueueUnavailableError as error:
        logger.warning("metrics without jobs: %s", error)
    return Response(metrics, media_type=prometheus.CONTENT_TYPE_PLAIN_0_0_4)


@dataclass(frozen=True)
class _Jobs:
    """The metrics of jobs."""

    figures: dict[str, TaskFigures]
    overview: Overview

    def collect(self) -> Iterator[prometheus.Metric]:
        finished = CounterMetricFamily("jobs", "Finished jobs.", labels=["task", "status"])
        name, about = "job_duration_seconds", "Time that the last attempts of finished jobs took."
        durations = HistogramMetricFamily(name, about, labels=["task"])
        name, about = "job_wait_seconds", "Time from when these jobs were due to those attempts."
        waits = HistogramMetricFamily(name, about, labels=["task"])
        for task, figures in self.figures.items():
            for status, number in figures.finished.items():
                finished.add_metric([task, status], number)
            for family, found in ((durations, figures.duration), (waits, figures.wait)):
                buckets = zip(BUCKETS, accumulate(found.counts), strict=True)
                family.add_metric([task], list(buckets), found.sum)
        unfinished = GaugeMetricFamily("queue_jobs", "Unfinished jobs.", labels=["status"])
        for status in UNFINISHED:
            unfinished.add_metric([status], self.overview.counts[status])
        oldest = max((each.oldest_seconds or 0 for each in self.overview.queues), default=0)
        yield from (finished, durations, waits, unfinished)
        yield GaugeMetricFamily("queue_oldest_job_seconds", "Wait of the oldest due job.", oldest)
        yield GaugeMetricFamily("queue_workers", "Living workers.", len(self.overview.workers))
        yield GaugeMetricFamily("dead_jobs", "Failed jobs that are kept.", self.overview.dead)


class _CountRequests:
    """Counts requests, each when its response ends: background tasks may run longer.

    How long a stream of events was open says nothing of how long a client had to wait.
    """

    def __init__(self, app: ASGIApp, api: FastAPI) -> None:
        self._app, self._api = app, api
        labels = ["method", "route"]
        self._requests = prometheus.Counter(
            "http_requests", "Requests.", [*labels, "status"], registry=api.state.metrics
        )
        name, about = "http_request_duration_seconds", "Time until the response was sent."
        self._durations = prometheus.Histogram(
            name, about, labels, registry=api.state.metrics, buckets=BOUNDS
        )

    @cached_property
    def _paths(self) -> dict[object, str | None]:
        """The paths of all routes, with the names of their parameters in place of values."""
        return {each.endpoint: each.path_format for each in iter_route_contexts(self._api.routes)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began, status, ended, streams = perf_counter(), 500, False, False

        def count() -> None:
            method = scope["method"] if scope["method"] in METHODS else OTHER
            route = self._paths.get(scope.get("endpoint")) or OTHER
            self._requests.labels(method, route, str(status)).inc()
            if not streams:
                self._durations.labels(method, route).observe(perf_counter() - began)

        async def watch(message: Message) -> None:
            nonlocal status, ended, streams
            if message["type"] == "http.response.start":
                status = message["status"]
                media_type = Headers(raw=message["headers"]).get("content-type", "")
                streams = media_type.startswith("text/event-stream")
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                ended = True
                count()

        try:
            await self._app(scope, receive, watch)
        finally:
            if scope["type"] == "http" and not ended:
                count()
