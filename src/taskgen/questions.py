"""The template's questions, and the answers that a command line gives to them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from taskgen.errors import UsageError

# YAML's words. Copier would read any other word as true.
_BOOLEANS = {
    **dict.fromkeys(("true", "yes", "on", "y", "t", "1"), True),
    **dict.fromkeys(("false", "no", "off", "n", "f", "0"), False),
}


@dataclass(frozen=True, slots=True)
class Question:
    """What `copier.yml` says about a question, as far as it decides which answers are valid.

    Attributes:
        type: Copier's name of the answer's type.
        choices: The values to choose from. Empty if any value is valid.
    """

    type: str
    choices: tuple[str, ...] = ()


def read_questions(copier_yml: Path) -> dict[str, Question]:
    """Read the questions that a user can answer.

    Args:
        copier_yml: The template's configuration.

    Returns:
        The questions by key, in the order in which they are asked, without those that Copier
        computes itself (`when: false`).
    """
    config: dict[str, Any] = yaml.safe_load(copier_yml.read_text(encoding="utf-8"))
    return {
        key: Question(details["type"], _choices(details.get("choices", [])))
        for key, details in config.items()
        if not key.startswith("_") and details.get("when") is not False
    }


def parse_answers(
    assignments: Iterable[str], questions: Mapping[str, Question]
) -> dict[str, str | bool]:
    """Parse `KEY=VALUE` assignments, and check each against its question.

    The questions' own validators are left to Copier: they may need the other answers.

    Args:
        assignments: The assignments of the command line.
        questions: The questions that can be answered.

    Returns:
        The answers by the keys of their questions.

    Raises:
        UsageError: A key is unknown or repeated, or a value is not valid for its question.
    """
    answers: dict[str, str | bool] = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise UsageError(
                f'Invalid answer "{assignment}": expected KEY=VALUE.',
                "Write it as --set KEY=VALUE, for example --set docker=false.",
            )
        if key not in questions:
            close = get_close_matches(key, questions, n=1)
            suggestion = f' Did you mean "{close[0]}"?' if close else ""
            raise UsageError(
                f'Unknown question "{key}".{suggestion}',
                f"The questions are {', '.join(questions)}.",
            )
        if key in answers:
            raise UsageError(
                f'"{key}" is answered twice, with "{answers[key]}" and with "{value}".',
                "Answer it once.",
            )
        answers[key] = _parse_value(key, value, questions[key])
    return answers


def _choices(choices: dict[str, Any] | list[Any]) -> tuple[str, ...]:
    # The keys of a mapping are labels for people; its values are the answers.
    return tuple(
        str(value) for value in (choices.values() if isinstance(choices, dict) else choices)
    )


def _parse_value(key: str, value: str, question: Question) -> str | bool:
    if question.choices and value not in question.choices:
        raise UsageError(
            f'Invalid value "{value}" for "{key}".',
            f"Choose one of {', '.join(question.choices)}.",
        )
    if question.type == "bool":
        if value.lower() not in _BOOLEANS:
            raise UsageError(
                f'Invalid value "{value}" for "{key}": expected true or false.',
                f"Write --set {key}=true or --set {key}=false.",
            )
        return _BOOLEANS[value.lower()]
    return value
