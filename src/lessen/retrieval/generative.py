"""Generative retrieval: an encoder-decoder writes the id of a document, along paths of categories where asked (HyPE).

query --encoder, once--> states;  each path, forced --decoder, once--> its cache, shared by all beams
    beams over the trie of ids --> documents with the log-probability of their ids --> the best of each over all paths

Source: Lee et al., Findings of ACL 2026, arXiv 2411.05572. Differences: the encoder and the forced path run once and
are shared by all beams, which changes no score; where the trie leaves one token it is taken without choosing; scores
are sums of log-probabilities of the id, to which the path's may be added (`with_path`; the published code does not).
The search is exact with as many beams as documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lessen.errors import ConfigError
from lessen.retrieval.trie import Trie


@dataclass(frozen=True)
class Hit:
    """A document, the log-probability it was written with, and the number of the path that led to it."""

    document: int
    score: float
    path: int


@dataclass(frozen=True)
class _Beams:
    nodes: list[int]
    scores: Tensor


class Writer:
    """A sequence-to-sequence model (such as T5) that writes ids.

    Args:
        model: a Hugging Face encoder-decoder in eval mode.
        trie: of the tokens of each id.
    """

    def __init__(self, model: Any, trie: Trie) -> None:
        self.model, self.trie = model, trie
        self.start = int(model.config.decoder_start_token_id)

    @torch.no_grad()
    def search(
        self,
        ids: Tensor,
        mask: Tensor,
        paths: Sequence[Sequence[int]] = ((),),
        beams: int = 20,
        with_path: bool = False,
    ) -> list[Hit]:
        """Return the documents of one query, best first, each once.

        Args:
            ids, mask: int64 [1, T] of the query.
            paths: tokens that the decoder is made to write before an id.

        Raises:
            ConfigError: there is no path, or no beam.
        """
        if not len(paths) or beams < 1:
            raise ConfigError(f"{len(paths)} paths and {beams} beams find nothing; give at least one of each")
        states = self.model.get_encoder()(input_ids=ids, attention_mask=mask)
        best: dict[int, Hit] = {}
        for number, path in enumerate(paths):
            for document, score in self._along(states, mask, path, beams, with_path):
                if document not in best or score > best[document].score:
                    best[document] = Hit(document, score, number)
        return sorted(best.values(), key=lambda hit: (-hit.score, hit.document))

    def _along(
        self, states: Any, mask: Tensor, path: Sequence[int], beams: int, with_path: bool
    ) -> list[tuple[int, float]]:
        """Return documents and scores after one forced path."""
        forced = torch.tensor([[self.start, *path]])
        output = self.model(encoder_outputs=states, attention_mask=mask, decoder_input_ids=forced, use_cache=True)
        said = output.logits[0].float().log_softmax(dim=1)
        start = float(said[range(len(path)), list(path)].sum()) if with_path and len(path) else 0.0
        live, cache, known = _Beams([0], torch.tensor([start])), output.past_key_values, said[-1:]
        found: list[tuple[int, float]] = []
        while live.nodes:
            parents, tokens, scores, nodes = self._steps(live, known, beams)
            ended = [place for place, node in enumerate(nodes) if self.trie.document(node) >= 0]
            found += [(self.trie.document(nodes[place]), float(scores[place])) for place in ended]
            going = [place for place in range(len(nodes)) if place not in set(ended)]
            live = _Beams([nodes[place] for place in going], scores[going])
            if going:
                known, cache = self._written(states, mask, cache, parents[going], tokens[going])
        return found

    def _steps(self, live: _Beams, known: Tensor, beams: int) -> tuple[Tensor, Tensor, Tensor, list[int]]:
        """Return the best continuations of all beams: beam, token, score, node of each."""
        options = [self.trie.allowed(node).long() for node in live.nodes]
        counts = torch.tensor([len(one) for one in options])
        parents, tokens = torch.repeat_interleave(torch.arange(len(options)), counts), torch.cat(options)
        scores = live.scores[parents] + known[parents, tokens]
        kept = scores.topk(min(beams, len(scores))).indices
        nodes = [
            self.trie.follow(live.nodes[parent], token)
            for parent, token in zip(parents[kept].tolist(), tokens[kept].tolist(), strict=True)
        ]
        return parents[kept], tokens[kept], scores[kept], nodes

    def _written(self, states: Any, mask: Tensor, cache: Any, parents: Tensor, tokens: Tensor) -> tuple[Tensor, Any]:
        """Return the log-probabilities of what may follow, [beams, vocabulary], and the cache."""
        cache.reorder_cache(parents)
        wide = states.last_hidden_state.expand(len(tokens), -1, -1)
        output = self.model(
            encoder_outputs=(wide,), attention_mask=mask.expand(len(tokens), -1), decoder_input_ids=tokens[:, None],
            past_key_values=cache, use_cache=True,
        )  # fmt: skip
        return output.logits[:, -1].float().log_softmax(dim=1), output.past_key_values
