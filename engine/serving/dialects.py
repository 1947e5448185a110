"""Which dialect a client speaks, by the path that it opens and by what it sends.

| path | fields of the request | dialect |
|---|---|---|
| `/v1/realtime/robot/openpi` | any | vllm-omni |
| `/` | `endpoint` | roboarena |
| `/` | `observation/image`, or two exterior cameras counted from 1 | cosmos-framework |
| `/` | others | openpi |

openpi's client may well send what cosmos-framework's does. Where the dialect is not forced, answers to such requests
carry the field of either.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from engine.errors import InvalidInput, Problem
from engine.serving.base import ENDPOINT, IMAGE, Dialect
from engine.serving.cameras import exterior_key
from engine.serving.dialect_framework import Framework
from engine.serving.dialect_openpi import OpenPi
from engine.serving.dialect_roboarena import RoboArena
from engine.serving.dialect_vllm_omni import PATH, VllmOmni

if TYPE_CHECKING:
    from engine.contract import Contract

AUTO: Final = 'auto'
OPENPI: Final = OpenPi()
FRAMEWORK: Final = Framework()
ROBOARENA: Final = RoboArena()
VLLM_OMNI: Final = VllmOmni()
DIALECTS: Final[Mapping[str, Dialect]] = {d.name: d for d in (OPENPI, FRAMEWORK, ROBOARENA, VLLM_OMNI)}
_EITHER: Final = Framework(actions_too=True)


def dialect(name: str) -> Dialect:
    """A dialect by its name.

    Raises:
        InvalidInput: There is no such dialect.
    """
    if name not in DIALECTS:
        raise InvalidInput('dialect', [Problem('dialect', 'is not known', repr(name), ', '.join(DIALECTS))])
    return DIALECTS[name]


class Tongue:
    """What is spoken at one path: one dialect, or whichever a request turns out to be in.

    Attributes:
        default: For answers to messages that cannot be read.
        size: Bytes of the largest message.
    """

    def __init__(self, default: Dialect, *, forced: bool) -> None:
        """With `forced`, requests in any other dialect are faults."""
        self.default = default
        self.size = default.size if forced else max(d.size for d in (OPENPI, FRAMEWORK, ROBOARENA))
        self._forced = forced

    def metadata(self, contract: Contract) -> dict[str, Any]:
        """What is said before the client's dialect is known: what RoboArena's client needs and the others ignore."""
        return self.default.metadata(contract) if self._forced else ROBOARENA.metadata(contract)

    def dialect_of(self, message: Mapping[str, Any]) -> Dialect:
        """The dialect of a request."""
        if self._forced:
            return self.default
        if ENDPOINT in message:
            return ROBOARENA
        return _EITHER if IMAGE in message or exterior_key(2) in message else OPENPI


def tongue(path: str, forced: str = AUTO) -> Tongue | None:
    """What is spoken at a path; None if nothing is.

    Args:
        path: Of the URL that a client opens.
        forced: `auto`, or the name of a dialect, which is then spoken at `/` and at vLLM-Omni's path.
    """
    if path not in ('/', PATH):
        return None
    if forced != AUTO:
        return Tongue(dialect(forced), forced=True)
    return Tongue(VLLM_OMNI, forced=True) if path == PATH else Tongue(OPENPI, forced=False)
