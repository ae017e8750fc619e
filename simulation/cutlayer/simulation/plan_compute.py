"""Floating-point operations and memory of a site: as an edge agent, and as a client of federated averaging.

An operation is an addition or a multiplication: a multiply-accumulate counts 2. Only matrix products are counted in the
transformer, as is usual (Kaplan et al., arXiv 2001.08361, section 2.1): norms, nonlinearities and the softmax are not.
A backward pass takes twice a forward pass: once for the gradients of the activations and once for those of the weights
(same place).

Letters: N tokens of a modality, P values of a patch, D width, T length of a sequence with its prefix tokens, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cutlayer.broker.manifest import ActivationMode, Manifest, ModalitySpec
from cutlayer.compression.delta import DEFAULT_MAX_BYTES
from cutlayer.edge_agent.sample_features import CACHE_BYTES

__all__ = [
    "BlockSizes",
    "ModelSizes",
    "agent_memory_bytes",
    "feature_flops",
    "forward_flops",
    "learning_flops",
    "projection_flops",
    "raw_sample_bytes",
]

FLOAT32_BYTES, FLOAT64_BYTES, FLOAT16_BYTES = 4, 8, 2
CHANGE_ENTRY_BYTES = 300
"""Of a sample's reconstruction, beside its numbers."""


@dataclass(frozen=True, slots=True)
class BlockSizes:
    """One block of the transformer.

    Attributes:
        num_parameters: All of them.
        linear_weights: Weights of its linear maps, which each token is multiplied by.
        lora_dimensions: Inputs and outputs of the two maps that LoRA adapts: qkv and the attention's projection.
    """

    num_parameters: int
    linear_weights: int
    lora_dimensions: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """What decides a model's cost.

    Attributes:
        width: D.
        num_classes: C.
        sequences: Lengths T of the sequences that a sample makes: one, or with late fusion one a modality.
        blocks: The blocks, the first one first.
        num_encoder_parameters: Parameters of the server side, and of the head where agents have it.
        num_tokenizer_parameters: Parameters of the tokenizers.
        num_norm_parameters: Parameters of the last norm, which is trained with the last blocks.
    """

    width: int
    num_classes: int
    sequences: tuple[int, ...]
    blocks: tuple[BlockSizes, ...]
    num_encoder_parameters: int
    num_tokenizer_parameters: int
    num_norm_parameters: int

    @property
    def num_parameters(self) -> int:
        """Parameters of the whole model."""
        return self.num_encoder_parameters + self.num_tokenizer_parameters

    @property
    def num_head_parameters(self) -> int:
        """Parameters of the head, a linear map."""
        return self.num_classes * (self.width + 1)


def block_flops(block: BlockSizes, sequences: tuple[int, ...], width: int) -> int:
    """Return the operations of one block's forward pass for one sample.

    2 x weights x T for the linear maps, and 2 x 2 x T x T x D for the attention: queries times keys, and weights times
    values, over all heads together.
    """
    return sum(2 * block.linear_weights * length + 4 * length * length * width for length in sequences)


def forward_flops(model: ModelSizes) -> int:
    """Return the operations of the encoder's forward pass for one sample: its blocks and the head."""
    blocks = sum(block_flops(block, model.sequences, model.width) for block in model.blocks)
    return blocks + 2 * model.width * model.num_classes


def projection_flops(manifest: Manifest) -> int:
    """Return the operations that turn one sample's features into tokens: 2 x N x P x D for patches."""
    return sum(spec.num_tokens * spec.token_flops(manifest.width) for spec in manifest.modalities.values())


def learning_flops(manifest: Manifest) -> int:
    """Return the operations of the tokenizers' own backward pass for one sample; none where they are frozen.

    2 x K x P x D for the gradients of the weights of patches, K being the tokens that went up. Nothing is behind the
    tokenizers, so no other gradient is needed, and an agent does two thirds of a training step of theirs.
    """
    if manifest.tokenizers.mode == "frozen":
        return 0
    return sum(
        manifest.num_tokens(name) * spec.token_flops(manifest.width) for name, spec in manifest.modalities.items()
    )


def feature_flops(modalities: Mapping[str, ModalitySpec]) -> int:
    """Return the operations that turn one raw sample into features, once in a run while the cache has room."""
    return sum(spec.feature_flops for spec in modalities.values())


def feature_bytes(modalities: Mapping[str, ModalitySpec]) -> int:
    """Return what one sample's features take in an agent's cache."""
    return sum(spec.feature_bytes for spec in modalities.values())


def raw_sample_bytes(modalities: Mapping[str, ModalitySpec]) -> int:
    """Return what one raw sample takes, as it is usually stored."""
    return sum(spec.raw_bytes for spec in modalities.values())


def agent_memory_bytes(
    manifest: Manifest,
    model: ModelSizes,
    num_samples: int,
    num_credits: int,
    microbatch_wire_bytes: float,
    mode: ActivationMode = "every-step",
) -> dict[str, int]:
    """Return what an agent holds beside its interpreter, its libraries and its data set, by what it is.

    Args:
        manifest: The run.
        model: Its model.
        num_samples: The agent's samples.
        num_credits: Microbatches that are out at once.
        microbatch_wire_bytes: Bytes of the activations of one.
        mode: How activations go up.
    """
    tokens_bytes = sum(manifest.num_tokens(name) * manifest.width * FLOAT32_BYTES for name in manifest.modalities)
    microbatch_bytes = manifest.microbatch_samples * (tokens_bytes + feature_bytes(manifest.modalities))
    found = {
        "cache": min(CACHE_BYTES, num_samples * feature_bytes(manifest.modalities)),
        "weights": model.num_tokenizer_parameters * FLOAT32_BYTES,
        # One is being made as float32; those that are out are held encoded, once as a message and once as bytes.
        "microbatches": round(microbatch_bytes + 2 * num_credits * microbatch_wire_bytes),
    }
    if mode == "delta":
        sample_bytes = tokens_bytes // FLOAT32_BYTES * FLOAT16_BYTES + CHANGE_ENTRY_BYTES
        found["what workers have of samples"] = min(DEFAULT_MAX_BYTES, num_samples * sample_bytes)
    if manifest.tokenizers.mode == "trainable":
        # Sums of their gradients, and a microbatch's gradients at the cut.
        sums_bytes = model.num_tokenizer_parameters * FLOAT64_BYTES
        found["tokenizers' gradients"] = sums_bytes + manifest.microbatch_samples * tokens_bytes
    return found
