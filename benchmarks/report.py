"""What `jobs.py` prints and records: figures with their names, aims, a table and a plot."""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any
from xml.sax.saxutils import escape

Results = dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """A row of the table."""

    key: str
    title: str
    unit: str
    digits: int = 0


FIGURES = (
    Figure("noop", "no-op jobs, one worker", "jobs/s"),
    Figure("noop_two", "no-op jobs, two workers", "jobs/s"),
    Figure("nap", "50 ms jobs, one worker", "jobs/s"),
    Figure("noop_cpu", "no-op jobs, one worker: its CPU time", "µs/job"),
    Figure("noop_server", "no-op jobs, one worker: the server's CPU time", "µs/job"),
    Figure("noop_cpu_two", "no-op jobs, two workers: their CPU time", "µs/job"),
    Figure("noop_server_two", "no-op jobs, two workers: the server's CPU time", "µs/job"),
    Figure("nap_cpu", "50 ms jobs, one worker: its CPU time", "µs/job"),
    Figure("nap_server", "50 ms jobs, one worker: the server's CPU time", "µs/job"),
    Figure("latency_p50", "enqueue to start, p50", "ms", 1),
    Figure("latency_p99", "enqueue to start, p99", "ms", 1),
    Figure("enqueue_one", "enqueue, one by one", "jobs/s"),
    Figure("enqueue_gather", "enqueue, 100 at once", "jobs/s"),
    Figure("enqueue_many", "enqueue in bulk", "jobs/s"),
    Figure("idle_commands", "idle worker: commands", "per s", 1),
    Figure("idle_cpu", "idle worker: CPU", "% of a core", 2),
    Figure("deep_noop", "long queue: no-op jobs", "jobs/s"),
    Figure("deep_first", "long queue: first job after start", "s", 2),
    Figure("deep_status_p99", "long queue: a job's status, p99", "ms", 1),
    Figure("deep_health_p99", "long queue: the queue's health, p99", "ms", 1),
    Figure("deep_bytes", "long queue: memory per job", "bytes"),
)
POSTS = (
    Figure("service_empty", "generated service: a route that enqueues nothing", "requests/s"),
    Figure("service_enqueue", "generated service: a route that enqueues", "requests/s"),
    Figure("lifespan", "tutorial's app: a pool opened by the lifespan", "requests/s"),
    Figure("per_request", "tutorial's app: a pool per request", "requests/s"),
)
PLOTTED = ("noop", "nap", "latency_p50", "latency_p99", "enqueue_one", "enqueue_gather")


def figures_of(results: Results, system: str) -> dict[str, float | None]:
    """Return the medians of a system's rounds."""
    rounds: dict[str, list[float | None]] = results["systems"].get(system, {}).get("figures", {})
    return {key: middle(values) for key, values in rounds.items()}


def middle(values: Iterable[float | None]) -> float | None:
    """Return the median; None if a system does not offer what is measured."""
    known = [value for value in values if value is not None]
    return median(known) if known else None


@dataclass(frozen=True)
class Aim:
    """What the project wants of a figure of the generated service."""

    title: str
    at_least: float | None
    at_most: float | None
    value: "Calculation"


Get = Callable[[str, str], float]
Calculation = Callable[[Get], float]


def _ratio(key: str, system: str, other_key: str | None = None) -> Calculation:
    return lambda get: get("service", key) / get(system, other_key or key)


def _figure(key: str) -> Calculation:
    return lambda get: get("service", key)


AIMS = (
    Aim("no-op jobs, times SAQ", 4, None, _ratio("noop", "saq")),
    Aim("no-op jobs, times ARQ's defaults", 40, None, _ratio("noop", "arq")),
    Aim("no-op jobs, two workers, times one", 1.5, None, _ratio("noop_two", "service", "noop")),
    Aim("50 ms jobs, times SAQ", 1.1, None, _ratio("nap", "saq")),
    Aim("50 ms jobs, part of 2,000", 0.85, None, lambda get: get("service", "nap") / 2000),
    Aim("enqueue to start, p50, times SAQ", None, 1, _ratio("latency_p50", "saq")),
    Aim("enqueue to start, p99, times SAQ", None, 1, _ratio("latency_p99", "saq")),
    Aim("enqueue, one by one, times SAQ", 1.1, None, _ratio("enqueue_one", "saq")),
    Aim("enqueue, 100 at once, times SAQ", 2, None, _ratio("enqueue_gather", "saq")),
    Aim(
        "enqueue in bulk, times SAQ, one by one",
        10,
        None,
        _ratio("enqueue_many", "saq", "enqueue_one"),
    ),
    Aim(
        "POST that enqueues, times one that does not",
        0.5,
        None,
        lambda get: get("posts", "service_enqueue") / get("posts", "service_empty"),
    ),
    Aim(
        "POST that enqueues, times the lifespan's pool",
        1.25,
        None,
        lambda get: get("posts", "service_enqueue") / get("posts", "lifespan"),
    ),
    Aim("idle worker, commands per s", None, 6, _figure("idle_commands")),
    Aim("idle worker, % of a core", None, 0.3, _figure("idle_cpu")),
    Aim("long queue: no-op jobs, times empty", 0.8, None, _ratio("deep_noop", "service", "noop")),
    Aim("long queue: first job, s", None, 1, _figure("deep_first")),
    Aim("long queue: a job's status, p99, ms", None, 20, _figure("deep_status_p99")),
    Aim("long queue: the queue's health, p99, ms", None, 20, _figure("deep_health_p99")),
    Aim(
        "leases, fencing, dead jobs, indexes: part of no-op jobs",
        None,
        0.15,
        lambda get: 1 - get("bare", "noop_shipped") / get("bare", "noop"),
    ),
)


