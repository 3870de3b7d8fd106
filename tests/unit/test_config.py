from __future__ import annotations

import ast
import dataclasses
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

from retort.config import Config, ConfigError, load, sections
from retort.core.image import ImageLimits
from retort.core.keypair import KeyPolicy
from retort.core.limits import Limits
from retort.units import format_bytes, parse_listen

DOC = Path(__file__).parents[2] / "docs" / "configuration.md"


def _load(
    toml: str = "", *, tmp_path: Path, environ: dict[str, str] | None = None, **flags: object
) -> Config:
    (tmp_path / "retort.toml").write_text(toml, "utf-8")
    given = {key.replace("__", "."): value for key, value in flags.items()}
    return load(flags={"state.folder": tmp_path, **given}, environ=environ or {})


# --- documentation ------------------------------------------------------------------------------


def _comments() -> Iterator[tuple[str, str]]:
    """Every key, as section.field, with the `#:` comment above its field."""
    source = inspect.getsource(sections)
    lines = source.splitlines()
    classes = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}
    for section in dataclasses.fields(Config):
        kind = type(getattr(Config(), section.name))
        for node in classes[kind.__name__].body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                above, row = [], node.lineno - 2
                while lines[row].strip().startswith("#:"):
                    above.insert(0, lines[row].strip().removeprefix("#:").strip())
                    row -= 1
                yield f"{section.name}.{node.target.id}", " ".join(above)


def _default(key: str) -> str:
    section, field = key.split(".")
    if key == "state.folder":
        return "see above"
    value = getattr(getattr(Config(), section), field)
    if value is None or value == {}:
        return "unset"
    if isinstance(value, int) and "bytes" in field:
        return f"`{format_bytes(value)}`"
    return f"`{value}`" if value != "" else '`""`'


def table() -> str:
    """The table of docs/configuration.md, as the comments have it."""
    rows = [f"| `{key}` | {_default(key)} | {text} |" for key, text in _comments()]
    return "\n".join(["| key | default | meaning |", "|---|---|---|", *rows])


@pytest.mark.parametrize(("key", "text"), list(_comments()))
def test_every_field_has_its_sentence(key: str, text: str) -> None:
    assert text.endswith("."), f"{key} needs a `#:` comment"


def test_every_field_was_seen() -> None:
    sections = [getattr(Config(), section.name) for section in dataclasses.fields(Config)]

    assert len(list(_comments())) == sum(len(dataclasses.fields(section)) for section in sections)


def test_the_table_of_the_docs_is_the_comments() -> None:
    assert table() in DOC.read_text("utf-8"), f"put this into {DOC.name}:\n{table()}"


def test_the_example_of_the_docs_can_be_loaded(tmp_path: Path) -> None:
    example = DOC.read_text("utf-8").split("```toml\n")[1].split("```")[0]

    loaded = _load(example, tmp_path=tmp_path)

    assert loaded.runs.wall_s == 90.0
    assert loaded.sandbox.scratch_bytes == 2**30
    assert loaded.sandbox.image_aliases == {"c": "gcc:12-debian"}


# --- defaults -----------------------------------------------------------------------------------


def test_defaults_are_those_of_core(tmp_path: Path) -> None:
    loaded = _load(tmp_path=tmp_path)

    assert loaded.limits == Limits()
    assert loaded.keys.policy == KeyPolicy()


def test_a_wall_limit_of_runs_is_one_of_the_sessions_limits(tmp_path: Path) -> None:
    loaded = _load("[runs]\nwall_s = 1\n[sandbox]\ncpus = 2", tmp_path=tmp_path)

    assert (loaded.limits, loaded.runs.wall_s) == (Limits(cpus=2.0), 1.0)


@pytest.mark.parametrize(
    ("uid", "environ", "folder"),
    [
        (0, {"HOME": "/root", "XDG_STATE_HOME": "/x"}, "/var/lib/retort"),
        (1000, {"HOME": "/home/ann"}, "/home/ann/.local/state/retort"),
        (1000, {"HOME": "/home/ann", "XDG_STATE_HOME": "/x"}, "/x/retort"),
    ],
)
def test_the_state_folder_is_the_users_own(
    monkeypatch: pytest.MonkeyPatch, uid: int, environ: dict[str, str], folder: str
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: uid)

    assert load(environ=environ).state.folder == Path(folder)


# --- later wins ---------------------------------------------------------------------------------


def test_a_file_wins_over_the_default(tmp_path: Path) -> None:
    loaded = _load("[server]\nport = 1", tmp_path=tmp_path)

    assert loaded.server.port == 1
    assert loaded.server.host == "127.0.0.1"


def test_a_variable_wins_over_the_file(tmp_path: Path) -> None:
    environ = {"RETORT_SERVER_PORT": "2"}

    assert _load("[server]\nport = 1", tmp_path=tmp_path, environ=environ).server.port == 2


