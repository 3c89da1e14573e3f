"""An index in a folder: rows are added in files that never change, and one small record says which of them count.

add      rows-<n>.safetensors is written and synced, then the record is replaced: only then are the rows acknowledged.
         A process that is killed before leaves a file that no record names; the next writer drops it.
remove   the record names the rows; files in which over a quarter is gone are written again without them.
search   every file of rows is mapped, never read whole; each gives its best, and the best of all are returned.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lessen import files
from lessen.errors import ArtifactError, ConfigError, DataError, OutputError
from lessen.retrieval import ids as naming
from lessen.retrieval import manifest as records
from lessen.retrieval import token_rows
from lessen.retrieval.checks import Metric, checked
from lessen.retrieval.exact import merged
from lessen.retrieval.forms import Form, parse_form
from lessen.retrieval.manifest import Manifest, Rows, Written
from lessen.retrieval.part import Part, twin
from lessen.retrieval.probes import Probes
from lessen.retrieval.tensors import load_mapped, save
from lessen.stored.vectors.staged import StagedVectors

SEGMENT = 1 << 16
"""Rows of a file at most."""
SMALL_FILES = 8
"""Files of fewer than half as many rows that are left before they become one."""
GONE = 0.25
"""Share of removed rows above which a file is written again."""


@dataclass(frozen=True)
class Found:
    """What a query found, best first."""

    ids: list[str]
    scores: list[float]


class IndexFolder:
    """An open index. Many processes may read it while one writes."""

    def __init__(self, path: Path, manifest: Manifest, parts: list[Part], empty: StagedVectors) -> None:
        self.path, self.manifest = path, manifest
        self._parts, self._empty = parts, empty

    # -- making and opening -----------------------------------------------------------------------------------------
    @classmethod
    def create(
        cls,
        path: Path,
        form: Form | str,
        sample: Tensor,
        metric: Metric = "cosine",
        encoder: dict[str, Any] | None = None,
        seed: int = 0,
        multi: dict[str, Any] | None = None,
    ) -> IndexFolder:
        """Make an index without rows.

        Args:
            form: see `lessen.retrieval.forms`.
            sample: float [n, dim] that codebooks and directions are learned from; a few thousand vectors.
            encoder: what makes the vectors; its `digest` is compared with that of every addition and query.
            multi: what a `MultiFolder` notes of its token sets.

        Raises:
            OutputError: something else is there. ConfigError: the form is unknown or does not fit. DataError,
            NonFiniteError: the sample cannot be indexed.
        """
        chosen = parse_form(form) if isinstance(form, str) else form
        empty = chosen.fitted(checked(sample, sample.shape[-1], metric, what="the sample"), seed)
        with files.atomic_folder(path) as made:
            shared = save(made, "shared-0.safetensors", dict(empty.state_dict()), empty.per_row)
            config = {name: value for name, value in empty.config().items() if name != "rows"}
            said = form if isinstance(form, str) else repr(form)
            records.write(
                made,
                Manifest(
                    metric=metric, form=said, index=config, encoder=encoder, multi=multi, shared=Written(**shared)
                ),
            )
        return cls.open(path)

    @classmethod
    def open(cls, path: Path, verify: bool = True) -> IndexFolder:
        """Open an index.

        Args:
            verify: read every file once and compare its digest; without it only sizes are compared.

        Raises:
            ArtifactError: a file is absent, torn, or not what was written.
        """
        for attempt in (1, 2, 3):
            manifest = records.read(path)
            try:
                return cls._open(path, manifest, verify)
            except ArtifactError:  # a writer may have put other files in their place meanwhile
                if attempt == 3 or records.read(path) == manifest:
                    raise
        raise AssertionError("the last attempt returns or raises")

    @classmethod
    def _open(cls, path: Path, manifest: Manifest, verify: bool) -> IndexFolder:
        shared = load_mapped(path, manifest.shared, verify)
        if manifest.probes is not None:  # reports need it, not searches; damage is told before either
            load_mapped(path, manifest.probes, verify)
        parts = []
        for one in manifest.segments:
            parts.append(Part.read(path, one, manifest, shared, verify))
        return cls(path, manifest, parts, twin(manifest, shared, path / manifest.shared.name))

    # -- what it is -------------------------------------------------------------------------------------------------
    def __len__(self) -> int:
        return self.manifest.live

    @property
    def dim(self) -> int:
        """Numbers of a vector."""
        return self._empty.dim

    @property
    def row_bytes(self) -> int:
        """Bytes that a document takes, without its name."""
        return self._empty.row_bytes

    @property
    def shared_bytes(self) -> int:
        """Bytes of what all rows share."""
        return self._empty.shared_bytes

    @property
    def file_bytes(self) -> int:
        """Bytes of all files that belong to the index."""
        return sum((self.path / name).stat().st_size for name in self.manifest.named)

    @property
    def parts(self) -> list[Part]:
        """The files of rows."""
        return self._parts

    @property
    def modules(self) -> list[StagedVectors]:
        """The stored modules, one a file of rows, their tensors mapped."""
        return [part.index for part in self._parts]

    def ids(self) -> Iterator[str]:
        """Yield the names of all documents, in the order of their files."""
        for part in self._parts:
            yield from part.names(part.kept().tolist())

    def kept_rows(self) -> list[Tensor]:
        """Return the numbers of rows that were not removed, int64 [n], of each module."""
        return [part.kept() for part in self._parts]

    def has(self, ids: Sequence[str]) -> list[bool]:
        """Tell which documents are there."""
        known = set(self._places(ids))
        return [name in known for name in ids]

    def probes(self) -> Probes | None:
        """Return the probes with their exact neighbours; None where nothing was added yet."""
        if self.manifest.probes is None:
            return None
        return Probes.of(load_mapped(self.path, self.manifest.probes, verify=True))

    def check_encoder(self, encoder: dict[str, Any] | None, what: str) -> None:
        """Refuse vectors that another encoder made.

        Raises:
            ConfigError: the digests differ, or only one of both is known.
        """
        own = self.manifest.encoder
        if (own or {}).get("digest") == (encoder or {}).get("digest"):
            return
        named = "vectors of a file" if own is None else f"{own.get('name')} ({str(own.get('digest'))[:12]})"
        other = "vectors of a file" if encoder is None else f"{encoder.get('name')} ({str(encoder.get('digest'))[:12]})"
        raise ConfigError(
            f"{what} comes from {other}, the index {self.path} was made of {named}: their vectors do not mix; encode "
            "with the index's own encoder, or fit an adapter (lessen index adapt)"
        )

    # -- searching --------------------------------------------------------------------------------------------------
    def search(self, queries: Tensor, k: int) -> list[Found]:
        """Return the k best documents of each query, float [Q, dim]; fewer where the index holds fewer.

        Raises:
            DataError, NonFiniteError: a query is of another width, zero or not finite.
            ConfigError: k is below 1.
        """
        return [
            Found(self.names(places), [float(score) for score in scores])
            for scores, places in zip(*self.best(queries, k), strict=True)
        ]

    def search_digests(self, queries: Tensor, k: int) -> Tensor:
        """Return the 64-bit digests of the names that `search` returns, int64 [Q, k]; 0 where there are fewer."""
        found = torch.zeros(len(queries), k, dtype=torch.int64)
        for row, places in enumerate(self.best(queries, k)[1]):
            for column, (number, place) in enumerate(places):
                found[row, column] = self._parts[number].digests[place]
        return found

    def best(self, queries: Tensor, k: int) -> tuple[list[list[float]], list[list[tuple[int, int]]]]:
        """Return scores, best first, and file and row of each, for each of the queries, float [queries, dim]."""
        if k < 1:
            raise ConfigError(f"k must be at least 1, found {k}")
        asked = checked(queries, self.dim, self.manifest.metric, what="queries")
        scores, numbers = torch.zeros(len(asked), 0), torch.zeros(len(asked), 0, dtype=torch.int64)
        for number, part in enumerate(self._parts):
            own, places = part.scan.search(asked, min(k, part.rows))
            scores, numbers = merged(scores, numbers, own, places + (number << 32), k)
        kept = scores.isfinite()
        both = [
            (row[there].tolist(), [divmod(place, 1 << 32) for place in places[there].tolist()])
            for row, places, there in zip(scores, numbers, kept, strict=True)
        ]
        return [one for one, _ in both], [[(int(a), int(b)) for a, b in two] for _, two in both]

    def names(self, places: Iterable[tuple[int, int]]) -> list[str]:
        """Return the names of rows, given as file and row."""
        return [self._parts[number].names([place])[0] for number, place in places]

    # -- writing ----------------------------------------------------------------------------------------------------
    def add(
        self,
        ids: Sequence[str],
        vectors: Tensor,
        encoder: dict[str, Any] | None = None,
        there: Literal["refuse", "skip"] = "refuse",
        tokens: Sequence[Tensor] | None = None,
    ) -> int:
        """Add documents; when this returns, they are on the disk and stay. Return how many were new.

        Args:
            ids: a name for each; vectors: float [n, dim]; encoder: what made them.
            there: what to do about names that the index holds already.
            tokens: of an index of token sets (`MultiFolder`), those of each document.

        Raises:
            DataError: another width, a zero vector, a name twice or held already. NonFiniteError: NaN or infinity.
            ConfigError: another encoder. OutputError: the disk is full, or another process is writing.
        """
        self.check_encoder(encoder, "what is added")
        if len(ids) != len(vectors):
            raise DataError(f"{len(ids)} ids for {len(vectors)} vectors; give each vector one")
        naming.check_ids(ids)
        ready = checked(vectors, self.dim, self.manifest.metric, ids, "what is added")
        with self._writing():
            held = self.has(ids)
            if any(held) and there == "refuse":
                name = ids[held.index(True)]
                raise DataError(
                    f"the id {name!r} is in the index already ({sum(held)} of {len(ids)} are); remove it first"
                )
            new = [place for place, old in enumerate(held) if not old]
            for first in range(0, len(new), self._most):
                chosen = new[first : first + self._most]
                more = {} if tokens is None else token_rows.packed([tokens[n] for n in chosen], self.manifest)
                self._append([ids[place] for place in chosen], ready[chosen], more)
            self._tidy()
        return len(new)

    def remove(self, ids: Sequence[str]) -> None:
        """Remove documents; when this returns, no search finds them.

        Raises:
            DataError: one is not there; then none is removed. OutputError: another process is writing.
        """
        naming.check_ids(ids)
        with self._writing():
            places = self._places(ids)
            missing = [name for name in ids if name not in places]
            if missing:
                raise DataError(f"the id {missing[0]!r} is not in the index ({len(missing)} of {len(ids)} are not)")
            gone: dict[int, list[int]] = {}
            for number, place in places.values():
                gone.setdefault(number, []).append(place)
            segments = [
                one.model_copy(update={"removed": tuple(sorted({*one.removed, *gone.get(number, [])}))})
                for number, one in enumerate(self.manifest.segments)
            ]
            probes, number = self.probes(), self.manifest.next
            assert probes is not None
            probes.remove(naming.digests(ids))
            file = save(self.path, f"probes-{number}.safetensors", probes.tensors())
            self._replace(segments=tuple(segments), probes=Written(**file), next=number + 1)
            self._tidy()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Hold the folder's lock, over the newest record; drop what a killed writer left."""
        with (self.path / "lock").open("ab") as handle:
            if not files.claim(handle.fileno()):
                raise OutputError(f"another process is writing to the index {self.path}; wait for it, then try again")
            if records.read(self.path) != self.manifest:
                newest = IndexFolder.open(self.path, verify=False)
                self.manifest, self._parts = newest.manifest, newest._parts
            files.remove_stale(self.path)
            for item in self.path.iterdir():
                if item.suffix == ".safetensors" and item.name not in self.manifest.named:
                    item.unlink(missing_ok=True)
            yield

    @property
    def _most(self) -> int:
        """Rows of a file at most."""
        return SEGMENT if self.manifest.multi is None else token_rows.SEGMENT

    def _append(self, ids: Sequence[str], vectors: Tensor, more: dict[str, Tensor]) -> None:
        digests, number = naming.digests(ids), self.manifest.next
        probes = self.probes() or Probes.drawn(vectors, digests)
        probes.add(vectors, digests)
        tensors = {**self._empty.encode(vectors), **naming.packed(ids), **more}
        rows = Rows(**save(self.path, f"rows-{number}.safetensors", tensors), rows=len(ids))
        file = Written(**save(self.path, f"probes-{number}.safetensors", probes.tensors()))
        self._replace(segments=(*self.manifest.segments, rows), probes=file, next=number + 1)

    def _tidy(self) -> None:
        """Write files again of which much is gone, and many small ones as one; the rows stay what they are."""
        segments = self.manifest.segments
        worn = [number for number, one in enumerate(segments) if len(one.removed) > GONE * one.rows]
        small = [number for number, one in enumerate(segments) if one.rows < self._most // 2]
        chosen = sorted({*worn, *(small if len(small) > SMALL_FILES else [])})
        if not chosen:
            return
        groups: list[list[Part]] = [[]]
        for one in chosen:
            part = self._parts[one]
            if sum(len(other.kept()) for other in groups[-1]) + len(part.kept()) > self._most:
                groups.append([])
            groups[-1].append(part)
        made, number = [], self.manifest.next
        for parts in groups:
            if not sum(len(part.kept()) for part in parts):
                continue
            names = [name for part in parts for name in part.names(part.kept().tolist())]
            rows = {
                name: torch.cat([part.index._get(name)[part.kept()] for part in parts]) for name in self._empty.per_row
            }
            more = {} if self.manifest.multi is None else token_rows.joined([(p.tensors, p.kept()) for p in parts])
            file = save(self.path, f"rows-{number}.safetensors", {**rows, **naming.packed(names), **more})
            made.append(Rows(**file, rows=len(names)))
            number += 1
        kept = [one for place, one in enumerate(segments) if place not in chosen]
        self._replace(segments=(*kept, *made), next=number)

    def _replace(self, **changes: Any) -> None:
        """Put a new record in place of the old, then drop the files that only the old one names."""
        before = self.manifest.named
        changed = self.manifest.model_copy(update=changes)
        records.write(self.path, changed)
        held = {part.name: part for part in self._parts}
        shared = load_mapped(self.path, changed.shared, verify=False)
        self._parts = [
            held[one.name].again(one) if one.name in held else Part.read(self.path, one, changed, shared, False)
            for one in changed.segments
        ]
        self.manifest = changed
        for name in before - changed.named:
            with suppress(OSError):
                (self.path / name).unlink()

    def _places(self, ids: Sequence[str]) -> dict[str, tuple[int, int]]:
        """Return file and row of each name that is there."""
        asked = dict(zip(naming.digests(ids).tolist(), ids, strict=True))
        wanted = torch.tensor(sorted(asked), dtype=torch.int64)
        found: dict[str, tuple[int, int]] = {}
        for number, part in enumerate(self._parts):
            rows = torch.isin(part.digests, wanted).nonzero()[:, 0].tolist()
            gone = set(part.removed.tolist())
            for place, name in zip(rows, part.names(rows), strict=True):
                if place not in gone and name == asked[int(part.digests[place])]:
                    found[name] = (number, place)
        return found
