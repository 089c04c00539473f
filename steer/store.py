"""Activations on disk: one safetensors shard per batch, then one memory-mapped file per site.

Shards are keyed by a hash of everything that decides their content (weights, sites, scope, plan,
token ids), so that a capture that was killed goes on where it stopped, and one asked for again is
read, not run. Every file is written beside its place and renamed; none is half-written.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from steer.activations import Activations
from steer.errors import ScopeError, SpecError
from steer.sites import AnySite

VERSION = 1


@dataclass(frozen=True, slots=True)
class Shard:
    """What one batch left: rows, positions, and values by the name of their site."""

    rows: Tensor
    positions: Tensor
    values: dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Store:
    """A folder of captures; `identity` is what all its shards have in common."""

    folder: Path
    identity: str

    def key(self, batch: Sequence[Sequence[int]], row_ids: Sequence[int]) -> str:
        """Return the content hash of one batch."""
        text = json.dumps([VERSION, self.identity, [list(row) for row in batch], list(row_ids)])
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def shard(self, key: str) -> Path:
        """Return where a batch's shard is or will be."""
        return self.folder / f"{key}.safetensors"

    def has(self, key: str) -> bool:
        """Say whether a batch is there already."""
        return self.shard(key).exists()

    def put(self, key: str, shard: Shard) -> None:
        """Write a shard."""
        tensors = {f"site:{name}": v.cpu().contiguous() for name, v in shard.values.items()}
        tensors |= {"rows": shard.rows, "positions": shard.positions}
        write_atomically(tensors, self.shard(key))

    def opened(
        self, keys: Sequence[str], sites: Sequence[AnySite], n_rows: int, scope: str
    ) -> Activations:
        """Return the capture made of these batches, memory-mapped; the shards are merged once.

        Raises:
            SpecError: a shard is corrupted.
        """
        whole = hashlib.sha256(" ".join(keys).encode()).hexdigest()[:32]
        index = self.folder / f"{whole}.index.safetensors"
        if not index.exists():
            self._merge(keys, sites, n_rows, whole, index)
        with opened(index) as file:
            facts = json.loads(file.metadata()["facts"])
            positions = file.get_tensor("positions")
            mask = file.get_tensor("mask") if facts["padded"] else None
        values: dict[AnySite, Tensor] = {}
        for at, site in enumerate(sites):
            shape, dtype = facts["shapes"][at], getattr(torch, facts["dtypes"][at])
            path = self.folder / f"{whole}.{at}.bin"
            values[site] = mapped(path, shape, dtype, writable=False)
        return Activations(values, mask, positions, scope=scope)

    def _merge(
        self, keys: Sequence[str], sites: Sequence[AnySite], n_rows: int, whole: str, index: Path
    ) -> None:
        rows, positions, n_tokens = [], [], []
        for key in keys:
            with opened(self.shard(key)) as file:
                rows.append(file.get_tensor("rows"))
                positions.append(file.get_tensor("positions"))
                n_tokens.append(len(rows[-1]))
        place, mask, at = placed(torch.cat(rows), torch.cat(positions), n_rows)
        shapes, dtypes = [], []
        for number, site in enumerate(sites):
            part = self.folder / f"{whole}.{number}.bin.part"
            target: Tensor | None = None
            start = 0
            for key, n in zip(keys, n_tokens, strict=True):
                with opened(self.shard(key)) as file:
                    values = file.get_tensor(f"site:{site}")
                if target is None:
                    shape = [*at.shape, *values.shape[1:]]
                    shapes.append(shape)
                    dtypes.append(str(values.dtype).removeprefix("torch."))
                    part.unlink(missing_ok=True)
                    target = mapped(part, shape, values.dtype, writable=True)
                target.view(-1, *values.shape[1:])[place[start : start + n]] = values
                start += n
            del target
            os.replace(part, part.with_suffix(""))
        facts = {"shapes": shapes, "dtypes": dtypes, "padded": mask is not None}
        tensors = {"positions": at} | ({} if mask is None else {"mask": mask})
        write_atomically(tensors, index, {"facts": json.dumps(facts)})
        for key in keys:
            self.shard(key).unlink()

    def complete(self, keys: Sequence[str]) -> bool:
        """Say whether the capture made of these batches is merged already."""
        whole = hashlib.sha256(" ".join(keys).encode()).hexdigest()[:32]
        return (self.folder / f"{whole}.index.safetensors").exists()


def placed(rows: Tensor, positions: Tensor, n_rows: int) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return where each token goes in [batch] or [batch, n], the mask, and the positions there.

    Raises:
        ScopeError: there is no token at all.
    """
    if len(rows) == 0:
        raise ScopeError(
            "The scope of this capture holds no token in any row, so there is nothing to return. "
            "Choose another one; for GENERATED say how many: max_new_tokens=8."
        )
    order = torch.argsort(rows * (int(positions.max()) + 1) + positions)
    counts = torch.bincount(rows, minlength=n_rows)
    rank = torch.empty_like(rows)
    rank[order] = torch.arange(len(rows)) - (counts.cumsum(0) - counts)[rows[order]]
    if bool((counts == 1).all()):
        at = torch.empty(n_rows, dtype=torch.long)
        at[rows] = positions
        return rows, None, at
    width = int(counts.max())
    place = rows * width + rank
    at = torch.full((n_rows * width,), -1)
    at[place] = positions
    at = at.view(n_rows, width)
    return place, at >= 0, at


def mapped(path: Path, shape: Sequence[int], dtype: torch.dtype, *, writable: bool) -> Tensor:
    """Return a tensor whose storage is a file."""
    size = 1
    for n in shape:
        size *= n
    return torch.from_file(str(path), shared=writable, size=size, dtype=dtype).view(*shape)


def opened(path: Path) -> safe_open:
    """Return an open safetensors file.

    Raises:
        SpecError: it is corrupted; says which file to delete.
    """
    try:
        return safe_open(path, framework="pt")
    except Exception as broken:
        raise SpecError(
            f"{path} cannot be read ({broken}). It was cut short or is not a shard of this store. "
            "Delete it; the capture will make it again."
        ) from None


def write_atomically(
    tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file under another name, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    save_file(tensors, part, metadata)
    os.replace(part, path)
