"""Which of the encoder's parameters train: all, the last blocks, low-rank additions, or none of the blocks'.

    mode     blocks                   behind them (norm, pooling)   embeddings of modalities   head
    full     all                      yes                           all                        yes
    last     the last k               yes                           [tuning] embeddings        yes
    lora     additions to all         no                            [tuning] embeddings        yes
    frozen   none                     no                            [tuning] embeddings        yes

The head is new in every run, so it trains in every mode. What lies between the trained parameters and the head has a
graph and a backward pass, and nothing else has: with `last` and `frozen` and no trained embedding, blocks that are
frozen cost a forward pass alone. A trained embedding lies before all blocks, so that gradients go back through all of
them. Trained tokenizers are a matter of their own ([tokenizers]) and have the same cost.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from cutlayer.broker.errors import SettingsError
from cutlayer.broker.tuning_spec import TuningSpec
from cutlayer.server_worker.encoder import SplitEncoder
from cutlayer.server_worker.lora import LoraLinear
from cutlayer.server_worker.modality_embedding import ModalityEmbedding

__all__ = ["goes_back_through_all", "num_trained", "tune"]


def tune(encoder: SplitEncoder, spec: TuningSpec, known: Collection[str] = ()) -> None:
    """Freeze what a mode does not train, and add what LoRA adds. Draws from torch's global generator for LoRA alone.

    Args:
        encoder: Changed in place; nothing of it is frozen yet.
        spec: The [tuning] section.
        known: Modalities that the weights which the run begins with were trained on.

    Raises:
        SettingsError: When the encoder has fewer blocks than are to train, or no such linear maps.
    """
    if spec.mode == "full":
        return
    # All that is not the ViT's own, such as the head, trains.
    for part in (encoder.embeddings, encoder.token_norm, encoder.vit):
        part.requires_grad_(False)
    for name in encoder.names:
        embedding = encoder.embeddings[f"{name}_tokens"]
        assert isinstance(embedding, ModalityEmbedding)
        is_new = name not in known
        embedding.requires_grad_(spec.embeddings == "all" or (spec.embeddings == "new" and is_new))
        if embedding.missing is not None:
            embedding.missing.requires_grad_(spec.embeddings != "none")  # no checkpoint has one
        if not is_new and embedding.modality is not None and not embedding.modality.requires_grad:
            # No checkpoint has one: what is drawn and never trained would only blur what the weights know.
            nn.init.zeros_(embedding.modality)
    if spec.mode == "last":
        _train_last(encoder, spec)
    if spec.mode == "lora":
        for block in encoder.vit.blocks:
            _add_to(block, spec)


def num_trained(module: nn.Module) -> int:
    """Return how many parameters train."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def goes_back_through_all(encoder: SplitEncoder) -> bool:
    """Return whether gradients go back through all blocks: something before them trains, or something in the first."""
    if encoder.tokenizers is not None:
        return True
    parts: list[nn.Module] = [encoder.embeddings, encoder.token_norm, encoder.vit.norm_pre, encoder.vit.blocks[0]]
    return any(num_trained(part) for part in parts)


def _train_last(encoder: SplitEncoder, spec: TuningSpec) -> None:
    blocks = list(encoder.vit.blocks)
    if spec.blocks > len(blocks):
        raise SettingsError(
            f"[tuning] blocks = {spec.blocks}, and the encoder has {len(blocks)}", f"choose 1 to {len(blocks)}"
        )
    behind = [encoder.vit.norm, encoder.vit.attn_pool, encoder.vit.fc_norm]
    for module in (*blocks[-spec.blocks :], *behind):
        if module is not None:
            module.requires_grad_(True)


def _add_to(block: nn.Module, spec: TuningSpec) -> None:
    for target in spec.targets:
        places = [name for name, module in block.named_modules() if _is_called(name, target, module)]
        if not places:
            found = {name.rpartition(".")[2] for name, module in block.named_modules() if isinstance(module, nn.Linear)}
            raise SettingsError(
                f"[tuning] targets has {target!r}, and a {type(block).__name__} of this encoder has no such linear map",
                f"its linear maps are {', '.join(sorted(found))}: leave {target!r} out, or set mode to last",
            )
        for place in places:
            linear = block.get_submodule(place)
            assert isinstance(linear, nn.Linear)
            if spec.rank > min(linear.in_features, linear.out_features):
                raise SettingsError(
                    f"[tuning] rank = {spec.rank} is over what {place} of {linear.in_features} x "
                    f"{linear.out_features} can have",
                    f"choose 1 to {min(linear.in_features, linear.out_features)}; 4 to 16 is usual",
                )
            block.set_submodule(place, LoraLinear(linear, spec.rank, spec.alpha))


def _is_called(name: str, target: str, module: nn.Module) -> bool:
    return name.rpartition(".")[2] == target and isinstance(module, nn.Linear)
