"""What holds for every test: closed sockets, read-only tiny models, no hook left behind.

steer, probes and manifolds must not be imported while this file loads: the shape checker has to
see them first. The tiny models are made once per process and shared; a test that changes one
fails here.
"""

import hashlib
import socket
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from steer import LM

FAMILIES = (
    "tiny-llama",
    "tiny-gpt2",
    "tiny-gemma3",
    "tiny-qwen2",
    "tiny-neox",
    "tiny-mixtral",
)
"""Every tiny family: the laws run over all of them."""

_LIVE: dict[str, "LM"] = {}
_CHECKSUMS: dict[str, str] = {}
_HOOK_TABLES = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def pytest_configure(config: pytest.Config) -> None:
    """Give each process of a parallel run one thread: the processes share the cores."""
    if hasattr(config, "workerinput"):
        torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a CUDA device where there is none."""
    if torch.cuda.is_available():
        return
    absent = pytest.mark.skip(reason="no CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(absent)


@pytest.fixture(autouse=True)
def _closed_sockets(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse every connection to another machine, except in tests marked `real`."""
    if request.node.get_closest_marker("real"):
        return
    connect, connect_ex = socket.socket.connect, socket.socket.connect_ex

    def refuse(self: socket.socket, address: object) -> None:
        # Callers close it only after an OSError, which they would also retry and hide.
        self.close()
        raise RuntimeError(
            f"This test tried to reach {address!r}. Tests run without a network, so that they mean "
            "the same on every machine. Use a tiny model, or mark the test `real`."
        )

    def at_home(self: socket.socket, address: Any) -> bool:
        # A socket file is this machine talking to itself, as event loops and kernels do; the tests
        # of the server talk to it over loopback, by number, so that no name is looked up.
        return self.family == socket.AF_UNIX or address[0] == "127.0.0.1"

    def guarded(self: socket.socket, address: Any) -> None:
        if not at_home(self, address):
            refuse(self, address)
        connect(self, address)

    def guarded_ex(self: socket.socket, address: Any) -> int:
        if not at_home(self, address):
            refuse(self, address)
        return connect_ex(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
    monkeypatch.setattr(socket.socket, "connect_ex", guarded_ex)


@pytest.fixture(scope="session")
def tiny() -> Iterator[Callable[[str], "LM"]]:
    """Load a tiny model by its family name, once per process. Read-only: weights are compared."""
    import steer  # after the shape checker's import hook; see the module docstring

    def load(name: str) -> "LM":
        if name not in _LIVE:
            lm = steer.load(name)
            _CHECKSUMS[name] = _checksum(lm.model)
            _LIVE[name] = lm
        return _LIVE[name]

    yield load
    for name, lm in _LIVE.items():
        assert _checksum(lm.model) == _CHECKSUMS[name], f"a test changed the weights of {name}"


@pytest.fixture
def lm(tiny: Callable[[str], "LM"]) -> "LM":
    """Return the shared tiny Llama."""
    return tiny("tiny-llama")


@pytest.fixture(params=FAMILIES)
def any_lm(request: pytest.FixtureRequest, tiny: Callable[[str], "LM"]) -> "LM":
    """Return each tiny family in turn."""
    return tiny(request.param)


@pytest.fixture
def gen() -> torch.Generator:
    """Return a CPU generator that starts from the same state in every test."""
    return torch.Generator().manual_seed(0)


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    """Fail the test after which a shared model still carries a hook or a shadowed method."""
    yield
    left = {name: found for name, lm in _LIVE.items() if (found := _leftovers(lm.model))}
    # Cleared before failing, so that one leak is one failure and not a hundred.
    for name in left:
        del _LIVE[name], _CHECKSUMS[name]
    assert not left, f"left on shared models: {left}"


def _leftovers(model: torch.nn.Module) -> list[str]:
    """Return what somebody attached to the model: hooks by place, methods shadowed on it."""
    found = [name for name in ("generate", "forward") if name in vars(model)]
    for path, module in model.named_modules():
        for table in _HOOK_TABLES:
            found += [
                f"{path or 'model'}.{table}: {_origin(hook)}"
                for hook in vars(module)[table].values()
                # transformers installs its own recorders at the first output_hidden_states=True
                # and leaves them; they are the model's, not ours.
                if not _origin(hook).startswith("transformers.")
            ]
    return found


def _origin(hook: object) -> str:
    """Return the dotted name of the function behind a hook."""
    function = getattr(hook, "func", hook)
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{getattr(function, '__module__', type(function).__module__)}.{name}"


def _checksum(model: torch.nn.Module) -> str:
    """Return a hash of every parameter and buffer, by name and by bits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict(keep_vars=True).items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
