"""How long taskgen takes to start and to render, next to what it is built on.

    uv run python benchmarks/startup.py

The commands of a comparison take turns, so that whatever else the machine does slows both.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUNDS = 9
BIN = Path(sys.executable).parent
# As on a user's machine, modules are compiled once, by the first run, which is not counted.
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}


def seconds(command: list[str], folder: Path) -> float:
    """Run a command in a folder that is emptied first, and time it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, env=ENVIRONMENT, check=True, capture_output=True)
    return time.perf_counter() - start


def compare(ours: list[str], theirs: list[str], limit: float, folder: Path) -> bool:
    """Print the medians of two commands and their ratio.

    Returns:
        Whether the ratio is within its limit.
    """
    rounds = [(seconds(ours, folder), seconds(theirs, folder)) for _ in range(ROUNDS + 1)]
    our_median = statistics.median(our for our, _ in rounds[1:])
    their_median = statistics.median(their for _, their in rounds[1:])
    ratio = our_median / their_median
    shown = [" ".join(Path(word).name for word in command) for command in (ours, theirs)]
    print(f"{our_median:6.3f} s  {shown[0]}")
    print(f"{their_median:6.3f} s  {shown[1]}")
    print(f"{ratio:6.2f}    of at most {limit}\n")
    return ratio <= limit


def main() -> None:
    """Make the three comparisons that the README quotes."""
    taskgen, copier, python = str(BIN / "taskgen"), str(BIN / "copier"), sys.executable
    import_typer = [python, "-c", "import typer"]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "here"
        # The same files for both, as they stand in this checkout, and nothing to clone.
        template = Path(scratch) / "template"
        checkout = Path(__file__).parents[1]
        for name in ("template", "fragments"):
            shutil.copytree(checkout / name, template / name)
        shutil.copy(checkout / "copier.yml", template)
        results = [
            compare([taskgen, "--help"], import_typer, 2, folder),
            compare([taskgen, "--version"], import_typer, 2, folder),
            compare(
                [taskgen, "new", "svc", "--no-sync", "--no-git", "-y"],
                [copier, "copy", "--defaults", str(template), "svc"],
                1.15,
                folder,
            ),
        ]
    sys.exit(not all(results))


if __name__ == "__main__":
    main()
