"""Workflows whose workers are killed, whose members fail, and whose broker starts again."""

from pathlib import Path
from typing import Any

import httpx2
from faults.harness import until

from .brokers import Broker
from .harness import Service
from .test_crashes import CRASHES


def start(api: httpx2.Client, path: str, **options: Any) -> str:  # noqa: ANN401 - httpx2's
    """Start a workflow; it must be accepted."""
    answer = api.post(f"/faults/{path}", **options)
    assert answer.status_code == 202, answer.text
    workflow_id: str = answer.json()
    return workflow_id


def state(api: httpx2.Client, workflow_id: str) -> dict[str, Any]:
    """Return the state of a workflow."""
    found: dict[str, Any] = api.get(f"/faults/workflows/{workflow_id}").json()
    return found


def test_the_body_of_a_chord_runs_once_after_kill_9_in_its_header(
    home: Path, tmp_path: Path, broker: Broker
) -> None:
    with Service(home, tmp_path, broker, **CRASHES) as service:
        api, journal = service.start_api(), service.journal
        [first] = service.start_workers(1)
        keys = [f"part-{number}" for number in range(5)]
        workflow = start(api, "chords/body", json=keys, params={"held": "held"})
        journal.wait("begin", "held")
        journal.wait_for("end", set(keys))
        first.kill()
        assert not journal.notes(key="body")
        assert state(api, workflow)["status"] == "in_progress"
        service.start_workers(2)
        journal.wait("begin", "held", count=2)
        service.cure()
        journal.wait("end", "body")
        until(lambda: state(api, workflow)["status"] == "complete", "it does not end")
        # Whatever else comes, as copies of messages, comes before these.
        after = start(api, "chords/after", json=["after-1"], params={"held": "after-2"})
        until(lambda: state(api, after)["status"] == "complete", "the next one does not end")
        assert len(journal.notes("begin", "body")) == 1
        assert len(journal.notes("begin", "held")) == 2
        [body] = [each for each in state(api, workflow)["jobs"] if each["function"] == "join"]
        assert sorted(body["result"].split("+")) == sorted([*keys, "held"])


def test_a_failing_member_ends_a_chord_and_is_named(
    home: Path, tmp_path: Path, broker: Broker
) -> None:
    with Service(home, tmp_path, broker) as service:
        api, journal = service.start_api(), service.journal
        service.start_workers(1)
        workflow = start(api, "chords/body", json=["part"], params={"failing": "bad"})
        until(lambda: state(api, workflow)["status"] == "failed", "it does not fail")
        failed = [each for each in state(api, workflow)["jobs"] if each["status"] == "failed"]
        assert [each["function"] for each in failed] == ["give_up"]
        assert failed[0]["error"] == "Discard: of no use"
        after = start(api, "chords/after", json=["after-1", "after-2"])
        until(lambda: state(api, after)["status"] == "complete", "the next one does not end")
        assert not journal.notes(key="body")


def test_workflows_go_on_when_their_broker_starts_again(
    home: Path, tmp_path: Path, broker: Broker
) -> None:
    with Service(home, tmp_path, broker) as service:
        api, journal = service.start_api(), service.journal
        service.start_workers(1)
        chord = start(api, "chords/body", json=["part"], params={"held": "chord"})
        chain = start(api, "chains/last", params={"first": "chain"})
        for key in ("chord", "chain"):
            journal.wait("begin", key)
        journal.wait("end", "part")
        broker.kill()
        # Their jobs end while nobody can be told.
        service.cure()
        for key in ("chord", "chain"):
            journal.wait("end", key)
        broker.start()
        for workflow in (chord, chain):
            until(lambda: state(api, workflow)["status"] == "complete", "it does not go on")  # noqa: B023
        assert len(journal.notes("begin", "body")) == 1
