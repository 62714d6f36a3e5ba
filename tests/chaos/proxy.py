"""A TCP proxy that makes a network slow and unreliable."""

import asyncio
import socket
import struct
import threading
from types import TracebackType
from typing import Self

from infra.local.embedded_broker import free_port

CHUNK = 64 << 10


class Proxy:
    """Passes bytes on to ``target``: each chunk ``delay_s`` late; ``reset`` breaks every connection as a failing router does."""

    def __init__(self, target: int) -> None:
        self.port, self._target = free_port(), target
        self.delay_s = 0.0
        self.passed_bytes = 0
        self._loop = asyncio.new_event_loop()
        self._writers: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)

    def reset(self) -> int:
        """Break every connection; returns how many there were."""

        async def broken() -> int:
            for writer in self._writers:
                raw = writer.get_extra_info("socket")
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a close is then a reset
                writer.transport.abort()
            count, self._writers = len(self._writers), set()
            return count

        return asyncio.run_coroutine_threadsafe(broken(), self._loop).result(30)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", self.port))
        self._loop.run_forever()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, there[1]}
        await asyncio.gather(self._pass(reader, there[1]), self._pass(there[0], writer))
        self._writers -= {writer, there[1]}

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while chunk := await reader.read(CHUNK):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                self.passed_bytes += len(chunk)
                writer.write(chunk)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()
