"""Requests exactly as the public clients send them, read from start to end."""

import json

import pytest

from retort.core.run import Mode, RunRequest
from retort.wire.create import SessionType, parse_create
from retort.wire.files import upload_name
from retort.wire.params import Params
from retort.wire.runs import parse_execute, parse_stream_start
from retort.wire.slots import Slots
from retort.wire.targets import route_target

CREATE_V7 = b"""
{"tag": null, "name": "pysdk-jdoe", "config": {"mounts": [], "environ": {}, "resources": {},
 "resource_opts": {}, "scalingGroup": null, "mount_map": {}, "preopen_ports": []},
 "dependencies": null, "callback_url": null, "architecture": "x86_64", "clusterSize": 1,
 "clusterMode": "single-node", "starts_at": null, "bootstrap_script": null,
 "owner_access_key": null, "domain": "default", "group": "default", "type": "interactive",
 "enqueueOnly": false, "maxWaitSeconds": 0, "reuseIfExists": true, "startupCommand": null,
 "image": "gcc:12"}
"""


def test_create_of_the_reference_client():
    request = parse_create(Params.merge(CREATE_V7, {}))
    assert (request.name, request.image) == ("pysdk-jdoe", "gcc:12")
    assert request.session_type is SessionType.INTERACTIVE
    assert (request.may_reuse, request.is_enqueue_only, request.max_wait_s) == (True, False, 0)
    assert (request.config.slots, request.config.scaling_group) == (Slots(), None)
    assert (request.dependencies, request.owner_access_key) == ((), None)


def test_create_of_a_client_of_version_2():
    target = route_target("/v2/kernel/create", "POST")
    assert (target.segments, target.generation) == (("session",), 2)
    body = {
        "lang": "python:3",
        "clientSessionToken": "my-session",
        "config": {"mounts": None, "environ": None, "clusterSize": 1, "instanceMemory": None},
    }
    request = parse_create(Params.merge(json.dumps(body).encode(), target.query))
    assert (request.image, request.name) == ("python:3", "my-session")


def test_execute_of_both_seed_pages():
    options = {"clean": None, "build": "*", "buildLog": False, "exec": "./main"}
    new = {"mode": "batch", "code": "", "runId": "r1", "options": options}
    request = parse_execute(Params.merge(json.dumps(new).encode()))
    assert request == RunRequest(Mode.BATCH, "", "r1", True, None, "*", "./main")
    old = {"type": "batch", "code": "", "runId": "r1", "options": {"build": "*", "exec": "*"}}
    request = parse_execute(Params.merge(json.dumps(old).encode()))
    assert request == RunRequest(Mode.BATCH, "", "r1", False, None, "*", "*")


def test_first_stream_message_of_the_run_command():
    request = parse_stream_start(
        '{"code": "", "mode": "batch",'
        ' "options": {"clean": "*", "build": "*", "buildLog": false, "exec": "*"}}'
    )
    assert request == RunRequest(Mode.BATCH, "", None, True, "*", "*", "*")


# (name, header) as the HTTP library of the reference client writes it, and of the first clients.
DISPOSITIONS = [
    ("src/main.c", 'form-data; name="src"; filename="src%2Fmain.c"'),
    ("ä b%.c", 'form-data; name="src"; filename="%C3%A4%20b%25.c"'),
    ('q"u\\o.txt', 'form-data; name="src"; filename="q%22u%5Co.txt"'),
    ("100%41", 'form-data; name="src"; filename="100%2541"'),
    ("x\ny", 'form-data; name="src"; filename="x%0Ay"'),
    ("%2F", 'form-data; name="src"; filename="%252F"'),
    ("😀/;'*", 'form-data; name="src"; filename="%F0%9F%98%80%2F%3B%27%2A"'),
    ("src/main.c", 'form-data; name="src"; filename="src/main.c"'),
]


@pytest.mark.parametrize(("name", "header"), DISPOSITIONS)
def test_upload_names_of_the_reference_client(name, header):
    assert upload_name(header) == name