def test_a_flag_wins_over_the_variable(tmp_path: Path) -> None:
    environ = {"RETORT_SERVER_PORT": "2"}

    assert _load(tmp_path=tmp_path, environ=environ, server__port=3).server.port == 3


def test_a_flag_that_was_not_given_changes_nothing(tmp_path: Path) -> None:
    assert _load("[server]\nport = 1", tmp_path=tmp_path, server__port=None).server.port == 1


def test_the_state_folder_may_come_from_a_variable(tmp_path: Path) -> None:
    (tmp_path / "retort.toml").write_text("[server]\nport = 1")

    loaded = load(environ={"RETORT_STATE_FOLDER": str(tmp_path)})

    assert (loaded.state.folder, loaded.server.port) == (tmp_path, 1)


def test_a_named_file_replaces_that_of_the_state_folder_and_may_name_it(tmp_path: Path) -> None:
    (tmp_path / "retort.toml").write_text("[server]\nport = 1")
    named = tmp_path / "other.toml"
    named.write_text(f"[state]\nfolder = '{tmp_path}'")

    loaded = load(file=named, environ={})

    assert (loaded.state.folder, loaded.server.port) == (tmp_path, 8090)


def test_the_file_in_the_state_folder_cannot_move_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"state\.folder cannot be set"):
        _load("[state]\nfolder = '/elsewhere'", tmp_path=tmp_path)


# --- values -------------------------------------------------------------------------------------


def test_bytes_and_durations_may_be_texts(tmp_path: Path) -> None:
    toml = "[http]\njson_bytes = '2 MiB'\nbody_min_rate_bytes_s = '8k'\n[runs]\nwall_s = '1m30s'"
    loaded = _load(toml, tmp_path=tmp_path)

    assert loaded.http.json_bytes == 2 * 2**20
    assert loaded.http.body_min_rate_bytes_s == 8192
    assert loaded.runs.wall_s == 90.0


def test_variables_of_every_kind_are_read(tmp_path: Path) -> None:
    environ = {
        "RETORT_HTTP_JSON_BYTES": "2m",
        "RETORT_RUNS_WALL_S": "1.5",
        "RETORT_RUNS_POLL_S": "250ms",
        "RETORT_SANDBOX_CPUS": "0.5",
        "RETORT_SANDBOX_PROCESSES": "7",
        "RETORT_SANDBOX_IMAGE_ALIASES": "c=gcc:12-debian, py=python:3",
        "RETORT_SANDBOX_IMAGE_LIMITS": "gcc=cpu=0.5 mem=64m, python:3=wall_s=9",
        "RETORT_SERVER_PUBLIC_URL": "https://x",
    }
    loaded = _load("[database]\nurl = 'sqlite:///x'", tmp_path=tmp_path, environ=environ)

    assert loaded.http.json_bytes == 2 * 2**20
    assert (loaded.runs.wall_s, loaded.runs.poll_s) == (1.5, 0.25)
    assert (loaded.sandbox.cpus, loaded.sandbox.processes) == (0.5, 7)
    assert loaded.sandbox.image_aliases == {"c": "gcc:12-debian", "py": "python:3"}
    assert loaded.image_limits == {
        "gcc": ImageLimits(cpus=0.5, memory_bytes=64 * 2**20), "python:3": ImageLimits(wall_s=9.0)
    }  # fmt: skip
    assert (loaded.server.public_url, loaded.database.url) == ("https://x", "sqlite:///x")


def test_an_empty_variable_unsets(tmp_path: Path) -> None:
    environ = {"RETORT_RUNS_WALL_S": ""}

    assert _load("[runs]\nwall_s = 3", tmp_path=tmp_path, environ=environ).runs.wall_s is None


