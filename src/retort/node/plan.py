"""From a request to the commands of its steps (spec 5.1, 5.6, 7.10)."""

from __future__ import annotations

from retort.core.image import Image
from retort.core.run import Mode, Phase, Plan, RunRequest
from retort.errors import InvalidRequest

BASH = "/bin/bash"
MAX_COMMAND_BYTES = 48 * 1024  # with environment and tag it fits one message to init (64 KiB)


def plan_of(request: RunRequest, image: Image) -> Plan:
    """Decide what a run will do.

    A command is handed to `bash -c` as it is; "*" stands for the image's own (spec 5.1), which may
    be nothing.

    Raises:
        InvalidRequest: a command is longer than `MAX_COMMAND_BYTES` or contains a NUL; the image
            has no query mode.
    """
    if request.mode is Mode.QUERY:
        argv = image.query_argv(_checked("code", request.code))
        if argv is None:
            raise InvalidRequest.field("mode", f"image {image.ref} has no query mode")
        return Plan({Phase.EXEC: argv}, reports_clean=False, reports_build=False)
    asked = {
        Phase.CLEAN: (request.clean, image.clean),
        Phase.BUILD: (request.build, image.build),
        Phase.EXEC: (request.exec, image.exec),
    }
    commands = {}
    for phase, (own, default) in asked.items():
        if command := default if own == "*" else own:
            text = _checked(f"options.{phase.value}", command)
            commands[phase] = (BASH, "-c", text)
    return Plan(commands, reports_clean=request.has_clean)


def _checked(field: str, text: str) -> str:
    if "\0" in text:
        raise InvalidRequest.field(field, "must not contain NUL")
    if len(text.encode("utf-8", "surrogatepass")) > MAX_COMMAND_BYTES:
        raise InvalidRequest.field(field, f"is longer than {MAX_COMMAND_BYTES} bytes")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidRequest.field(field, "is not valid Unicode") from None
    return text
