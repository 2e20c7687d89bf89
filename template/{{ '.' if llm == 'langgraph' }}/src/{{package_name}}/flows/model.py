"""The language model: one of a provider, or an offline one with a few rules."""

import re
from collections.abc import Iterator
from typing import Any, cast

from langchain.chat_models import init_chat_model
from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, SystemMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from ..settings import Settings

# Words that tell the offline model what a text is about; the last category is for all others.
KEYWORDS = {
    "billing": r"invoice|bill|charge|refund|pay|price",
    "technical": r"error|crash|bug|broken|fail|does not work|login|password",
    "account": r"account|email address|delete|subscri|cancel",
    "other": r"",
}


def open_model(settings: Settings) -> BaseChatModel:
    """Return the model that `LLM_MODEL` names; the task's own attempts are its only retries."""
    if settings.llm_model is None:
        return OfflineModel()
    options: dict[str, Any] = {
        "timeout": settings.llm_timeout,
        "max_tokens": settings.llm_max_tokens,
        "max_retries": 0,
    }
    if settings.llm_api_key is not None:
        options["api_key"] = settings.llm_api_key.get_secret_value()
    return cast("BaseChatModel", init_chat_model(settings.llm_model, **options))


class OfflineModel(BaseChatModel):
    """Follows the instructions of the system message by rules, and says that it is no real model."""

    @property
    def _llm_type(self) -> str:
        return "offline"

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,  # noqa: ARG002 - the base class's parameters
        run_manager: CallbackManagerForLLMRun | None = None,  # noqa: ARG002
        **_: Any,
    ) -> ChatResult:
        message = AIMessage(content=_answer(messages))
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,  # noqa: ARG002
        run_manager: CallbackManagerForLLMRun | None = None,  # noqa: ARG002
        **_: Any,
    ) -> Iterator[ChatGenerationChunk]:
        for word in re.findall(r"\S+\s*", _answer(messages)):
            yield ChatGenerationChunk(message=AIMessageChunk(content=word))


def _answer(messages: list[BaseMessage]) -> str:
    instructions = "\n".join(m.text for m in messages if isinstance(m, SystemMessage))
    text = "\n".join(m.text for m in messages if not isinstance(m, SystemMessage))
    if order := re.search(r"(?i)\banswer only with:\s*(.+)", instructions):
        return order[1]
    category = next(name for name, words in KEYWORDS.items() if re.search(f"(?i){words}", text))
    if re.search(r"(?i)\bclassify\b", instructions):
        return category
    return (
        "(Written by the offline model: set LLM_MODEL for a real one.)\n\n"
        f"Hello,\n\nthank you for your message. It is with our {category} team, which looks into "
        "it and answers within one working day.\n\nYour support team\n"
    )
