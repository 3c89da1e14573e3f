"""Small networks as the sheets of CLHE, PRE and CRATE say them: what they compute for training goes when they serve."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def tower(width: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, out))


class ItemEncoder(nn.Module):
    """Contents and text through layers, an embedding beside them, attention over the three: one vector an item."""

    def __init__(self, items: int, width: int = 32, out: int = 8) -> None:
        super().__init__()
        self.register_buffer("content", torch.randn(items, width))
        self.register_buffer("text", torch.randn(items, width))
        self.own = nn.Embedding(items, out)
        self.of_content, self.of_text = tower(width, out), tower(width, out)
        self.query, self.key = nn.Linear(out, out), nn.Linear(out, out)

    def forward(self, items: Tensor) -> Tensor:
        both = F.normalize(self.of_content(self.content[items]), dim=-1)
        both = both + F.normalize(self.of_text(self.text[items]), dim=-1)
        each = torch.stack([F.normalize(value, dim=-1) for value in (both, self.own(items))], -2)
        shares = (self.query(each) @ self.key(each).transpose(-1, -2) / 8).softmax(-1)
        return (shares @ each).mean(-2)


class Bundles(nn.Module):
    """CLHE: encoders of items on both sides, a bundle between them."""

    def __init__(self, items: int = 50) -> None:
        super().__init__()
        self.input_items, self.output_items = ItemEncoder(items), ItemEncoder(items)
        self.query, self.key = nn.Linear(8, 8), nn.Linear(8, 8)
        self.register_buffer("every", torch.arange(items))

    def forward(self, bundle: Tensor) -> Tensor:
        x = F.layer_norm(self.input_items(bundle), (8,))
        shares = (self.query(x) @ self.key(x).transpose(-1, -2) / 8).softmax(-1)
        return (shares @ x).mean(1) @ self.output_items(self.every).t()


class Prompts(nn.Module):
    """PRE: learned context words, re-parameterised by a recurrent network with a way around it, then names of classes."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.context = nn.Parameter(torch.randn(4, width))
        self.encoder = nn.LSTM(width, width // 2, bidirectional=True, batch_first=True)
        self.register_buffer("names", torch.randn(classes, 6, width))

    def forward(self) -> Tensor:
        context = self.encoder(self.context[None])[0][0] + self.context
        return torch.cat([context.expand(len(self.names), -1, -1), self.names], 1)


class TextTower(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.block, self.out = nn.TransformerEncoderLayer(width, 2, 32, batch_first=True), nn.Linear(width, width)

    def forward(self, words: Tensor) -> Tensor:
        found: Tensor = self.out(self.block(words)[:, -1])
        return found


class Prompted(nn.Module):
    """Pictures against the classes that prompts and a frozen text tower describe."""

    def __init__(self, width: int = 16, classes: int = 5) -> None:
        super().__init__()
        self.prompts, self.text, self.pictures = Prompts(width, classes), TextTower(width), nn.Linear(20, width)
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        classes = F.normalize(self.text(self.prompts()), dim=-1)
        return self.scale.exp() * F.normalize(self.pictures(x), dim=-1) @ classes.t()


class ISTA(nn.Module):
    """CRATE's step towards few numbers that are not zero: three products with one dictionary."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dictionary = nn.Parameter(torch.randn(width, width) / width**0.5)

    def forward(self, u: Tensor) -> Tensor:
        coded = F.linear(u, self.dictionary)
        again = F.linear(coded, self.dictionary.t())
        return F.relu(u + 0.1 * (F.linear(u, self.dictionary.t()) - again) - 0.1 * 0.1)


class Crate(nn.Module):
    """One block of CRATE and a head."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.subspaces, self.out = nn.Linear(width, width, bias=False), nn.Linear(width, width)
        self.ista, self.head = ISTA(width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        w = self.subspaces(self.before(x))
        attended = (w @ w.transpose(-1, -2) / 4).softmax(-1) @ w
        found: Tensor = self.head(self.ista(self.between(x + self.out(attended))).mean(1))
        return found
