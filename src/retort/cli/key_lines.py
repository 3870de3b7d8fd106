"""How a new key is shown: lines to paste into a shell."""

from __future__ import annotations

import shlex

from retort.core.keypair import NewKeyPair


def shell_lines(endpoint: str, new: NewKeyPair) -> list[str]:
    """Give the public client's environment, and a curl call that needs no client."""
    values = (
        ("BACKEND_ENDPOINT", endpoint),
        ("BACKEND_ACCESS_KEY", new.keypair.access_key),
        ("BACKEND_SECRET_KEY", new.keypair.secret_key),
    )
    header = shlex.quote(f"Authorization: Bearer {new.token}")
    return [
        *(f"export {name}={shlex.quote(value)}" for name, value in values),
        "",
        "# or without the client:",
        f"curl -H {header} {shlex.quote(endpoint + '/auth/role')}",
    ]
