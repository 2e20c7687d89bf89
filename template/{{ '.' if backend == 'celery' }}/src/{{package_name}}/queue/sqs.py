"""SQS as a broker: a worker asks again where it did not answer."""

from typing import Any

from kombu.transport import SQS


class Channel(SQS.Channel):  # type: ignore[misc] # kombu has no types
    """A channel that survives errors of the server and of the network.

    kombu takes them for an empty list of messages, of which it then asks for an item of a mapping:
    that would end the worker (celery/celery#8243).
    """

    def _on_messages_ready(self, queue: str, qname: str, messages: Any) -> Any:
        return super()._on_messages_ready(queue, qname, messages or {})


class Transport(SQS.Transport):  # type: ignore[misc] # as above
    """SQS, with channels of this module."""

    Channel = Channel