def aims_of(results: Results) -> list[dict[str, Any]]:
    """Compare the figures with the aims, as far as there are figures."""

    def get(system: str, key: str) -> float:
        if system in {"posts", "bare"}:
            value = middle(results[system].get(key, []))
        else:
            value = figures_of(results, system).get(key)
        if value is None:
            raise KeyError(key)
        return value

    return [_compare(aim, get) for aim in AIMS]


def _compare(aim: Aim, get: Get) -> dict[str, Any]:
    low, high = aim.at_least, aim.at_most
    value, met = None, None
    with suppress(KeyError):
        value = aim.value(get)
        met = (low is None or value >= low) and (high is None or value <= high)
    return {"aim": aim.title, "value": value, "at_least": low, "at_most": high, "met": met}


def markdown(results: Results) -> str:
    """Return the tables, as they are printed and as they stand in the README."""
    titles = {name: each["title"] for name, each in results["systems"].items()}
    medians = {name: figures_of(results, name) for name in titles}
    rows = [
        [f"{each.title}, {each.unit}", *(_shown(m.get(each.key), each) for m in medians.values())]
        for each in FIGURES
    ]
    tables = [_table(["", *titles.values()], rows)]
    posts = [
        [figure.title, _shown(middle(results["posts"][figure.key]), figure)]
        for figure in POSTS
        if figure.key in results["posts"]
    ]
    if posts:
        tables.append(_table(["POST", "requests/s"], posts))
    bare: dict[str, list[float | None]] = results["bare"]
    costs = [
        [f"{each.title}, {each.unit}", *(_shown(middle(bare[key]), each) for key in keys)]
        for each in FIGURES
        if (keys := (f"{each.key}_shipped", each.key))[1] in bare
    ]
    if costs:
        tables.append(_table(["promises", "with them", "without"], costs))
    aims = [
        [aim["aim"], _limit(aim), _number(aim["value"]), "yes" if aim["met"] else "**no**"]
        for aim in results["aims"]
        if aim["met"] is not None
    ]
    if aims:
        tables.append(_table(["aim", "limit", "measured", "met"], aims))
    return "\n\n".join([*tables, _circumstances(results)]) + "\n"


def _table(head: list[str], rows: list[list[str]]) -> str:
    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


def _shown(value: float | None, figure: Figure) -> str:
    return "" if value is None else f"{value:,.{figure.digits}f}"


def _number(value: float) -> str:
    return f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"  # noqa: PLR2004


def _limit(aim: Mapping[str, Any]) -> str:
    low, high = aim["at_least"], aim["at_most"]
    return f"at least {low:g}" if low is not None else f"at most {high:g}"


def _circumstances(results: Results) -> str:
    machine = results["machine"]
    conditions = (
        f"Medians of {results['rounds']} rounds, the systems in turns; {machine['server']}, "
        f"Python {machine['python']}, {machine['cores']} cores, {machine['processor']}; "
        f"long queue: {results['deep']:,} jobs."
    )
    lines: list[str] = []
    for system in results["systems"].values():
        versions = ", ".join(f"{key} {value}" for key, value in system["versions"].items())
        lines.append(f"- {system['title']}: {system['note']} ({versions}).")
    return conditions + "\n\n" + "\n".join(lines)


def record(results: Results, folder: Path) -> None:
    """Write the results, the plot, and the tables between the README's two markers."""
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / "results.svg").write_text(plot(results))
    readme = folder / "README.md"
    begin, end = "<!-- results -->\n", "<!-- end of results -->"
    pattern = re.compile(f"(?<={begin}).*?(?={end})", re.DOTALL)
    tables = f"\n{markdown(results)}\n"
    readme.write_text(pattern.sub(lambda _: tables, readme.read_text()))


BAR, GAP, PANEL, LABEL, SPACE = 16, 5, 420, 130, 30


def plot(results: Results) -> str:
    """Draw one panel of bars per figure, each with a scale of its own that begins at zero."""
    names = list(results["systems"])
    chosen = [figure for figure in FIGURES if figure.key in PLOTTED]
    height = SPACE + len(names) * (BAR + GAP) + 20
    rows = (len(chosen) + 1) // 2
    size = f'width="{2 * PANEL}" height="{rows * height}"'
    font = 'font-family="sans-serif" font-size="12" fill="#24292f"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} {font}>',
        '<rect width="100%" height="100%" fill="#fff"/>',
    ]
    for number, figure in enumerate(chosen):
        left, top = number % 2 * PANEL, number // 2 * height
        values = {name: figures_of(results, name).get(figure.key) for name in names}
        parts.append(f'<g transform="translate({left} {top})">')
        parts.extend(_panel(figure, values, results))
        parts.append("</g>")
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(figure: Figure, values: Mapping[str, float | None], results: Results) -> list[str]:
    better = "less is better" if figure.unit == "ms" else "more is better"
    title = escape(f"{figure.title}, {figure.unit} ({better})")
    parts = [f'<text x="10" y="20" font-weight="bold">{title}</text>']
    longest = max((value for value in values.values() if value), default=1)
    room = PANEL - LABEL - 70
    for row, (name, value) in enumerate(values.items()):
        y = SPACE + row * (BAR + GAP)
        width = room * (value or 0) / longest
        colour = "#0969da" if name == "service" else "#8c959f"
        system = escape(results["systems"][name]["title"])
        parts += [
            f'<text x="{LABEL - 6}" y="{y + 12}" text-anchor="end">{system}</text>',
            f'<rect x="{LABEL}" y="{y}" width="{width:.1f}" height="{BAR}" fill="{colour}"/>',
            f'<text x="{LABEL + width + 5:.1f}" y="{y + 12}">{_shown(value, figure)}</text>',
        ]
    return parts
