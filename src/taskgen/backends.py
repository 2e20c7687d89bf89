"""Backends for background tasks: the comparison that `taskgen backends` prints."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backend:
    """A way to run background tasks, with its strengths and limits.

    Attributes:
        key: The value of the question `backend`.
        name: The name that its documentation uses.
        generated: Whether this version of taskgen generates it.
        async_native: Whether tasks run on an event loop.
        broker: What runs beside the service.
        workflows: How tasks are combined.
        monitoring: How to watch jobs and workers.
        persistence: What happens to jobs when a process ends.
        complexity: What there is to learn and to operate.
        when_to_use: What it is good at.
        when_not: What it is not made for.
    """

    key: str
    name: str
    generated: bool
    async_native: str
    broker: str
    workflows: str
    monitoring: str
    persistence: str
    complexity: str
    when_to_use: str
    when_not: str

    def aspects(self) -> list[tuple[str, str]]:
        """Return the points of comparison, each with its heading."""
        return [
            ("Async native", self.async_native),
            ("Broker", self.broker),
            ("Workflows", self.workflows),
            ("Monitoring", self.monitoring),
            ("Persistence", self.persistence),
            ("Complexity", self.complexity),
            ("When to use", self.when_to_use),
            ("When not", self.when_not),
        ]


BACKENDS = (
    Backend(
        key="arq",
        name="ARQ",
        generated=True,
        async_native="Yes: tasks are coroutines, many at once in one worker.",
        broker="Redis or Valkey.",
        workflows="Deferred jobs, retries, cron. The generated service adds chains; no groups. "
        "With --set llm=langgraph: LLM workflows that survive a crash.",
        monitoring="Job status and results by an API, a health check; no dashboard of its own. "
        "The generated service adds one, and metrics.",
        persistence="Jobs are in Redis, as durable as it is set up to be: they survive restarts of "
        "the API and of the workers, and run at least once.",
        complexity="Low: one broker, one worker command. In maintenance mode: fixes, few new "
        "features.",
        when_to_use="Async services whose jobs wait on I/O and must survive a restart.",
        when_not="Groups and chords of tasks, brokers other than Redis, work that keeps a "
        "processor busy.",
    ),
    Backend(
        key="celery",
        name="Celery",
        generated=True,
        async_native="The generated service's tasks are coroutines, on one event loop per worker; "
        "Celery itself has pools of processes, threads or greenlets.",
        broker="Redis, Valkey, RabbitMQ or SQS here; Celery knows more.",
        workflows="Chain, group and chord, whose steps mypy checks; a route for their state. "
        "With --set llm=langgraph: LLM workflows that survive a crash.",
        monitoring="Flower, events, and exporters for Prometheus (none of them on SQS); job status "
        "by an API. The generated service has no jobs page and no metrics.",
        persistence="Messages are in the broker, records in the database: they survive restarts of "
        "the API and of the workers, and run at least once.",
        complexity="High: a broker, a database, workers and beat, and many settings.",
        when_to_use="Workflows of many steps, RabbitMQ or SQS, or a team that runs Celery already.",
        when_not="A small async service that needs no more than Redis: each job costs more, and on "
        "Redis and SQS those of a killed worker wait for the visibility timeout.",
    ),
    Backend(
        key="background",
        name="BackgroundTasks",
        generated=True,
        async_native="Yes: coroutines run on the API's own event loop, plain functions in its "
        "threads.",
        broker="None.",
        workflows="None: the tasks of one response run one after the other.",
        monitoring="None built in; the generated service keeps a table of statuses in memory.",
        persistence="None: what waits or runs is lost when the process ends.",
        complexity="Lowest: part of FastAPI, nothing else to run.",
        when_to_use="Short work that may be lost, such as a welcome email or a cache to warm.",
        when_not="Work that must happen, takes long, or needs more than the API's processes.",
    ),
)
