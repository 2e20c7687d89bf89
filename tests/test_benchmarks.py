"""The benchmark: a quick run has every figure of every system. How high they are is not tested."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from conftest import CHECKOUT, run

JOBS = CHECKOUT / "benchmarks" / "jobs.py"
SYSTEMS = {"service", "saq", "taskiq", "docket", "arq", "arq-tuned"}
FIGURES = {
    "noop",
    "noop_cpu",
    "noop_server",
    "noop_two",
    "noop_cpu_two",
    "noop_server_two",
    "nap",
    "nap_cpu",
    "nap_server",
    "latency_p50",
    "latency_p99",
    "enqueue_one",
    "enqueue_gather",
    "enqueue_many",
    "idle_commands",
    "idle_cpu",
}
OF_THE_SERVICE = {"deep_noop", "deep_first", "deep_status_p99", "deep_health_p99", "deep_bytes"}
# What a system does not offer has no figure.
MISSING = {
    "saq": {"enqueue_many"},
    "taskiq": {"enqueue_many"},
    "arq": {"enqueue_many"},
    "arq-tuned": {"enqueue_many"},
}
POSTS = {"service_empty", "service_enqueue", "lifespan", "per_request"}


def test_a_quick_run_has_every_figure_of_every_system(tmp_path: Path) -> None:
    shutil.copy(JOBS.with_name("README.md"), tmp_path)
    done = run(sys.executable, JOBS, "--quick", "--json", "--record", tmp_path, cwd=tmp_path)
    results: dict[str, Any] = json.loads(done.stdout)
    assert results["systems"].keys() == SYSTEMS
    for name, system in results["systems"].items():
        assert system["versions"], name
        expected = FIGURES | OF_THE_SERVICE if name == "service" else FIGURES
        assert system["figures"].keys() == expected, name
        missing = {key for key, values in system["figures"].items() if values == [None]}
        assert missing == MISSING.get(name, set()), name
        for key in expected - missing:
            [value] = system["figures"][key]
            # In such a short time, an idle worker may do nothing at all.
            assert value > 0 or (value == 0 and key in {"idle_commands", "idle_cpu"}), (name, key)
    assert results["posts"].keys() == POSTS
    assert all(value > 0 for [value] in results["posts"].values())
    for aim in results["aims"]:
        low, high, value = aim["at_least"], aim["at_most"], aim["value"]
        assert aim["met"] is (value <= high if low is None else value >= low), aim

    assert json.loads((tmp_path / "results.json").read_text()) == results
    readme = (tmp_path / "README.md").read_text()
    plot = ET.parse(tmp_path / "results.svg")  # noqa: S314 - it was just drawn
    plotted = "".join(plot.getroot().itertext())
    for system in results["systems"].values():
        assert f"| {system['title']} |" in readme
        assert system["title"] in plotted
    for aim in results["aims"]:
        assert f"| {aim['aim']} |" in readme
    # What stands around the tables stays.
    assert "## How it is measured" in readme
    assert "## Where a job's microseconds go" in readme


def test_an_unknown_system_is_refused(tmp_path: Path) -> None:
    done = run(sys.executable, JOBS, "--systems", "sqa", cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert "unknown: sqa; known: service, saq" in done.stderr
