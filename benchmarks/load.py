"""A load generator for HTTP: posts one request again and again over kept-alive connections.

Prints how many answers came, and how many of them were errors. It is run by `jobs.py`, in a
process of its own; a program such as wrk does the same faster, but has to be installed.
"""

import argparse
import asyncio
import json
import re
import time

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Load:
    """The request, and what became of it so far."""

    def __init__(self, request: bytes) -> None:
        self.request = request
        self.answers = 0
        self.errors = 0
        self.running = True


class Connection(asyncio.Protocol):
    """Sends a request, waits for the answer, and sends the next."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the first request."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - it is TCP's
        self._transport = transport
        transport.write(self._load.request)

    def data_received(self, data: bytes) -> None:
        """Count an answer when it is complete."""
        self._received += data
        head, separator, body = self._received.partition(b"\r\n\r\n")
        length = LENGTH.search(head)
        if not separator or (length and len(body) < int(length[1])):
            return
        self._received = b""
        self._load.answers += 1
        self._load.errors += not head.startswith(b"HTTP/1.1 2")
        if self._load.running:
            self._transport.write(self._load.request)

    def connection_lost(self, exc: Exception | None) -> None:
        """Count a lost connection as an error."""
        del exc
        self._load.errors += self._load.running


async def post(port: int, request: bytes, connections: int, seconds: float) -> Load:
    """Send a request for some time over so many connections."""
    load = Load(request)
    loop = asyncio.get_running_loop()
    opened = [
        await loop.create_connection(lambda: Connection(load), "127.0.0.1", port)
        for _ in range(connections)
    ]
    await asyncio.sleep(seconds)
    load.running = False
    for transport, _ in opened:
        transport.close()
    return load


async def main() -> None:
    """Warm the server up, then measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("path")
    parser.add_argument("body")
    parser.add_argument("--key", default="")
    parser.add_argument("--connections", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=3)
    options = parser.parse_args()
    body = options.body.encode()
    head = (
        f"POST {options.path} HTTP/1.1\r\nHost: 127.0.0.1:{options.port}\r\n"
        f"Authorization: Bearer {options.key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    target = (options.port, head.encode() + body, options.connections)
    await post(*target, seconds=options.seconds / 5)
    start = time.perf_counter()
    load = await post(*target, seconds=options.seconds)
    seconds = time.perf_counter() - start
    print(json.dumps({"per_second": load.answers / seconds, "errors": load.errors}))


if __name__ == "__main__":
    asyncio.run(main())
