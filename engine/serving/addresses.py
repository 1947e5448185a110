"""How a policy server is reached: what its address looks like, and where the key comes from that it asks for."""

from __future__ import annotations

import os
from typing import Final

from engine.errors import InvalidInput, Problem

SERVERS: Final = ('ws://', 'wss://')
"""How the address of a policy server begins; what begins otherwise is a checkpoint."""


def is_server(policy: str) -> bool:
    """Whether a policy is named by the address of a server."""
    return policy.startswith(SERVERS)


def key_from(variable: str | None, where: str, what: str = 'arguments') -> str | None:
    """The key that an environment variable holds. It is never given itself: arguments can be read by everybody.

    Args:
        variable: Its name; empty or None: there is no key.
        where: The argument or parameter that names it, for errors.
        what: What that is one of.

    Raises:
        InvalidInput: The variable is empty or not set.
    """
    if not variable:
        return None
    key = os.environ.get(variable, '')
    if not key:
        raise InvalidInput(what, [Problem(where, 'names a variable that is empty or not set', variable)])
    return key
