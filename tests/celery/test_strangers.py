"""Messages that the service did not send: they run no code, and stop nobody."""

import base64
import json
import os
from pathlib import Path
from typing import Any

from faults.harness import dead, enqueue, job, until

from .brokers import Broker
from .harness import Service, status

# It runs in the service's environment, which has kombu.
SEND = """
import base64, json, sys
from kombu import Connection

url, queue = sys.argv[1:]
with Connection(url) as connection:
    producer = connection.Producer()
    for message in json.load(sys.stdin):
        body = base64.b64decode(message.pop("body"))
        producer.publish(body, routing_key=queue, **message)
"""
JSON = {"content_type": "application/json", "content_encoding": "utf-8"}
PLAIN = {"content_type": "application/x-plain-json", "content_encoding": "utf-8"}


def message(body: str | bytes, kind: dict[str, str], **headers: object) -> dict[str, object]:
    """Return a message for `SEND`."""
    data = body if isinstance(body, bytes) else body.encode()
    return {"body": base64.b64encode(data).decode(), "headers": headers, **kind}


def call(*args: object, **kwargs: object) -> str:
    """Return the body of a message that calls a task."""
    return json.dumps([args, kwargs, {}])


def code(harm: Path) -> bytes:
    """Return a pickle that creates a file when it is read."""
    return f"cposix\nsystem\n(Vtouch {harm}\ntR.".encode()


def messages(harm: Path) -> dict[str, dict[str, object]]:
    """Return messages by what is wrong with them."""
    pickle = {"content_type": "application/x-python-serialize", "content_encoding": "binary"}
    yaml = f"!!python/object/apply:os.system ['touch {harm}']"
    good = call(key="stranger")
    foreign: dict[str, Any] = {"task": "os.system", "args": [f"touch {harm}"], "kwargs": {}}
    foreign |= {"options": {"task_id": "foreign"}, "subtask_type": None, "immutable": True}
    return {
        "pickle": message(code(harm), pickle, id="1", task="work"),
        "pickle called JSON": message(code(harm), JSON, id="2", task="work"),
        "YAML": message(
            yaml, {"content_type": "application/x-yaml", "content_encoding": "utf-8"}, id="3"
        ),
        "unknown type": message(good, {"content_type": "a/b", "content_encoding": "utf-8"}),
        "unknown encoding": message(
            good, JSON | {"content_encoding": "rot13"}, id="4", task="work"
        ),
        "no headers": message(good, PLAIN),
        "no body": message("", PLAIN, id="5", task="work"),
        "no JSON": message("{", PLAIN, id="6", task="work"),
        "deep": message("[" * 100_000, PLAIN, id="7", task="work"),
        "no call": message('{"a": 1}', PLAIN, id="8", task="work"),
        "no arguments": message("[1, 2, 3]", PLAIN, id="9", task="work"),
        "unknown task": message(call(f"touch {harm}"), PLAIN, id="10", task="os.system"),
        "task of no name": message(good, PLAIN, id="11", task={"a": 1}),
        "id of no name": message(good, PLAIN, id={"a": 1}, task="work"),
        "id too long": message(good, PLAIN, id="x" * 100_000, task="work"),
        "no id": message(good, PLAIN, id=None, task="work"),
        "eta": message(good, PLAIN, id="12", task="work", eta="tomorrow"),
        "expires": message(good, PLAIN, id="13", task="work", expires={"a": 1}),
        "retries": message(good, PLAIN, id="14", task="work", retries="many"),
        "time limit": message(good, PLAIN, id="15", task="work", timelimit="never"),
        "chain": message(good, PLAIN, id="16", task="work", chain=[foreign]),
        "chain of nothing": message(good, PLAIN, id="17", task="work", chain=[5], callbacks=7),
        "callbacks": message(good, PLAIN, id="18", task="work", callbacks=[foreign]),
        "errbacks": message(call(no="key"), PLAIN, id="19", task="work", errbacks=[foreign]),
        "chord": message(good, PLAIN, id="20", task="work", chord=foreign, group="g"),
        "stamps": message(good, PLAIN, id="21", task="work", stamped_headers=["a"], stamps=3),
        "result argument": message(
            call("x"), PLAIN, id="22", task="work", result_argument={"a": ["b"]}
        ),
        "kombu's types": message(
            call(value={"__type__": "datetime", "__value__": "x"}), JSON, id="23", task="echo"
        ),
        "built-in task": message(call(), PLAIN, id="24", task="celery.backend_cleanup"),
        "chunks": message(
            call({"task": "os.system"}, [[f"touch {harm}"]]), PLAIN, id="25", task="celery.map"
        ),
        "no number": message(call(value=float("nan")), PLAIN, id="27", task="echo"),
        "deep arguments": message(
            call(value=json.loads("[" * 400 + "]" * 400)), PLAIN, id="28", task="echo"
        ),
        "surrogates": message(call(value="\ud800\0"), PLAIN, id="26", task="echo"),
        "wrong arguments": message(call(key=["no", "text"]), PLAIN, id="wrong", task="work"),
        "missing arguments": message(call(nonsense=1), PLAIN, id="missing", task="work"),
        "20 MB": message(call(value="x" * 20_000_000), PLAIN, id="large", task="echo"),
    }


def test_messages_of_strangers_do_no_harm(home: Path, tmp_path: Path, broker: Broker) -> None:
    harm = tmp_path / "harm"
    with Service(home, tmp_path, broker) as service:
        api, journal = service.start_api(), service.journal
        [worker] = service.start_workers(1)
        for name, stranger in messages(harm).items():
            send(service, broker, stranger)
            [job_id] = enqueue(api, "work", {"key": name.replace(" ", "-")})
            until(
                lambda: status(api, job_id) == "complete" or worker.poll() is not None,  # noqa: B023
                f"{name}: others do not run",
            )
            assert worker.poll() is None, f"{name} has ended the worker"
        assert not harm.exists()
        for job_id, error in {
            "wrong": "InvalidArgumentError: work: argument 'key'",
            "missing": "InvalidArgumentError: work:",
            "large": "InvalidArgumentError: echo: the arguments are no JSON, or have more",
        }.items():
            until(lambda: status(api, job_id) == "failed", f"{job_id} is not dead")  # noqa: B023
            assert job(api, job_id)["error"].startswith(error)
        # Whoever looks after dead jobs sees them all.
        assert dead(api).keys() >= {"26", "27", "28", "wrong", "missing", "large"}
        assert not journal.notes("cancel")
        assert "retrying" not in service.logs()


def test_arguments_that_look_like_objects_of_kombu_arrive_unchanged(
    home: Path, tmp_path: Path, broker: Broker
) -> None:
    values: list[object] = [
        {"__type__": "datetime", "__value__": "x"},
        {"__type__": "uuid", "__value__": {"hex": "0" * 32}},
        {"__type__": "no such type", "__value__": None},
        {"__type__": "datetime", "__value__": "2026-11-25T00:00:00"},
    ]
    with Service(home, tmp_path, broker) as service:
        api = service.start_api()
        service.start_workers(1)
        for value in values:
            [job_id] = enqueue(api, "echo", {"value": value})
            until(lambda: status(api, job_id) == "complete", f"{value} does not end")  # noqa: B023
            assert job(api, job_id)["result"] == value


def send(service: Service, broker: Broker, stranger: dict[str, object]) -> None:
    """Send a message past the service."""
    file = service.folder / "message.json"
    file.write_text(json.dumps([stranger]))
    script = f"import os, sys; sys.stdin = open({os.fspath(file)!r})\n{SEND}"
    service.run("python", "-c", script, broker.url, "my-service")
