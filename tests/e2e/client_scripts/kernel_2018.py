"""Client 1.3.7, of 2018: the word is kernel, and every path begins with /v2."""

import asyncio
import json
import uuid
from pathlib import Path

import scenario
from ai.backend.client import BackendAPIError, Kernel
from ai.backend.client.asyncio import AsyncKernel
from ai.backend.client.request import shutdown


def new_name():
    return f"old-{uuid.uuid4().hex[:12]}"


def caught(call, *args, **options):
    """Make a call that has to fail and give the problem."""
    try:
        call(*args, **options)
    except BackendAPIError as error:
        return scenario.problem(error)
    raise AssertionError("no error came")


def run(kernel, mode="batch", code="", inputs=(), **options):
    """Run the execute loop to its end and give every answer."""
    answers, inputs, run_id = [], list(inputs), None
    while not answers or answers[-1]["status"] != "finished":
        answers.append(kernel.execute(run_id, code, mode=mode, opts=options))
        run_id = answers[-1]["runId"]
        mode, code = "continue", ""
        if answers[-1]["status"] == "waiting-input":
            mode, code = "input", inputs.pop(0)
    return answers


def life(folder):
    """Do once what a kernel is made for."""
    name = new_name()
    kernel = Kernel.get_or_create("gcc", name)
    again = Kernel.get_or_create("gcc", name)
    sent = kernel.upload([p for p in Path(folder).rglob("*") if p.is_file()], basedir=folder)
    told = {
        "created": [kernel.created, again.created, kernel.kernel_id == again.kernel_id],
        "uploaded": [sent.status, sent.json()],
        "too_many": caught(kernel.upload, [Path(folder) / "main.c"] * 21, basedir=folder),
        "batch": run(kernel, build="*", exec="./main; ls -R", inputs=["Jürg", "三"]),
        "failing": run(kernel, build="exit 3", exec="echo never"),
        "info": kernel.get_info(),
        "completed": kernel.complete("pri", {"row": 0, "col": 3, "line": "pri", "post": ""}),
        "other_image": caught(Kernel.get_or_create, "python", name),
    }
    kernel.interrupt()
    kernel.restart()
    told["kept"] = run(kernel, exec="ls")
    told["destroyed"] = kernel.destroy()
    told["again"] = caught(kernel.destroy)
    return told


def query(image, code, inputs="[]"):
    kernel = Kernel.get_or_create(image, new_name(), envs={"GREETING": "grüß"})
    try:
        return run(kernel, mode="query", code=code, inputs=json.loads(inputs))
    finally:
        kernel.destroy()


def asynchronously():
    async def life():
        kernel = await AsyncKernel.get_or_create("bash", new_name())
        answers = [await kernel.execute(None, "", mode="batch", opts={"exec": "echo hi"})]
        while answers[-1]["status"] != "finished":
            answers.append(await kernel.execute(answers[0]["runId"], "", mode="continue"))
        return answers, await kernel.destroy()

    return asyncio.run(life())


def refused():
    return caught(Kernel.get_or_create, "bash", new_name())


if __name__ == "__main__":
    scenario.main(globals())
    shutdown()
