"""Record the README's picture of `taskgen new`.

uv run python docs/record.py
"""

import io
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

PICTURE = Path(__file__).with_name("taskgen-new.svg")


def main() -> None:
    """Make a service, and draw what its maker saw."""
    taskgen = str(Path(sys.executable).with_name("taskgen"))
    arguments = ["new", "my-service", "--yes"]
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"FORCE_COLOR": "1", "TERM": "xterm-256color", "COLUMNS": "80"}
        shown = subprocess.run(
            [taskgen, *arguments], cwd=folder, env=environment, check=True, capture_output=True
        )
    command = f"taskgen {' '.join(arguments)}"
    console = Console(record=True, width=80, file=io.StringIO())
    console.print(Text.assemble(("$ ", "bold green"), command))
    console.print(Text.from_ansi(shown.stdout.decode()))
    # The viewer's own fonts will do: a picture in a README fetches none.
    frame = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    picture = console.export_svg(title=command, code_format=frame, unique_id="taskgen-new")
    PICTURE.write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    main()
