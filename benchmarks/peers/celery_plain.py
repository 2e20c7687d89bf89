"""Plain Celery: the service's broker, pool and acknowledgements, and nothing of the service's.

celery -A celery_plain worker               runs jobs
python celery_plain.py TASK COUNT           enqueues jobs
"""

import os
import sys
import time

from celery import Celery
from kombu.entity import Queue
from protocol import NAP, PIPE

BROKER = os.environ["BROKER_URL"]
QUORUM = {"x-queue-type": "quorum"} if BROKER.startswith("amqp") else None
RESULTS = (
    BROKER if BROKER.startswith("redis") else f"db+sqlite:///{os.environ['DATA_DIR']}/plain.db"
)

app = Celery("plain", broker=BROKER, backend=RESULTS)
app.conf.update(
    worker_pool="threads",
    worker_concurrency=100,
    worker_prefetch_multiplier=1,
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_default_queue="plain",
    task_queues=[Queue("plain", queue_arguments=QUORUM)],
    result_expires=86_400,
)
_pipe: list[int] = []


def report() -> None:
    """Report that a job ends."""
    if not _pipe:
        _pipe.append(os.open(os.environ[PIPE], os.O_WRONLY))
    os.write(_pipe[0], b".")


@app.task(name="noop")
def noop() -> None:
    """Do nothing."""
    report()


@app.task(name="nap")
def nap() -> None:
    """Sleep for 50 ms."""
    time.sleep(NAP)
    report()


if __name__ == "__main__":
    task = {"noop": noop, "nap": nap}[sys.argv[1]]
    for _ in range(int(sys.argv[2])):
        task.delay()
