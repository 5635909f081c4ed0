"""A connection whose peer does not read is dropped, so that it does not delay others."""

import asyncio

import aiohttp
from aiohttp import web
from savepoint.contract.control_protocol import Wait
from savepoint.errors import Unavailable
from savepoint_operator.control.connection import Connection


async def test_a_peer_that_does_not_read_is_disconnected() -> None:
    flood = Wait("PredecessorRunning", "x" * 500_000)
    outcome: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()

    async def serve(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(compress=False, timeout=0.1)
        await socket.prepare(request)
        connection = Connection(socket, request, send_seconds=0.2)
        try:
            for _ in range(1000):
                await connection.send(flood)
        except Unavailable as error:
            outcome.set_result(error)
        await connection.close(1000, "")
        return socket

    application = web.Application()
    application.router.add_get("/", serve)
    runner = web.AppRunner(application, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with aiohttp.ClientSession() as session:
            socket = await session.ws_connect(f"http://127.0.0.1:{runner.addresses[0][1]}/", max_msg_size=0)
            error = await asyncio.wait_for(outcome, 10)
            assert "not read" in str(error)
            await socket.close()
    finally:
        await runner.cleanup()
