"""The template's questions, and the answers that a command line gives to them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from taskgen.errors import UsageError

# YAML's words for them. Copier would take any other word for "yes".
_BOOLEANS = {
    **dict.fromkeys(("true", "yes", "on", "y", "t", "1"), True),
    **dict.fromkeys(("false", "no", "off", "n", "f", "0"), False),
}


@dataclass(frozen=True, slots=True)
class Question:
    """What `copier.yml` says about one question, as far as an answer can be judged by it.

    Attributes:
        type: Copier's name of the answer's type.
        choices: The values to choose from. Empty where any will do.
    """

    type: str
    choices: tuple[str, ...] = ()


def read_questions(copier_yml: Path) -> dict[str, Question]:
    """Read the questions that a user can answer.

    Args:
        copier_yml: The template's configuration.

    Returns:
        The questions by their keys, in the order in which they are asked. Those that Copier
        computes for itself (`when: false`) are not among them.
    """
    config: dict[str, Any] = yaml.safe_load(copier_yml.read_text(encoding="utf-8"))
    return {
        key: Question(details["type"], _values(details.get("choices", [])))
        for key, details in config.items()
        if not key.startswith("_") and details.get("when") is not False
    }


def parse_answers(
    assignments: Iterable[str], questions: Mapping[str, Question]
) -> dict[str, str | bool]:
    """Take `KEY=VALUE` apart, and check each against its question.

    The questions' own validators are Copier's to run: they may need the other answers.

    Args:
        assignments: What the command line gave.
        questions: What can be answered.

    Returns:
        The answers by the keys of their questions.

    Raises:
        UsageError: No such key, a key given twice, or a value that the question does not allow.
    """
    answers: dict[str, str | bool] = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise UsageError(
                f'"{assignment}" is no answer: it has no "=".',
                "Write it as --set KEY=VALUE, as in --set docker=false.",
            )
        if key not in questions:
            close = get_close_matches(key, questions, n=1)
            suggestion = f' Did you mean "{close[0]}"?' if close else ""
            raise UsageError(
                f'There is no question "{key}".{suggestion}',
                f"The keys are {', '.join(questions)}.",
            )
        if key in answers:
            raise UsageError(
                f'"{key}" is answered twice, with "{answers[key]}" and with "{value}".',
                "Give it once.",
            )
        answers[key] = _parse(key, value, questions[key])
    return answers


def _values(choices: dict[str, Any] | list[Any]) -> tuple[str, ...]:
    # A mapping's keys are what a person reads; its values are the answers.
    return tuple(
        str(value) for value in (choices.values() if isinstance(choices, dict) else choices)
    )


def _parse(key: str, value: str, question: Question) -> str | bool:
    if question.choices and value not in question.choices:
        raise UsageError(
            f'"{value}" is no answer to "{key}".',
            f"Choose one of {', '.join(question.choices)}.",
        )
    if question.type == "bool":
        if value.lower() not in _BOOLEANS:
            raise UsageError(
                f'"{value}" is no answer to "{key}", which is a yes or no.',
                f"Say --set {key}=true or --set {key}=false.",
            )
        return _BOOLEANS[value.lower()]
    return value
