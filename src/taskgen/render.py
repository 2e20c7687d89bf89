"""Render the template with Copier, read the answers that it records, and record the origin."""

import os
import re
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from taskgen.errors import TaskgenError, UsageError
from taskgen.signals import Interrupted, interruptible
from taskgen.template import Origin, Template

ANSWERS_FILE = Path(".copier-answers.yml")

_UNKNOWN_ORIGIN = """\
# Not known. `copier update` needs it: the path or the address of a git repository of taskgen.
# _src_path:
"""


def ask_questions(
    template: Template, destination: Path, answers: Mapping[str, Any]
) -> dict[str, Any]:
    """Ask the questions that have no answer yet, at the terminal.

    Args:
        template: The template.
        destination: A folder for the answers file.
        answers: The answers that were given.

    Returns:
        All answers.

    Raises:
        UsageError: A given answer is not valid.
        TaskgenError: The terminal was closed.
        Interrupted: A signal arrived.
    """
    # First without asking, so that an invalid answer is refused before the first question.
    _run_copier(template, destination, answers, exclude=["*"])
    with interruptible():
        _run_copier(template, destination, answers, exclude=["*", f"!{ANSWERS_FILE}"], ask=True)
    return read_answers(destination)


def render(template: Template, destination: Path, answers: Mapping[str, Any]) -> None:
    """Render the template, with defaults for the questions that have no answer.

    Args:
        template: The template.
        destination: The folder to write to.
        answers: The answers.

    Raises:
        UsageError: An answer is not valid.
        TaskgenError: The template is broken.
    """
    # pip compiles the modules of a wheel where it installs them, the template's too.
    _run_copier(template, destination, answers, exclude=["__pycache__"])
    _record_origin(destination / ANSWERS_FILE, template.origin)


def read_answers(destination: Path) -> dict[str, Any]:
    """Read the answers that Copier has recorded.

    Args:
        destination: The folder that was rendered to.

    Returns:
        The answers by the keys of their questions.
    """
    text = (destination / ANSWERS_FILE).read_text(encoding="utf-8")
    recorded: dict[str, Any] = yaml.safe_load(text)
    return {key: value for key, value in recorded.items() if not key.startswith("_")}


def _run_copier(
    template: Template,
    destination: Path,
    answers: Mapping[str, Any],
    *,
    exclude: Sequence[str],
    ask: bool = False,
) -> None:
    # Importing Copier takes half a second. A refusal need not wait for it.
    import copier
    from copier.errors import CopierError, InteractiveSessionError
    from jinja2 import TemplateError
    from plumbum import local

    try:
        # Without git, Copier renders a checkout as it is. With git, it would clone it, commit the
        # uncommitted changes to the clone, and ask git about each file.
        with local.env(PATH=os.devnull):
            copier.run_copy(
                # With a slash at its end, no path looks like the address of a repository.
                f"{template.root}/",
                destination,
                dict(answers),
                defaults=not ask,
                exclude=exclude,
                overwrite=True,
                quiet=True,
                # The defaults are the template's, on every machine.
                settings=copier.Settings(),
            )
    except KeyboardInterrupt as error:
        raise Interrupted(signal.SIGINT) from error
    except InteractiveSessionError as error:
        raise TaskgenError(
            "The questions were not all answered.", "Take the defaults for the rest with --yes."
        ) from error
    except (CopierError, TemplateError) as error:
        raise TaskgenError(
            f"The template cannot be rendered: {error}.", "This is a bug in the template."
        ) from error
    except ValueError as error:
        raise _invalid_answer(error) from error


def _invalid_answer(error: ValueError) -> UsageError:
    sentence = " ".join(str(error).split())
    if match := re.match(r"Validation error for question '(\w+)': (.+)", sentence):
        key, sentence = match.groups()
        problem, _, way_out = sentence.partition(" Choose ")
        return UsageError(problem, f"Choose {way_out or f'another {key}, with --set {key}=VALUE.'}")
    return UsageError(sentence, "Give another answer, with --set KEY=VALUE.")


def _record_origin(answers_file: Path, origin: Origin) -> None:
    # Copier, without git, recorded only a path, which may be in site-packages.
    lines = {"_commit": origin.version, "_src_path": origin.source}
    known = {key: value for key, value in lines.items() if value is not None}
    # In the format of Copier's `to_nice_yaml`.
    recorded = yaml.dump(known, indent=4, allow_unicode=True, default_flow_style=False)
    if origin.source is None:
        recorded += _UNKNOWN_ORIGIN
    text = answers_file.read_text(encoding="utf-8")
    line = re.compile(r"^_src_path:.*\n(?:[ \t].*\n)*", re.MULTILINE)
    answers_file.write_text(line.sub(lambda _: recorded, text, count=1), encoding="utf-8")
