"""Where the template is on this machine, and where it came from."""

import json
import subprocess
from dataclasses import dataclass
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Any

# What Copier takes for the address of a git repository without a "git+" before it.
_KNOWN_TO_COPIER = ("https://github.com/", "https://gitlab.com/", "git@", "git://", "git+")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a template can be fetched again, as an answers file records it.

    Attributes:
        source: A path, or an address that Copier understands.
        version: A tag, a commit, or what `git describe` says. None where there is no git.
    """

    source: str
    version: str | None


@dataclass(frozen=True, slots=True)
class Template:
    """The template that this installation of taskgen carries.

    Attributes:
        root: The folder that holds `copier.yml` and `template/`.
        origin: Where it can be fetched again.
    """

    root: Path
    origin: Origin


def find_template() -> Template:
    """Find the template: in the wheel, or in the checkout that taskgen runs from."""
    packaged = Path(__file__).with_name("_source")
    if packaged.is_dir():
        return Template(packaged, installed_origin(distribution("taskgen")))
    checkout = Path(__file__).resolve().parents[2]
    return Template(checkout, Origin(str(checkout), _describe(checkout)))


def installed_origin(installed: Distribution) -> Origin:
    """Tell where an installed taskgen came from.

    A path into site-packages would be of no use to `copier update`, so it is never the answer.

    Args:
        installed: The metadata of the installation.

    Returns:
        The repository and the commit that it was installed from (PEP 610), else the tag of its
        version in the project's own repository.
    """
    direct_url: dict[str, Any] = json.loads(installed.read_text("direct_url.json") or "{}")
    if vcs := direct_url.get("vcs_info"):
        return Origin(_address(direct_url["url"]), vcs["commit_id"])
    urls = dict(line.split(", ", 1) for line in installed.metadata.get_all("Project-URL") or [])
    return Origin(_address(urls["Source"]), f"v{installed.version}")


def _address(url: str) -> str:
    return url if url.startswith(_KNOWN_TO_COPIER) or url.endswith(".git") else f"git+{url}"


def _describe(checkout: Path) -> str | None:
    # Not every folder inside some repository: the checkout must be the repository itself, as
    # Copier wants it too.
    if not (checkout / ".git").exists():
        return None
    command = ["git", "-C", str(checkout), "describe", "--tags", "--always"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()
