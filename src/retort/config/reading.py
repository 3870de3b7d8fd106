"""Where settings are read from.

Later wins: the default, `retort.toml`, a variable `RETORT_SECTION_FIELD`, a flag. Read by wiring
and cli only; everything else gets values as arguments.
"""

from __future__ import annotations

import difflib
import functools
import os
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from retort.config.sections import Config, ConfigError, default_folder
from retort.core.image import ImageLimits
from retort.units import parse_bytes, parse_duration, parse_listen


def load(
    *,
    flags: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
    file: Path | None = None,
) -> Config:
    """Read the configuration.

    Args:
        flags: values from the command line by key, e.g. {"server.port": 8091}; None: not given.
        environ: variables; os.environ if left out.
        file: what `--config` names; otherwise `retort.toml` in the state folder, if it is there.

    Raises:
        ConfigError: an unknown key, a value of the wrong kind, or a file that cannot be read.
    """
    environ = os.environ if environ is None else environ
    given = {"state.folder": default_folder(environ)} | _checked(
        (key, value, f"--config {file}") for key, value in _from_file(file)
    )
    late = _checked(_from_environ(environ), is_text=True) | _checked(
        (key, value, "the command line")
        for key, value in (flags or {}).items()
        if value is not None
    )
    if file is None:
        found = (given | late)["state.folder"] / "retort.toml"
        values = list(_from_file(found)) if found.is_file() else []
        if any(key == "state.folder" for key, _ in values):
            raise ConfigError(f"state.folder cannot be set in {found}, which lies in that folder")
        given |= _checked((key, value, str(found)) for key, value in values)
    given |= late
    sections = {
        section: kind(
            **{key.split(".")[1]: given[key] for key in given if key.startswith(f"{section}.")}
        )
        for section, kind in _sections().items()
    }
    config = Config(**sections)
    _check_ranges(config)
    return config


@functools.cache
def _sections() -> dict[str, type]:
    return typing.get_type_hints(Config)


@functools.cache
def _kinds() -> dict[str, Any]:
    """Give every key, as section.field, with its type."""
    return {
        f"{section}.{name}": kind
        for section, fields in _sections().items()
        for name, kind in typing.get_type_hints(fields).items()
    }


