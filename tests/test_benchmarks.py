"""The benchmark: a quick run has every figure of every system. How high they are is not tested."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from conftest import CHECKOUT, run

JOBS = CHECKOUT / "benchmarks" / "jobs.py"
SYSTEMS = {"service", "saq", "taskiq", "docket", "arq", "arq-tuned"}
FIGURES = {
    "noop",
    "noop_cpu",
    "noop_two",
    "noop_cpu_two",
    "nap",
    "nap_cpu",
    "latency_p50",
    "latency_p99",
    "enqueue_one",
    "enqueue_gather",
    "enqueue_many",
    "idle_commands",
    "idle_cpu",
    "deep_noop",
    "deep_first",
    "deep_status_p99",
    "deep_health_p99",
    "deep_bytes",
}
# What a system does not offer has no figure.
MISSING = {
    "saq": {"enqueue_many"},
    "taskiq": {"enqueue_many", "deep_health_p99"},
    "arq": {"enqueue_many"},
    "arq-tuned": {"enqueue_many"},
}
POSTS = {"service_empty", "service_enqueue", "lifespan", "per_request"}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Run the benchmark once, as a developer does in a hurry."""
    folder = tmp_path_factory.mktemp("benchmark")
    shutil.copy(JOBS.with_name("README.md"), folder)
    done = run(sys.executable, JOBS, "--quick", "--json", "--record", folder, cwd=folder)
    found: dict[str, Any] = json.loads(done.stdout)
    return found | {"folder": folder}


def test_every_figure_of_every_system(results: dict[str, Any]) -> None:
    assert results["quick"] is True
    assert results["systems"].keys() == SYSTEMS
    for name, system in results["systems"].items():
        assert system["versions"], name
        assert system["figures"].keys() == FIGURES, name
        missing = {key for key, values in system["figures"].items() if values == [None]}
        assert missing == MISSING.get(name, set()), name
        for key in FIGURES - missing:
            [value] = system["figures"][key]
            # Within a second, an idle worker may send no command at all.
            assert value > 0 or (key == "idle_commands" and value == 0), (name, key)
    assert results["posts"].keys() == POSTS
    assert all(value > 0 for [value] in results["posts"].values())


def test_every_aim_is_compared_with_a_figure(results: dict[str, Any]) -> None:
    bare = any((JOBS.parent / "bare").glob("*.lua"))
    for aim in results["aims"]:
        assert aim["aim"]
        assert (aim["at_least"] is None) != (aim["at_most"] is None)
        if bare or "leases" not in aim["aim"]:
            assert aim["met"] is (
                aim["value"] >= aim["at_least"]
                if aim["at_most"] is None
                else aim["value"] <= aim["at_most"]
            )


def test_the_record_shows_every_system(results: dict[str, Any]) -> None:
    folder: Path = results["folder"]
    recorded = json.loads((folder / "results.json").read_text())
    assert recorded == {key: value for key, value in results.items() if key != "folder"}
    readme = (folder / "README.md").read_text()
    plotted = "".join(ElementTree.parse(folder / "results.svg").getroot().itertext())
    for system in results["systems"].values():
        assert f"| {system['title']} |" in readme
        assert system["title"] in plotted
    for aim in results["aims"]:
        assert aim["met"] is None or f"| {aim['aim']} |" in readme
    # What stands around the tables stays.
    assert "## How it is measured" in readme


def test_an_unknown_system_is_refused(tmp_path: Path) -> None:
    done = run(sys.executable, JOBS, "--systems", "sqa", cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert "unknown: sqa; known: service, saq" in done.stderr
