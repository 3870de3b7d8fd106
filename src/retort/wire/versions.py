"""API versions and the documents that announce them (specification 2.1 to 2.3)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from retort.errors import RouteNotFound, UnsupportedVersion

_HEADER = re.compile(r"v([2-9])\.([0-9]{8})")


@dataclass(frozen=True, slots=True, order=True)
class ApiVersion:
    """A version of the API, ordered by number, then date.

    Args:
        major: 2 to 9.
        date: eight digits, YYYYMMDD.
    """

    major: int
    date: str

    @classmethod
    def parse(cls, text: str) -> ApiVersion:
        """Read ``vN.YYYYMMDD``, 2 <= N <= 9 (specification 2.3).

        Raises:
            UnsupportedVersion: anything else.
        """
        return _parse(text)

    def __str__(self) -> str:
        return f"v{self.major}.{self.date}"


@lru_cache(maxsize=64)
def _parse(text: str) -> ApiVersion:
    match = _HEADER.fullmatch(text)
    if match is None:
        raise UnsupportedVersion
    return ApiVersion(int(match[1]), match[2])


#: What `GET /vN` answers, by N.
KNOWN: Mapping[int, ApiVersion] = {
    2: ApiVersion(2, "20170315"),
    3: ApiVersion(3, "20170615"),
    4: ApiVersion(4, "20190615"),
    5: ApiVersion(5, "20191215"),
    6: ApiVersion(6, "20230315"),
    7: ApiVersion(7, "20230615"),
}
CURRENT = KNOWN[7]  #: what the reference client 23.9 speaks; a higher one makes it warn
UNSTATED = KNOWN[5]  #: of a request with neither version header nor prefix
BODY_UNSIGNED_SINCE = ApiVersion(4, "20181215")  #: from here on bodies are not signed (3.2)
STATS_WITH_STATUS_SINCE = ApiVersion(4, "20190615")  #: from here on `stats` has `status` (5.5)

#: The release whose behaviour we follow; the JavaScript client reads it as YY.MM.patch.
COMPATIBLE_RELEASE = "23.09.10"


def root_document(server_version: str) -> dict[str, str]:
    """Answer `GET /`: the newest version spoken, and who speaks it (specification 2.1)."""
    return {
        "version": str(CURRENT),
        "manager": COMPATIBLE_RELEASE,
        "server": f"retort/{server_version}",
    }


def document(major: int) -> dict[str, str]:
    """Answer `GET /vN` (specification 2.1).

    Raises:
        RouteNotFound: no such version.
    """
    if major not in KNOWN:
        raise RouteNotFound(data=f"/v{major}")
    return {"version": str(KNOWN[major])}


def effective(header: ApiVersion | None, generation: int | None) -> ApiVersion:
    """Choose a request's version: the header, else the path's prefix, else v5 (spec 2.3)."""
    if header is not None:
        return header
    return UNSTATED if generation is None else KNOWN.get(generation, UNSTATED)