def _from_file(file: Path | None) -> Iterator[tuple[str, object]]:
    if file is None:
        return
    try:
        sections = tomllib.loads(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise ConfigError(f"{file}: {exc}") from exc
    for section, fields in sections.items():
        if isinstance(fields, dict):
            yield from ((f"{section}.{name}", value) for name, value in fields.items())
        else:
            raise ConfigError(_unknown(section, str(file)))


def _from_environ(environ: Mapping[str, str]) -> Iterator[tuple[str, object, str]]:
    keys = {f"RETORT_{key.replace('.', '_')}".upper(): key for key in (*_kinds(), "server.listen")}
    sections = tuple(f"RETORT_{section}_".upper() for section in _sections())
    for variable, text in environ.items():
        if variable in keys:
            yield keys[variable], text, variable
        elif variable.startswith(sections) or (
            # Other programs may have variables of this prefix; one that is nearly ours is a slip.
            variable.startswith("RETORT_") and difflib.get_close_matches(variable, keys, cutoff=0.9)
        ):
            near = difflib.get_close_matches(variable, keys, 1, cutoff=0.0)[0]
            raise ConfigError(f"the environment has no use for {variable}; did you mean {near}?")


def _checked(values: Iterator[tuple[str, object, str]], *, is_text: bool = False) -> dict[str, Any]:
    """Turn (key, raw value, where it stands) into values of the right types.

    `is_text`: every raw value is a string, whatever its type will be.
    """
    result: dict[str, Any] = {}
    for key, raw, place in values:
        try:
            if key == "server.listen":  # short for host and port, wherever values are given
                result["server.host"], result["server.port"] = parse_listen(_text(raw))
            elif key in _kinds():
                result[key] = _convert(key, _kinds()[key], raw, is_text=is_text)
            else:
                raise ConfigError(_unknown(key, place))
        except ValueError as exc:
            raise ConfigError(f"{key} in {place}: {exc}, not {raw!r}") from exc
    return result


def _unknown(key: str, place: str) -> str:
    known = [*_kinds(), *_sections(), "server.listen"]
    near = difflib.get_close_matches(key, known, 1, cutoff=0.0)
    return f"{key} in {place} is not a setting; did you mean {near[0]}?"


def _convert(key: str, kind: Any, raw: object, *, is_text: bool) -> object:
    """Give a value as its field's type."""
    if isinstance(kind, types.UnionType):
        if raw is None or raw == "":
            return None
        kind = next(part for part in kind.__args__ if part is not types.NoneType)
    if kind is Path:
        return (raw if isinstance(raw, Path) else Path(_filled(raw))).expanduser()
    if kind is str:
        # An empty host would listen everywhere, an empty program start the wrong thing.
        return _text(raw) if key == "server.base_path" else _filled(raw)
    if kind is int:
        return _integer(key, raw, is_text=is_text)
    if kind is float:
        return _number(key, raw, is_text=is_text)
    return _mapping(raw, is_text=is_text)


def _text(raw: object) -> str:
    if not isinstance(raw, str):
        raise ValueError("must be a text")
    return raw


def _filled(raw: object) -> str:
    if not (text := _text(raw)):
        raise ValueError("must not be empty")
    return text


def _integer(key: str, raw: object, *, is_text: bool) -> int:
    if "bytes" in key and isinstance(raw, str):
        return parse_bytes(raw)
    if is_text:
        raw = int(_text(raw)) if _text(raw).strip().isdigit() else raw
    if isinstance(raw, bool) or not isinstance(raw, int):
        raise ValueError("must be a whole number")
    if raw < 0:
        raise ValueError("must not be negative")
    return raw


def _number(key: str, raw: object, *, is_text: bool) -> float:
    if key.endswith("_s"):
        if isinstance(raw, bool) or not isinstance(raw, str | int | float):
            raise ValueError("must be a duration")
        return parse_duration(raw)
    if is_text:
        raw = float(_text(raw))
    if isinstance(raw, bool) or not isinstance(raw, int | float) or not 0 < raw < float("inf"):
        raise ValueError("must be a number above 0")
    return float(raw)


def _mapping(raw: object, *, is_text: bool) -> Mapping[str, str]:
    if is_text:
        pairs = [part.partition("=") for part in _text(raw).split(",") if part.strip()]
        raw = {name.strip(): value.strip() for name, _, value in pairs}
    if not isinstance(raw, Mapping) or not all(
        isinstance(part, str) and part for item in raw.items() for part in item
    ):
        raise ValueError("must be names with values, as in a=b,c=d")
    return dict(raw)


def _check_ranges(config: Config) -> None:
    server, sandbox = config.server, config.sandbox
    for name, text in sandbox.image_limits.items():
        try:
            ImageLimits.parse(text)
        except ValueError as exc:
            raise ConfigError(f"sandbox.image_limits: {name}: {exc}") from exc
    path = server.base_path
    url = urlsplit(server.public_url) if server.public_url else None
    wrong = {
        "server.port: must be between 0 and 65535": server.port > 65_535,
        "server.base_path: must start with a slash and not end with one": path != ""
        and (not path.startswith("/") or path.endswith("/")),
        "server.public_url: must be an http or https URL": url is not None
        and (url.scheme not in ("http", "https") or not url.netloc),
        # 2^32 - 1 means "no id" to the host kernel (setresuid(2)).
        "sandbox.host_uid_first: the range must lie between 1000 and 4294967294": not (
            sandbox.host_uid_first >= 1000
            and sandbox.host_uid_first + sandbox.host_uid_count <= 4_294_967_295
        ),
        "sandbox.host_uid_count: must be at least 2": sandbox.host_uid_count < 2,
        "vfolders.host_uid: must lie between 1 and 4294967294, and be no session's": not (
            0 < config.vfolders.host_uid < 4_294_967_295
        )
        or 0 <= config.vfolders.host_uid - sandbox.host_uid_first < sandbox.host_uid_count,
        "vfolders.token_s: must be at least an hour": config.vfolders.token_s < 3600,
        "vfolders.count_s: must be at least 1": config.vfolders.count_s < 1,
        "vfolders.project_first: must be between 1 and 4293918720": not (
            1 <= config.vfolders.project_first <= 4_293_918_720
        ),
        'sandbox.network: must be "none" or "host"': sandbox.network not in ("none", "host"),
        'sandbox.file_locks: must be "allowed" or "refused"': sandbox.file_locks
        not in ("allowed", "refused"),
        'cache.builds: must be "asked", "always" or "never"': config.cache.builds
        not in ("asked", "always", "never"),
        'cache.sharing: must be "owner" or "all"': config.cache.sharing not in ("owner", "all"),
        "runs.wall_s: must be above 0, or unset": config.runs.wall_s == 0,
    } | {
        # Zero would read as "no limit" to some of those that get it.
        f"{section}.{name}: must be at least 1": getattr(getattr(config, section), name) == 0
        for section, name in (key.split(".") for key in _kinds() if "bytes" in key)
    }
    for problem, is_wrong in wrong.items():
        if is_wrong:
            raise ConfigError(problem)
