"""A tokenizer of one's own: a small convolutional network, 16 x 16 pixels to 16 tokens."""

import torch
from torch import Tensor, nn


class ScanTokenizer(nn.Module):
    """Grey scans, bytes (B, 16, 16, 1), to a token for each 4 x 4 pixels, (B, 16, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(32, width, 2, stride=2),
        )
        # Tokens of variance 1, which is what an encoder without pretrained weights begins with.
        self.norm = nn.LayerNorm(width)

    def forward(self, scans: Tensor) -> Tensor:
        """Return tokens."""
        pixels = scans.permute(0, 3, 1, 2).to(torch.float32) / 127.5 - 1.0
        tokens: Tensor = self.norm(self.layers(pixels).flatten(2).transpose(1, 2))
        return tokens


def build(spec: object, width: int, seed: int) -> nn.Module:
    """Return the tokenizer: what `edge-agent start --tokenizer` calls.

    Args:
        spec: [modalities.scan] of the run.
        width: Width of a token.
        seed: The run's seed. Torch's own generator has been set with it, so that all sites begin alike.
    """
    del spec, seed
    return ScanTokenizer(width)
