"""Record the README's pictures: `taskgen new`, and `uv run dev` at work with a job.

uv run python docs/record.py
"""

import io
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx2
import pexpect
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

DOCS = Path(__file__).parent
WIDTH = 110
PORT = 8000
REPORT = {"title": "My first report", "format": "pdf"}


def main() -> None:
    """Make a service, run it, and draw what its maker saw."""
    with tempfile.TemporaryDirectory() as folder:
        draw("taskgen-new", "taskgen new myservice --yes", make_service(Path(folder)))
        draw("dev", "uv run dev", work(Path(folder) / "myservice"))


def make_service(folder: Path) -> str:
    """Make a service in a folder, and return what was shown."""
    taskgen = str(Path(sys.executable).with_name("taskgen"))
    environment = os.environ | {"FORCE_COLOR": "1", "TERM": "xterm-256color", "COLUMNS": "80"}
    shown = subprocess.run(
        [taskgen, "new", "myservice", "--yes"],
        cwd=folder,
        env=environment,
        check=True,
        capture_output=True,
    )
    return shown.stdout.decode()


def work(service: Path) -> str:
    """Run a service, ask it for a report, and return what was shown until Ctrl-C."""
    shown = io.StringIO()
    environment = {key: value for key, value in os.environ.items() if key != "VIRTUAL_ENV"}
    child: pexpect.spawn[str] = pexpect.spawn(
        "uv", ["run", "dev"], cwd=service, env=environment, encoding="utf-8", timeout=60
    )
    child.logfile_read = shown
    child.expect("worker .* runs default")
    child.expect("Application startup complete")
    [key] = re.findall("Bearer ([0-9a-f]+)'", shown.getvalue())
    headers = {"Authorization": f"Bearer {key}"}
    url = f"http://127.0.0.1:{PORT}/api/v1/reports"
    httpx2.post(url, json=REPORT, headers=headers).raise_for_status()
    child.expect(r"complete in [^\r\n]*")
    child.sendcontrol("c")
    child.expect(pexpect.EOF)
    child.close()
    text = re.sub(r"\x1b\[[0-9;]*[HJK]", "", shown.getvalue()).replace("\r", "")
    # Left out: the date, most of the key, the folder of this run, and the end after Ctrl-C.
    text = re.sub(r"\d{4}-\d\d-\d\d ", "", text).partition("^C")[0].replace(key, f"{key[:6]}...")
    left_out = ("watchfiles", "Will watch")
    return "\n".join(
        line for line in text.splitlines() if not any(each in line for each in left_out)
    )


def draw(name: str, command: str, shown: str) -> None:
    """Draw a terminal with a command and what it showed."""
    console = Console(record=True, width=WIDTH, file=io.StringIO())
    console.print(Text.assemble(("$ ", "bold green"), command))
    console.print(Text.from_ansi(shown))
    # The viewer's own fonts will do: a picture in a README fetches none.
    frame = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    picture = console.export_svg(title=command, code_format=frame, unique_id=name)
    (DOCS / f"{name}.svg").write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    main()
