"""Encoders that fill an index: texts or pictures in, vectors out, with a digest that says whose vectors they are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lessen.architectures.folder import companions, read_folder
from lessen.architectures.loading import host_folder
from lessen.data.readers.boundary import foreign
from lessen.data.readers.reading import read_pieces
from lessen.data.readers.settings import ReadSettings
from lessen.errors import ConfigError, DataError
from lessen.files import canonical, digest, parse_json, sha256
from lessen.log import SILENT, Log
from lessen.task import call_model
from lessen.tasks.retrieval.encoding import Pooling, SentenceEncoder

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tiff")
TABLES = (".jsonl", ".ndjson", ".parquet", ".csv", ".tsv")


class TextReader:
    """A sentence encoder with its tokenizer.

    Args:
        model: a Hugging Face folder, or minilm-l6.
        weights: a model that takes the place of the folder's own, such as one of few bits, and its digest.
    """

    def __init__(
        self,
        model: str,
        pooling: Pooling | None = None,
        normalise: bool = True,
        length: int = 256,
        batch: int = 32,
        weights: tuple[nn.Module, str] | None = None,
        log: Log = SILENT,
    ) -> None:
        self.encoder = SentenceEncoder(model, pooling, normalise, length)
        self.model = weights[0] if weights is not None else self.encoder.load(log)
        self.model.eval()
        self.batch, self.log = batch, log
        folder = Path(host_folder(model))
        read = {"folder": read_folder(folder).digest, "weights": None if weights is None else weights[1]}
        parts = {name: sha256(path) for name, path in companions(folder).items() if name.startswith("token")}
        knobs = {"pooling": self.encoder.pooling, "normalise": normalise, "length": length}
        self.identity: dict[str, Any] = {
            "kind": "text", "name": model, **knobs, "digest": digest(canonical({**read, **parts, **knobs})),
        }  # fmt: skip

    def vectors(self, texts: Sequence[str], names: Sequence[str], what: str = "document", cut: bool = True) -> Tensor:
        """Return the vectors of texts, float32 [n, d].

        Args:
            names: what to call each in a refusal; cut: leave out what is longer than the encoder reads.

        Raises:
            DataError: a text is empty, or longer than the encoder reads and not to be cut.
        """
        lengths = self._lengths(texts)
        self._check(texts, names, lengths, what, cut)
        order = sorted(range(len(texts)), key=lengths.__getitem__)
        found: list[Tensor] = []
        for batch in self.encoder.batches([texts[n] for n in order], self.batch):
            found.append(self._pooled(batch))
            self.log.progress("encoding", min(len(texts), self.batch * len(found)), len(texts))
        together = torch.cat(found)
        made = torch.empty_like(together)
        made[torch.tensor(order)] = together
        return made

    @property
    def token_identity(self) -> dict[str, Any]:
        """What an index of token vectors carries: its vectors do not mix with pooled ones."""
        return {**self.identity, "digest": digest(canonical({"tokens of": self.identity["digest"]}))}

    def tokens(
        self, texts: Sequence[str], names: Sequence[str] | None = None, what: str = "document", cut: bool = True
    ) -> list[Tensor]:
        """Return the last hidden states of each text, of length 1, float32 [T, d]; no padding.

        Args:
            names, what, cut: see `vectors`; texts without names are taken as they are.

        Raises:
            DataError: see `vectors`.
        """
        if names is not None:
            self._check(texts, names, self._lengths(texts), what, cut)
        found: list[Tensor] = []
        for batch in self.encoder.batches(texts, self.batch):
            with torch.no_grad():
                hidden = nn.functional.normalize(call_model(self.model, batch).float(), dim=2)
            found += [one[mask.bool()] for one, mask in zip(hidden, batch["attention_mask"], strict=True)]
        return found

    def _check(self, texts: Sequence[str], names: Sequence[str], lengths: Sequence[int], what: str, cut: bool) -> None:
        for name, text, length in zip(names, texts, lengths, strict=True):
            if not text.strip():
                raise DataError(f"{what} {name} is empty; leave it out")
            if length > self.encoder.length and not cut:
                raise DataError(
                    f"{what} {name} has {length} tokens and the encoder reads {self.encoder.length}; make it shorter"
                )

    @torch.no_grad()
    def _pooled(self, batch: dict[str, Tensor]) -> Tensor:
        return self.encoder.vectors(call_model(self.model, batch), batch["attention_mask"])

    def _lengths(self, texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in self.encoder.tokenizer(list(texts), verbose=False)["input_ids"]] if texts else []


class PictureReader:
    """A vision tower of a Hugging Face folder; pictures are cut square, made as large as it reads, and scaled.

    Vectors are what the class's own pooling gives (`pooler_output`), else the mean of its tokens.
    """

    def __init__(self, model: str, batch: int = 32, log: Log = SILENT) -> None:
        from lessen.architectures.loading import load_host

        folder = Path(host_folder(model))
        self.model = load_host(model, "float32", log)
        self.batch, self.log = batch, log
        said = folder / "preprocessor_config.json"
        scaling = parse_json(said.read_bytes(), str(said)) if said.is_file() else {}
        config = getattr(self.model.config, "vision_config", self.model.config)
        self.side = int(getattr(config, "image_size", 224))
        self.mean, self.std = (
            torch.tensor(scaling.get(f"image_{name}", [0.5] * 3)).view(3, 1, 1) for name in ("mean", "std")
        )
        knobs = {"side": self.side, "mean": self.mean.flatten().tolist(), "std": self.std.flatten().tolist()}
        self.identity: dict[str, Any] = {
            "kind": "pictures", "name": model,
            "digest": digest(canonical({"folder": read_folder(folder).digest, **knobs})),
        }  # fmt: skip

    @torch.no_grad()
    def vectors(self, paths: Sequence[Path]) -> Tensor:
        """Return the vectors of pictures, float32 [n, d]. Raises DataError for a file that is no picture."""
        found: list[Tensor] = []
        tower = self.model.get_image_features if hasattr(self.model, "get_image_features") else self.model
        for first in range(0, len(paths), self.batch):
            pixels = torch.stack([self._pixels(path) for path in paths[first : first + self.batch]])
            found.append(_one_vector(tower(pixel_values=(pixels - self.mean) / self.std)))
            self.log.progress("encoding", first + len(pixels), len(paths))
        return torch.cat(found)

    def _pixels(self, path: Path) -> Tensor:
        from PIL import Image, ImageOps

        with foreign(f"{path} is not a picture that can be read"), Image.open(path) as opened:
            small = ImageOps.fit(opened.convert("RGB"), (self.side, self.side), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(small)).permute(2, 0, 1).float() / 255.0


def _one_vector(output: Any) -> Tensor:
    """Return one vector a picture of what a tower gives."""
    if isinstance(output, Tensor):
        return output.float()
    pooled = getattr(output, "image_embeds", None)
    pooled = getattr(output, "pooler_output", None) if pooled is None else pooled
    if pooled is not None:
        return torch.as_tensor(pooled).float().flatten(1)
    hidden = getattr(output, "last_hidden_state", None)
    if hidden is None:
        raise ConfigError(f"this tower gives {type(output).__name__} and no vectors; give the folder of an encoder")
    return torch.as_tensor(hidden).float().flatten(2).mean(2 if hidden.dim() == 4 else 1)


def read_texts(path: Path, column: str = "text", names: str = "id") -> Iterator[tuple[str, str]]:
    """Yield name and text of each document: a line of a .txt file, or a row of a table.

    Args:
        column, names: of a table (.jsonl, .parquet, .csv, .tsv); row numbers where it has no `id`.

    Raises:
        DataError: the file is absent or damaged, of no known kind, or a text is missing or empty.
    """
    if not path.is_file():
        raise DataError(f"no file of texts at {path}")
    if path.suffix == ".txt":
        with foreign(f"cannot read {path} as UTF-8 text"):
            lines = path.read_text("utf-8-sig").splitlines()
        for number, line in enumerate(lines, 1):
            if not line.strip():
                raise DataError(f"{path}, line {number} is an empty document; leave it out")
            yield str(number), line.strip()
        return
    if path.suffix not in TABLES:
        raise DataError(f"{path} is no file of texts that is known: it must end in .txt, {', '.join(TABLES)}")
    for piece in read_pieces(path, ReadSettings(), [column, names]):
        if column not in piece.frame.columns:
            raise DataError(f"{path} has no column {column!r} of texts")
        if names not in (*piece.frame.columns, "id"):
            raise DataError(f"{path} has no column {names!r} of names")
        texts = piece.frame.get_column(column).to_list()
        own = piece.frame.get_column(names).to_list() if names in piece.frame.columns else None
        for row, text in enumerate(texts):
            if text is None or not str(text).strip():
                raise DataError(f"{path}, line {piece.line_of(row)} is an empty document; leave it out")
            name = str(piece.line_of(row)) if own is None else own[row]
            if name is None:
                raise DataError(f"{path}, line {piece.line_of(row)} has no id")
            yield str(name), str(text)


def pictures_of(folder: Path) -> list[Path]:
    """Return the pictures of a folder and the folders in it, by name. Raises DataError where there is none."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES and path.is_file())
    if not found:
        raise DataError(f"{folder} holds no picture ({', '.join(PICTURES)})")
    return found


def digest_of_model(model: nn.Module) -> str:
    """Return the SHA-256 of a model's tensors, for weights that stand in no folder."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return found.hexdigest()