@pytest.mark.parametrize(
    ("toml", "names"),
    [
        ("[server]\nport = '8090'", "server.port"),
        ("[server]\nport = true", "server.port"),
        ("[server]\nport = 1.5", "server.port"),
        ("[server]\nport = -1", "server.port"),
        ("[server]\nport = 65536", "server.port"),
        ("[server]\nhost = 1", "server.host"),
        ("[server]\nhost = ''", "server.host"),
        ("[server]\nbase_path = 'x'", "server.base_path"),
        ("[server]\nbase_path = '/x/'", "server.base_path"),
        ("[server]\npublic_url = 'x'", "server.public_url"),
        ("[http]\njson_bytes = 'many'", "http.json_bytes"),
        ("[http]\njson_bytes = -1", "http.json_bytes"),
        ("[http]\njson_bytes = 0", "http.json_bytes"),
        ("[runs]\nwall_s = 0", "runs.wall_s"),
        ("[runs]\npoll_s = 'soon'", "runs.poll_s"),
        ("[runs]\npoll_s = true", "runs.poll_s"),
        ("[runs]\npoll_s = -1", "runs.poll_s"),
        ("[sandbox]\ncpus = 0", "sandbox.cpus"),
        ("[sandbox]\ncpus = inf", "sandbox.cpus"),
        ("[sandbox]\nimage_aliases = {c = 1}", "sandbox.image_aliases"),
        ("[sandbox]\nimage_limits = {gcc = 'cpu=0'}", "sandbox.image_limits: gcc: cpu must be"),
        ("[sandbox]\nimage_limits = {gcc = 1}", "sandbox.image_limits"),
        ("[sandbox]\nhost_uid_first = 0", "sandbox.host_uid_first"),
        ("[sandbox]\nhost_uid_count = 3000000000", "sandbox.host_uid_first"),
        ("[sandbox]\nhost_uid_count = 1", "sandbox.host_uid_count"),
    ],
)
def test_a_wrong_value_names_its_key(tmp_path: Path, toml: str, names: str) -> None:
    with pytest.raises(ConfigError, match=names):
        _load(toml, tmp_path=tmp_path)


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("RETORT_SERVER_PORT", "x"),
        ("RETORT_SERVER_PORT", ""),
        ("RETORT_SERVER_HOST", ""),
        ("RETORT_STATE_FOLDER", ""),
        ("RETORT_SANDBOX_CPUS", "x"),
        ("RETORT_SANDBOX_CPUS", "nan"),
        ("RETORT_SANDBOX_IMAGE_ALIASES", "c"),
    ],
)
def test_a_wrong_variable_is_named(tmp_path: Path, variable: str, text: str) -> None:
    with pytest.raises(ConfigError, match=variable):
        _load(tmp_path=tmp_path, environ={variable: text})


@pytest.mark.parametrize(
    ("toml", "near"),
    [
        ("[server]\nprot = 1", "server.port"),
        ("[sever]\nport = 1", "server.port"),
        ("[http]\njson_byte = 1", "http.json_bytes"),
        ("http = 1", "http"),
    ],
)
def test_an_unknown_key_names_the_nearest(tmp_path: Path, toml: str, near: str) -> None:
    with pytest.raises(ConfigError, match=rf"did you mean {near}\?"):
        _load(toml, tmp_path=tmp_path)


@pytest.mark.parametrize("variable", ["RETORT_SERVER_PROT", "RETORT_SEVER_PORT"])
def test_an_unknown_variable_names_the_nearest(tmp_path: Path, variable: str) -> None:
    with pytest.raises(ConfigError, match=r"did you mean RETORT_SERVER_PORT\?"):
        _load(tmp_path=tmp_path, environ={variable: "1"})


def test_variables_of_other_programs_are_left_alone(tmp_path: Path) -> None:
    environ = {"RETORT_COLOUR": "red", "PORT": "1"}

    assert _load(tmp_path=tmp_path, environ=environ) == _load(tmp_path=tmp_path)


@pytest.mark.parametrize("content", [b"[server", b"\xff", b"a = 1\na = 2"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "retort.toml").write_bytes(content)

    with pytest.raises(ConfigError, match=r"retort\.toml"):
        load(flags={"state.folder": tmp_path}, environ={})


def test_a_named_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.toml"):
        load(file=tmp_path / "missing.toml", environ={})


# --- listen and endpoint ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("127.0.0.1:8090", ("127.0.0.1", 8090)),
        ("[::1]:8090", ("::1", 8090)),
        ("host.example:0", ("host.example", 0)),
    ],
)
def test_listen_splits_into_host_and_port(text: str, parts: tuple[str, int]) -> None:
    assert parse_listen(text) == parts


@pytest.mark.parametrize(
    "text", ["", "8090", ":8090", "host", "host:", "host:x", "::1:8090", "h:65536", "h:-1", "[]:1"]
)
def test_what_is_no_host_and_port_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be|brackets"):
        parse_listen(text)


def test_listen_is_short_for_host_and_port_in_every_place(tmp_path: Path) -> None:
    toml, environ = "[server]\nlisten = 'a:1'", {"RETORT_SERVER_LISTEN": "b:2"}

    in_file = _load(toml, tmp_path=tmp_path)
    in_variable = _load(toml, tmp_path=tmp_path, environ=environ)
    in_flag = _load(toml, tmp_path=tmp_path, environ=environ, server__listen="[::1]:3")

    assert (in_file.server.host, in_file.server.port) == ("a", 1)
    assert (in_variable.server.host, in_variable.server.port) == ("b", 2)
    assert (in_flag.server.host, in_flag.server.port) == ("::1", 3)


@pytest.mark.parametrize(
    ("toml", "endpoint"),
    [
        ("", "http://127.0.0.1:8090"),
        ("listen = '[::1]:1'", "http://[::1]:1"),
        ("listen = '0.0.0.0:1'\nbase_path = '/r'", "http://127.0.0.1:1/r"),
        ("listen = '[::]:1'", "http://[::1]:1"),
        ("public_url = 'https://example.org/retort/'", "https://example.org/retort"),
    ],
)
def test_the_endpoint_is_what_a_client_can_use(tmp_path: Path, toml: str, endpoint: str) -> None:
    assert _load(f"[server]\n{toml}", tmp_path=tmp_path).server.endpoint == endpoint
