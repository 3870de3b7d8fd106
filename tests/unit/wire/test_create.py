from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retort.errors import InvalidRequest, RequestError
from retort.wire.create import CreateRequest, CreationConfig, SessionType, parse_create
from retort.wire.params import Params
from retort.wire.slots import Slots

NO_CONFIG = CreationConfig((), {}, {}, Slots(), {}, None, (), ())


def create(**keys):
    return parse_create(Params({"image": "gcc:12"} | keys))


def refused(field):
    return pytest.raises(InvalidRequest, match=f"^{field}: ")


def test_an_image_is_enough():
    assert create() == CreateRequest(
        name=None,
        image="gcc:12",
        architecture=None,
        session_type=SessionType.INTERACTIVE,
        group="default",
        domain="default",
        config=NO_CONFIG,
        tag=None,
        is_enqueue_only=False,
        max_wait_s=0,
        may_reuse=True,
        startup_command=None,
        starts_at=None,
        bootstrap_script=None,
        dependencies=(),
        callback_url=None,
        owner_access_key=None,
    )


def test_without_an_image_it_is_refused():
    for body in ({}, {"image": ""}, {"image": None}):
        with refused("image"):
            parse_create(Params(body))
    for image in ("a b", "a\n", "x" * 513, 5):
        with refused("image"):
            create(image=image)


@pytest.mark.parametrize("key", ["name", "session_name", "clientSessionToken"])
def test_the_name_has_three_spellings(key):
    assert create(**{key: "demo-1"}).name == "demo-1"


@pytest.mark.parametrize("name", ["abcd", "a..b", "_x-y_", "x" * 64, "0b8f2f6e-6f8c-4d0e"])
def test_good_names(name):
    assert create(name=name).name == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "abc",
        "x" * 65,
        "-abcd",
        "abcd-",
        ".abcd",
        "abcd.",
        "ab cd",
        "ab/cd",
        "äbcdef",
        "abcd\n",
        "create",
        "from-template",
        1234,
        ["abcd"],
        "../../etc",
    ],
)
def test_bad_names(name):
    with refused("name"):
        create(name=name)


def test_aliases_of_older_clients():
    request = parse_create(
        Params(
            {
                "lang": "python:3",
                "arch": "amd64",
                "sessionType": "BATCH",
                "groupName": "g",
                "domain_name": "d",
                "startupCommand": "make",
                "startsAt": "2024-03-05T01:02:03Z",
                "bootstrapScript": "true",
                "callbackURL": "https://h/x",
                "cluster_size": 1,
                "config": {
                    "clusterSize": 1,
                    "mountMap": {"a": "/b"},
                    "resourceOpts": {"shmem": "64m"},
                    "scalingGroup": "default",
                    "preopenPorts": [8080],
                    "agentList": ["i-1"],
                    "instanceMemory": 128,
                    "instanceCores": 1,
                },
            }
        )
    )
    assert (request.image, request.architecture) == ("python:3", "amd64")
    assert (request.group, request.domain) == ("g", "d")
    assert request.session_type is SessionType.BATCH
    assert request.startup_command == "make"
    assert request.starts_at == datetime(2024, 3, 5, 1, 2, 3, tzinfo=UTC)
    assert (request.bootstrap_script, request.callback_url) == ("true", "https://h/x")
    assert request.config == CreationConfig(
        (),
        {"a": "/b"},
        {},
        Slots(1.0, 128 << 20),
        {"shmem": "64m"},
        "default",
        (8080,),
        ("i-1",),
    )


def test_resources_win_over_the_legacy_keys():
    config = {"resources": {"mem": "1g"}, "instanceMemory": 5, "instanceCores": 2}
    assert create(config=config).config.slots == Slots(2.0, 1 << 30)


def test_unknown_keys_are_ignored():
    assert create(config={"unheard": [1]}, unheard={}) == create()


@pytest.mark.parametrize(
    ("field", "keys"),
    [
        ("type", {"type": "inference"}),
        ("type", {"type": "other"}),
        ("startupCommand", {"type": "batch"}),
        ("startupCommand", {"type": "batch", "startupCommand": "a\0"}),
        ("startupCommand", {"startupCommand": "a" * 65537}),
        ("starts_at", {"starts_at": "2024-03-05T01:02:03Z"}),
        ("starts_at", {"starts_at": "soon", "type": "batch", "startupCommand": "x"}),
        ("clusterSize", {"clusterSize": 2}),
        ("clusterSize", {"clusterSize": 0}),
        ("config.clusterSize", {"config": {"clusterSize": 2}}),
        ("clusterMode", {"clusterMode": "many"}),
        ("maxWaitSeconds", {"maxWaitSeconds": -1}),
        ("reuseIfExists", {"reuseIfExists": "perhaps"}),
        ("tag", {"tag": 5}),
        ("callback_url", {"callback_url": "file:///etc/passwd"}),
        ("dependencies", {"dependencies": "x"}),
        ("config", {"config": "x"}),
        ("config.mounts", {"config": {"mounts": "x"}}),
        ("config.mount_map", {"config": {"mount_map": {"a": 1}}}),
        ("config.environ", {"config": {"environ": {"a": 1}}}),
        ("config.environ", {"config": {"environ": {"a=b": "1"}}}),
        ("config.environ", {"config": {"environ": {"": "1"}}}),
        ("config.environ", {"config": {"environ": {"a": "\0"}}}),
        ("config.resources.gpu", {"config": {"resources": {"gpu": 1}}}),
        ("config.resources.mem", {"config": {"resources": {"mem": "much"}}}),
        ("config.resource_opts", {"config": {"resource_opts": []}}),
        ("config.preopen_ports", {"config": {"preopen_ports": [80]}}),
        ("config.preopen_ports", {"config": {"preopen_ports": [65536]}}),
        ("config.preopen_ports", {"config": {"preopen_ports": [True]}}),
        ("config.preopen_ports", {"config": {"preopen_ports": 8080}}),
        ("config.agent_list", {"config": {"agent_list": [1]}}),
    ],
)
def test_bad_values_are_refused_by_name(field, keys):
    with refused(field):
        create(**keys)


KEYS = [
    "name",
    "image",
    "type",
    "group",
    "config",
    "clusterSize",
    "clusterMode",
    "tag",
    "enqueueOnly",
    "maxWaitSeconds",
    "reuseIfExists",
    "startupCommand",
    "starts_at",
    "bootstrap_script",
    "dependencies",
    "callback_url",
]
CONFIG_KEYS = [
    "mounts",
    "mount_map",
    "environ",
    "resources",
    "preopen_ports",
    "instanceMemory",
    "agent_list",
]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=4,
)


@given(
    st.dictionaries(st.sampled_from(KEYS), VALUES),
    st.dictionaries(st.sampled_from(CONFIG_KEYS), VALUES),
)
def test_any_body_makes_a_request_or_is_refused(body, config):
    for document in (body, body | {"image": "x", "config": config}):
        try:
            request = parse_create(Params(document))
        except RequestError:
            continue
        assert request.image
