"""Requests exactly as the public clients send them, read from start to end."""

import json

from retort.wire.create import SessionType, parse_create
from retort.wire.params import Params
from retort.wire.runs import BatchOptions, ExecuteRequest, Mode, parse_execute, parse_stream_start
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
    batch = BatchOptions(has_clean=True, clean=None, build="*", exec="./main")
    assert request == ExecuteRequest(Mode.BATCH, "", "r1", batch)
    old = {"type": "batch", "code": "", "runId": "r1", "options": {"build": "*", "exec": "*"}}
    request = parse_execute(Params.merge(json.dumps(old).encode()))
    batch = BatchOptions(has_clean=False, build="*", exec="*")
    assert request == ExecuteRequest(Mode.BATCH, "", "r1", batch)


def test_first_stream_message_of_the_run_command():
    request = parse_stream_start(
        '{"code": "", "mode": "batch",'
        ' "options": {"clean": "*", "build": "*", "buildLog": false, "exec": "*"}}'
    )
    assert request == ExecuteRequest(Mode.BATCH, "", None, BatchOptions(True, "*", "*", "*"))
