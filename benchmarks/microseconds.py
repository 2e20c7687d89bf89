"""Where the microseconds of a no-op job go, in the worker of a generated service and in the server.

    uv run python benchmarks/microseconds.py

A sampling profiler (py-spy, which uv brings) watches the worker from outside: the worker is the
shipped one. What a sample counts for is the innermost function of a part named here; what the
standard library or C code does counts for its caller. Needs Linux, and may need root.
"""

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

from measures import FULL, Bench, Subject, drain
from systems import SERVICE, generate_service

PROFILER = ("uv", "tool", "run", "--quiet", "--from", "py-spy==0.4.3", "py-spy")
SECONDS = 4
# Parts by what the path of a function's file holds, the first that fits.
PARTS = (
    ("/bench/tasks/", "the task"),
    ("/site-packages/redis/", "redis-py"),
    ("/site-packages/arq/", "ARQ"),
    ("/site-packages/pydantic", "Pydantic"),
    ("/logging/", "logging"),
    ("/asyncio/runners.py", "event loop, sockets"),
    ("/asyncio/", "asyncio"),
)
SERVICES_OWN = re.compile(r"/src/bench/([^:]+)")
FRAME = re.compile(r"\((?P<file>[^()]+):\d+\)$")


def main() -> None:
    """Profile one worker, and print a table."""
    with tempfile.TemporaryDirectory(prefix="taskgen-benchmark-") as name:
        folder = Path(name)
        service = generate_service(folder)
        with Bench(folder, replace(FULL, drain=SECONDS)) as bench:
            subject = bench.set_up(SERVICE, service)
            samples, worker, server = profile(subject, folder / "profile.txt")
    total = samples.total()
    rows = [(part, worker * count / total) for part, count in samples.most_common()]
    large = [row for row in rows if row[1] >= worker / 50]
    small = worker - sum(each for _, each in large)
    print("| part | µs/job |\n| --- | ---: |")
    for part, each in [*large, ("other parts of the worker", small), ("worker, together", worker)]:
        print(f"| {part} | {each:.1f} |")
    print(f"| server | {server:.1f} |")


def profile(subject: Subject, output: Path) -> tuple[Counter[str], float, float]:
    """Return samples by part, and the microseconds per job that worker and server take."""
    database = subject.database
    with subject.worker(database) as worker:
        subject.gate.touch()
        held: int = subject.ask(database, "hold", workers=1)
        # More than the worker can run while it is watched.
        subject.ask(database, "fill", task="noop", count=3 * SECONDS * SERVICE.noops)
        command = [
            *PROFILER,
            "record",
            "--nonblocking",
            "--full-filenames",
            "--format=raw",
            f"--output={output}",
        ]
        command += [f"--pid={worker.process.pid}", "--rate=200", f"--duration={SECONDS}"]
        # First without the profiler, which costs the worker time.
        cpu, served = worker.cpu_seconds(), database.server_cpu_seconds()
        subject.gate.unlink()
        drained = drain(database, [worker], limit=SECONDS / 2, before=held)
        cpu, served = worker.cpu_seconds() - cpu, database.server_cpu_seconds() - served
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
        if not database.unfinished():
            raise SystemExit("The worker ran out of jobs while it was watched.")
    samples = Counter[str]()
    for line in output.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        samples[part_of(stack)] += int(count)
    return samples, 1_000_000 * cpu / drained.jobs, 1_000_000 * served / drained.jobs


def part_of(stack: str) -> str:
    """Return the part that a stack of functions, outermost first, is counted for."""
    for function in reversed(stack.split(";")):
        if frame := FRAME.search(function):
            for path, part in PARTS:
                if path in frame["file"]:
                    return part
            if own := SERVICES_OWN.search(frame["file"]):
                return f"`{own[1]}`"
    return "event loop, sockets"


if __name__ == "__main__":
    main()
