"""The template that this installation carries, and where it can be fetched again."""

import json
from dataclasses import dataclass
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from taskgen.commands import describe_commit

DISTRIBUTION = "fastapi-taskgen"

# The address of this project's git repository. While it has none, an installation that does not
# know its own origin records none: an address that belongs to somebody else would let them put
# code into every service, through `copier update`.
HOME: str | None = None

# The beginnings of an address that Copier takes for a git repository.
_GIT_PREFIXES = ("https://github.com/", "https://gitlab.com/", "git@", "git://", "git+")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a template can be fetched again, as an answers file records it.

    Attributes:
        source: A path, or an address that Copier understands. None if it is not known.
        version: A tag, a commit, or the output of `git describe`. None outside git.
    """

    source: str | None
    version: str | None


@dataclass(frozen=True, slots=True)
class Template:
    """A template on this machine.

    Attributes:
        root: The folder that holds `copier.yml`, `template/` and `fragments/`.
        origin: Where it can be fetched again.
    """

    root: Path
    origin: Origin


def find_template() -> Template:
    """Find the template, in the installed wheel or in the checkout that taskgen runs from.

    A checkout's origin is its path, as `copier copy` records it. The address of its remote would
    serve other machines too, but it may lack the commit, need credentials, or contain them.
    """
    packaged = Path(__file__).with_name("_source")
    if packaged.is_dir():
        return Template(packaged, installed_origin(distribution(DISTRIBUTION)))
    checkout = Path(__file__).resolve().parents[2]
    # Not of a folder inside some other repository. Copier too wants the root of a work tree.
    version = describe_commit(checkout) if (checkout / ".git").exists() else None
    return Template(checkout, Origin(str(checkout), version))


def installed_origin(installed: Distribution) -> Origin:
    """Find out where an installed taskgen came from.

    A path in site-packages is of no use to `copier update`, so it is never the answer.

    Args:
        installed: The metadata of the installation.

    Returns:
        The repository and commit that it was installed from (PEP 610), else the project's own
        repository and the tag of the version.
    """
    direct_url: dict[str, Any] = json.loads(installed.read_text("direct_url.json") or "{}")
    vcs = direct_url.get("vcs_info", {})
    # Copier needs the template at the root of the repository.
    if vcs.get("vcs") == "git" and not direct_url.get("subdirectory"):
        return Origin(_copier_address(direct_url["url"]), vcs["commit_id"])
    return Origin(HOME and _copier_address(HOME), f"v{installed.version}")


def _copier_address(url: str) -> str:
    parts = urlsplit(url)
    if parts.password or (parts.username and parts.scheme in {"http", "https"}):
        # A token has no place in a file that is committed.
        user = f"{parts.username}@" if parts.scheme == "ssh" else ""
        host = parts.netloc.rpartition("@")[2]
        url = parts._replace(netloc=f"{user}{host}").geturl()
    return url if url.startswith(_GIT_PREFIXES) or url.endswith(".git") else f"git+{url}"
