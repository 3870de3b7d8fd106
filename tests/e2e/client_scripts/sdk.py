"""The synchronous SDK, used as its documentation shows."""

import json
import uuid
from contextlib import contextmanager
from pathlib import Path

import scenario
from ai.backend.client.exceptions import BackendAPIError
from ai.backend.client.session import Session


@contextmanager
def computing(image, **options):
    """Make a session and destroy it in the end."""
    with Session() as api:
        session = api.ComputeSession.get_or_create(image, name=new_name(), **options)
        try:
            yield session
        finally:
            session.destroy()


def new_name():
    return f"sdk-{uuid.uuid4().hex[:12]}"


def caught(call, *args, **options):
    """Make a call that has to fail and give the problem."""
    try:
        call(*args, **options)
    except BackendAPIError as error:
        return scenario.problem(error)
    raise AssertionError("no error came")


def run(session, mode="batch", code="", inputs=(), **options):
    """Run the execute loop to its end and give every answer."""
    answers, inputs, run_id = [], list(inputs), None
    while not answers or answers[-1]["status"] not in ("finished", "exec-timeout"):
        answers.append(session.execute(run_id, code, mode=mode, opts=options))
        run_id = answers[-1]["runId"]
        mode, code = "continue", ""
        if answers[-1]["status"] == "waiting-input":
            mode, code = "input", inputs.pop(0)
    return answers


def shell(session, command):
    """Run one shell command and give what it printed."""
    answers = run(session, exec=command)
    return "".join(text for answer in answers for kind, text in answer["console"])


def versions():
    with Session() as api:
        return api.System.get_versions()


def get_or_create():
    name = new_name()
    with Session() as api:
        create = api.ComputeSession.get_or_create
        first, second = create("gcc", name=name), create("gcc", name=name)
        told = {
            "first": [str(first.id), first.created, first.status, first.service_ports],
            "second": [str(second.id), second.created, second.status, second.service_ports],
            "other_image": caught(create, "python", name=name),
            "no_reuse": caught(create, "gcc", name=name, no_reuse=True),
            "unknown_image": caught(create, "no-such-image", name=new_name()),
        }
        first.destroy()
        third = create("python", name=name)
        third.destroy()
        return {**told, "after": [str(third.id), third.created]}


def round_trip(source, destination):
    """Upload every file of a folder, and download everything there is in the session."""
    with computing("bash") as session:
        files = [path for path in Path(source).rglob("*") if path.is_file()]
        session.upload(files, basedir=source)
        entries = json.loads(session.list_files()["files"])
        top = [entry["filename"] for entry in entries]
        for start in range(0, len(top), 5):  # as many paths as go into one download
            session.download(top[start : start + 5], dest=destination)
        return {"listed": top, "count": len(files)}


def upload_limits(folder):
    folder = Path(folder)
    with computing("bash") as session:

        def send(*files):
            return session.upload([folder / file for file in files], basedir=folder)

        few = [f"{number}.txt" for number in range(21)]
        told = {"too_many": caught(send, *few), "too_large": caught(send, "0.txt", "larger")}
        told["left"] = json.loads(session.list_files()["files"])
        send(*few[:20])
        send("largest")
        told["kept"] = {e["filename"]: e["size"] for e in json.loads(session.list_files()["files"])}
        return told


def batch(folder, image, options, inputs="[]"):
    """Upload the files of a folder and run a batch."""
    with computing(image) as session:
        session.upload(list(Path(folder).iterdir()), basedir=folder)
        return run(session, inputs=json.loads(inputs), **json.loads(options))


def query(image, code, inputs="[]"):
    with computing(image) as session:
        return run(session, mode="query", code=code, inputs=json.loads(inputs))


def environ():
    with computing("bash", envs={"GREETING": "grüß dich"}) as session:
        return shell(session, 'printf %s "$GREETING"')


def info():
    with computing("gcc") as session:
        shell(session, "true")
        return session.get_info()


def interrupt(folder):
    with computing("python") as session:
        session.interrupt()  # nothing runs, and nothing happens
        session.upload([Path(folder) / "main.py"], basedir=folder)
        answers = [session.execute(None, "", mode="batch", opts={"exec": "python3 main.py"})]
        run_id = answers[0]["runId"]
        while not any("ready" in text for a in answers for _, text in a["console"]):
            answers.append(session.execute(run_id, "", mode="continue"))
        session.interrupt()
        while answers[-1]["status"] != "finished":
            answers.append(session.execute(run_id, "", mode="continue"))
        return answers


