"""The asynchronous SDK, with runs over one WebSocket each."""

import asyncio
import json
import uuid
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import scenario
from ai.backend.client.exceptions import BackendAPIError
from ai.backend.client.session import AsyncSession


@asynccontextmanager
async def computing(image):
    """Make a session and destroy it in the end."""
    async with AsyncSession() as api:
        name = f"sdk-{uuid.uuid4().hex[:12]}"
        session = await api.ComputeSession.get_or_create(image, name=name)
        try:
            yield session
        finally:
            await session.destroy()


async def stream(session, code="", mode="batch", inputs=(), **options):
    """Run over a WebSocket until the server closes it; give every message."""
    messages, inputs = [], list(inputs)
    async with session.stream_execute(code, mode=mode, opts=options) as socket:
        async for message in socket:
            if message.type != aiohttp.WSMsgType.TEXT:
                continue
            messages.append(json.loads(message.data))
            if messages[-1]["status"] == "waiting-input":
                await socket.send_str(inputs.pop(0))
    return messages


async def polled(session, **options):
    answers, run_id, mode = [], None, "batch"
    while not answers or answers[-1]["status"] != "finished":
        answers.append(await session.execute(run_id, "", mode=mode, opts=options))
        run_id, mode = answers[-1]["runId"], "continue"
    return answers


def files_of(folder):
    return list(Path(folder).iterdir())


async def batch(folder, image, options, inputs="[]"):
    async with computing(image) as session:
        await session.upload(files_of(folder), basedir=folder)
        return await stream(session, inputs=json.loads(inputs), **json.loads(options))


async def query(image, code, inputs="[]"):
    async with computing(image) as session:
        return await stream(session, code, mode="query", inputs=json.loads(inputs))


async def side_by_side():
    """Let two sessions wait for each other's turn at the same time."""
    async with computing("bash") as one, computing("bash") as other:
        return await asyncio.gather(
            stream(one, exec="read line; echo one $line", inputs=["1"]),
            stream(other, exec="read line; echo other $line", inputs=["2"]),
            polled(other, exec="echo polled"),
        )


async def files(destination):
    async with computing("bash") as session:
        await session.upload([__file__], basedir=Path(__file__).parent)
        listed = json.loads((await session.list_files())["files"])
        await session.download([Path(__file__).name], dest=destination)
        info = await session.get_info()
        return {"listed": [entry["filename"] for entry in listed], "status": info["status"]}


async def leave_early():
    """Go away in the middle of a run, then see what became of its program."""
    async with computing("bash") as session:
        options = {"exec": "echo ready; sleep 1001"}
        async with session.stream_execute("", mode="batch", opts=options) as socket:
            async for message in socket:
                if json.loads(message.data)["console"]:
                    break
        # The next run waits its turn until the forgotten one is gone.
        return await polled(session, exec="cat /proc/[0-9]*/comm 2>/dev/null | grep -c sleep")


async def gone():
    """Give the problems of calls on a session that was destroyed."""
    async with AsyncSession() as api:
        session = await api.ComputeSession.get_or_create("bash", name=f"sdk-{uuid.uuid4().hex}")
        await session.destroy()
        told = []
        for call in (session.get_info, session.destroy, session.list_files):
            try:
                await call()
            except BackendAPIError as error:
                told.append(scenario.problem(error))
        return told


def synchronously(name):
    return lambda *args: asyncio.run(globals()[name](*args))


if __name__ == "__main__":
    scenario.main({name: synchronously(name) for name in list(globals())})
