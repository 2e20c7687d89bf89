"""Measure the queue of a generated service beside its peers, on one server, in turns.

    uv run python benchmarks/jobs.py             all of it, and takes long
    uv run python benchmarks/jobs.py --quick     under a minute: for the shape, not the figures

README.md in this folder says what is measured, and how. Needs Linux.
"""

import argparse
import json
import os
import platform
import re
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from measures import (
    FULL,
    QUICK,
    App,
    Bench,
    Figures,
    Subject,
    measure_deep_queue,
    measure_enqueueing,
    measure_noops,
    measure_posts,
    measure_worker,
)
from report import Results, aims_of, markdown, record
from systems import (
    ARQ,
    BARE,
    BARE_SCRIPTS,
    HERE,
    SERVICE,
    SYSTEMS,
    Environment,
    System,
    generate_service,
    install,
    web_stack,
    without_promises,
)

POSTS = "posts"
Rounds = defaultdict[str, defaultdict[str, list[float | None]]]


def main() -> None:
    """Measure what the options say, and print it."""
    options = read_options()
    with tempfile.TemporaryDirectory(prefix="taskgen-benchmark-") as folder:
        results = measure(options, Path(folder))
    results["aims"] = aims_of(results)
    if options.record:
        record(results, options.record)
    print(json.dumps(results, indent=1) if options.json else markdown(results))


def read_options() -> argparse.Namespace:
    """Read the command line."""
    names = [system.name for system in SYSTEMS]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few jobs and one round")
    parser.add_argument("--json", action="store_true", help="print every figure of every round")
    parser.add_argument("--systems", default=",".join(names), help="default: %(default)s")
    parser.add_argument("--rounds", type=int, help="default: 3")
    parser.add_argument("--deep", type=int, help="jobs in the long queue; default: 1,000,000")
    parser.add_argument(
        "--record",
        type=Path,
        nargs="?",
        const=HERE,
        metavar="FOLDER",
        help="write results.json, results.svg and the tables of README.md; default: %(const)s",
    )
    options = parser.parse_args()
    options.systems = options.systems.split(",")
    if unknown := set(options.systems) - set(names):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(names)}")
    return options


def measure(options: argparse.Namespace, folder: Path) -> Results:
    """Set the systems up, and measure them in turns."""
    scale = QUICK if options.quick else FULL
    scale = replace(scale, rounds=options.rounds or scale.rounds, deep=options.deep or scale.deep)
    systems = [system for system in SYSTEMS if system.name in options.systems]
    environments = {system.name: prepare(system, folder) for system in systems}
    service = environments.get(SERVICE.name)
    with Bench(folder, scale) as bench:
        subjects = [bench.set_up(system, environments[system.name]) for system in systems]
        bare = None
        if service and any(BARE_SCRIPTS.glob("*.lua")):
            bare = bench.set_up(BARE, without_promises(service, folder))
        apps = list(set_up_apps(bench, service)) if service else []
        figures: Rounds = defaultdict(lambda: defaultdict(list))
        for number in range(scale.rounds):
            # What else the machine does should not meet the same system each time.
            order = subjects if number % 2 == 0 else subjects[::-1]
            for name, one in run_round(order, bare, apps):
                say(f"round {number + 1} of {scale.rounds}: {name} {shown(one)}")
                for key, value in one.items():
                    figures[name][key].append(value)
        return {
            "quick": options.quick,
            "rounds": scale.rounds,
            "deep": scale.deep,
            "machine": machine(bench),
            "systems": {
                subject.system.name: {
                    "title": subject.system.title,
                    "note": subject.system.note,
                    "versions": subject.versions(),
                    "figures": figures[subject.system.name],
                }
                for subject in subjects
            },
            "bare": figures[BARE.name],
            "posts": figures[POSTS],
        }


def prepare(system: System, folder: Path) -> Environment:
    """Return the environment of a system, and make it first if need be."""
    say(f"preparing {system.title}")
    return install(system.requirements) if system.requirements else generate_service(folder)


def set_up_apps(bench: Bench, service: Environment) -> Iterator[App]:
    """Prepare the web applications: the service's and the tutorial's, on one web stack."""
    tutorial = install((*ARQ.requirements, *web_stack(service)))
    yield App(
        environment=service,
        database=bench.database(SERVICE),
        location="bench.main:app",
        paths={
            "service_empty": "/api/v1/benchmark/empty",
            "service_enqueue": "/api/v1/benchmark/enqueue",
        },
    )
    yield App(
        environment=tutorial,
        database=bench.database(ARQ),
        location="tutorial_app:app",
        paths={"lifespan": "/lifespan", "per_request": "/per-request"},
    )


def run_round(
    subjects: list[Subject], bare: Subject | None, apps: list[App]
) -> Iterator[tuple[str, Figures]]:
    """Measure each system once: one kind of figure of all, then the next."""
    for measurement in (measure_enqueueing, measure_worker, measure_deep_queue):
        for subject in subjects:
            if measurement is measure_deep_queue and subject.system is not SERVICE:
                continue  # its aims compare the service with itself, and filling takes long
            yield subject.system.name, measurement(subject)
            if bare and subject.system is SERVICE and measurement is measure_worker:
                yield (
                    BARE.name,
                    {
                        **measure_noops(bare),
                        **{f"{k}_shipped": v for k, v in measure_noops(subject).items()},
                    },
                )
    for app in apps:
        yield POSTS, measure_posts(subjects[0].bench, app)


def machine(bench: Bench) -> dict[str, Any]:
    """Describe what the figures depend on."""
    models = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "python": platform.python_version(),
        "server": bench.version(),
        "cores": os.cpu_count(),
        "processor": models[0] if models else platform.machine(),
    }


def shown(figures: Figures) -> str:
    """Return figures in one line."""
    return ", ".join(f"{k} {v:.4g}" for k, v in figures.items() if v is not None)


def say(progress: str) -> None:
    """Print what is happening, apart from the results."""
    print(progress, file=sys.stderr)


if __name__ == "__main__":
    main()