def restart():
    """Restart a session in the middle of a run."""
    with computing("bash", envs={"KEPT": "yes"}) as session:
        command = "mkdir d; echo text > d/f; exec sleep 1000"
        answers = [session.execute(None, "", mode="batch", opts={"exec": command})]
        while answers[-1]["status"] != "continued":
            answers.append(session.execute(answers[0]["runId"], "", mode="continue"))
        session.restart()
        return {
            "interrupted": session.execute(answers[0]["runId"], "", mode="continue"),
            "sleeping": shell(session, "cat /proc/[0-9]*/comm 2>/dev/null | grep -c sleep"),
            "file": shell(session, "cat d/f; echo $KEPT"),
            "status": session.get_info()["status"],
        }


def rename():
    new = new_name()
    with Session() as api:
        session = api.ComputeSession.get_or_create("bash", name=new_name())
        session.rename(new)
        old = caught(session.get_info)
        renamed = api.ComputeSession(new)
        told = {"old": old, "printed": shell(renamed, "echo still here")}
        renamed.destroy()
        return told


def listing():
    with computing("bash") as session:
        shell(session, "mkdir -m 750 'ä ö'; echo hi > 'ä ö/.x'; ln -s .x 'ä ö/l'; touch -d @99 old")
        return {
            "top": session.list_files(),
            "folder": session.list_files("ä ö"),
            "absolute": session.list_files("/home/work/ä ö"),
            "missing": caught(session.list_files, "missing"),
            "outside": caught(session.list_files, "../.."),
            "file": caught(session.list_files, "old"),
        }


def download_limits(destination):
    with computing("bash") as session:
        shell(session, "touch 1 2 3 4 5 6; mkdir d; ln -s /etc/hostname link")
        return {
            "too_many": caught(session.download, list("123456"), dest=destination),
            "missing": caught(session.download, ["1", "missing"], dest=destination),
            "outside": caught(session.download, ["../../etc/passwd"], dest=destination),
            "five": session.download(list("12345"), dest=destination)["file_names"],
        }


def destroy():
    with Session() as api:
        session = api.ComputeSession.get_or_create("python", name=new_name())
        run(session, mode="query", code="sum(range(3_000_000))")
        return {
            "first": session.destroy(),
            "second": caught(session.destroy),
            "execute": caught(session.execute, None, "", mode="batch"),
        }


def errors():
    """Calls that a careless program makes."""
    with computing("bash") as session:
        return {
            "continue": caught(session.execute, None, "", mode="continue"),
            "stale": caught(session.execute, "no-such-run", "", mode="continue"),
            "options": caught(session.execute, None, "", mode="batch", opts={"exec": 5}),
        }


def create(name):
    """Make a session that stays."""
    with Session() as api:
        session = api.ComputeSession.get_or_create("bash", name=name)
        return [str(session.id), session.created]


def reach(name):
    """Try everything on a session that this user does not have."""
    with Session() as api:
        session = api.ComputeSession(name)
        return [
            caught(session.get_info),
            caught(session.execute, None, "", mode="batch", opts={"exec": "true"}),
            caught(session.upload, [__file__], basedir=Path(__file__).parent),
            caught(session.list_files),
            caught(session.download, ["x"]),
            caught(session.interrupt),
            caught(session.restart),
            caught(session.rename, new_name()),
            caught(session.destroy),
        ]


def end(name):
    with Session() as api:
        return api.ComputeSession(name).destroy()


def refused_upload(folder):
    """Go on with the same connections after an upload that is refused before it is read."""
    folder = Path(folder)
    with Session() as api:
        session = api.ComputeSession(new_name())
        problems = []
        for _ in range(3):
            problems.append(caught(session.upload, list(folder.iterdir()), basedir=folder))
            problems.append(caught(session.list_files))
        return problems


def refused():
    """Make a call that fails before it reaches a session."""
    with Session() as api:
        return caught(api.ComputeSession.get_or_create, "bash", name=new_name())


if __name__ == "__main__":
    scenario.main(globals())
