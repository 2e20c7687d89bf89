"""Results in Redis, where it is the broker, without a subscription to each."""

from typing import Any

from celery.backends.redis import RedisBackend


class QuietRedisBackend(RedisBackend):  # type: ignore[misc] # Celery has no types
    """Redis for results, to which only those subscribe who wait for one with `get()`.

    Celery's own subscribes to the result of every job that it sends, and reads none of them.
    """

    def on_task_call(self, producer: Any, task_id: str) -> None:
        """Do not subscribe."""

    def add_pending_result(self, result: Any, *_: Any, **__: Any) -> Any:
        """Do not subscribe."""
        return result

    def remove_pending_result(self, result: Any) -> Any:
        """Unsubscribe, if there is a subscription."""
        if not self.result_consumer.subscribed_to:
            return result
        return super().remove_pending_result(result)

    def wait_for_pending(self, result: Any, *args: Any, **options: Any) -> Any:
        """Subscribe, and wait for a result."""
        super().add_pending_result(result)
        return super().wait_for_pending(result, *args, **options)

    def iter_native(self, result: Any, *args: Any, **options: Any) -> Any:
        """Subscribe, and wait for the results of a group."""
        for each in result.results:
            super().add_pending_result(each)
        base: Any = super()
        return base.iter_native(result, *args, **options)
