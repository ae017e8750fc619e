"""What a run tunes, what of a site's data it sends, and what a server can infer from that: said before it begins.

As the README says: activations of a known tokenizer can be inverted to a large part, and output gradients tell labels.
This names the parts, for the modalities, the task and the settings of one run.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from cutlayer.broker.manifest import Manifest
from cutlayer.broker.tensors import WEIGHTS_CODEC
from cutlayer.broker.tuning_spec import TuningSpec

__all__ = ["Disclosure", "Sent", "Tuned", "disclose"]

_HOW_OFTEN = {
    "once": "once a run, then by number",
    "every-step": "each epoch",
    "delta": "once, then changes each epoch",
}
_FEATURES = {"image": "pixels", "audio": "the log-mel spectrogram", "series": "values"}
_LABELS = {
    "classification": "The label of each training sample: its output gradient is negative there and nowhere else.",
    "multi-label": "The labels of each training sample: its output gradients are negative there and nowhere else.",
    "regression": "Each training sample's target: its output gradient is its error, or at least the error's sign.",
    "retrieval": "Which samples belong together: position says so, and there are no labels.",
}
_WITH_OWN_HEAD = {
    "classification": "Which training samples of a site have the same label: feature gradients differ by label.",
    "multi-label": "Which training samples of a site have alike labels: feature gradients differ by labels.",
    "regression": "Each training sample's error but for a factor: feature gradients are proportional.",
}
_FOLLOWED = (
    "The head itself, and with it labels and outputs, by following it from its first weights, which the run's seed "
    'tells; not with [model] head_start = "secret".'
)


@dataclass(frozen=True, slots=True)
class Tuned:
    """What trains.

    Attributes:
        mode: As [tuning] has it.
        what: The same in words.
        trained_parameters: Of the encoder, LoRA's included.
        all_parameters: Of the encoder, LoRA's apart.
        tokenizer_parameters: Of the tokenizers.
        tokenizers: Whether these train.
        goes_back_through_all: Whether gradients go back through all blocks.
    """

    mode: str
    what: str
    trained_parameters: int
    all_parameters: int
    tokenizer_parameters: int
    tokenizers: Literal["frozen", "trainable"]
    goes_back_through_all: bool


@dataclass(frozen=True, slots=True)
class Sent:
    """One kind of tensor on the wire.

    Attributes:
        what: Its name.
        direction: `up` to the worker or `down` to the agent.
        shape: Of one sample, or of all parameters.
        codec: As settings name it; leases may have another.
        when: How often.
    """

    what: str
    direction: Literal["up", "down"]
    shape: tuple[int, ...]
    codec: str
    when: str


@dataclass(frozen=True, slots=True)
class Disclosure:
    """What a run says of itself before it begins.

    Attributes:
        tuned: What trains.
        sent: What goes over the wire.
        server_can_infer: What whoever holds the server can find out about a site's samples, a sentence each.
        stays: What never leaves a site, a sentence each.
    """

    tuned: Tuned
    sent: tuple[Sent, ...]
    server_can_infer: tuple[str, ...]
    stays: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return it as `run.json` has it."""
        return asdict(self)


def disclose(manifest: Manifest, num_tokenizer_parameters: int, *, goes_back_through_all: bool) -> Disclosure:
    """Say what a run does.

    Args:
        manifest: The run.
        num_tokenizer_parameters: Parameters of the tokenizers.
        goes_back_through_all: Whether gradients go back through all blocks.
    """
    num_trained = manifest.num_trained_parameters
    tuned = Tuned(
        mode=manifest.tuning.mode,
        what=_in_words(manifest.tuning, has_head=manifest.head is None),
        trained_parameters=manifest.num_parameters if num_trained is None else num_trained,
        all_parameters=manifest.num_parameters,
        tokenizer_parameters=num_tokenizer_parameters,
        tokenizers=manifest.tokenizers.mode,
        goes_back_through_all=goes_back_through_all,
    )
    inferred = [_of_inputs(manifest, name) for name in sorted(manifest.modalities)]
    inferred += [
        *_of_outputs(manifest),
        "How many samples each site has, which of them a microbatch holds, and which modalities they lack.",
    ]
    stays = [
        *(f"The tokenizer of {name}." for name, spec in sorted(manifest.modalities.items()) if spec.kind == "tokens"),
        "The raw data themselves, their names, and what no tokenizer takes in.",
        "Labels of test samples: of their losses and metrics only sums leave.",
        "Of a visit (edge-agent evaluate, predict) its labels, losses, metrics and predictions, sums of them included.",
    ]
    if manifest.head is not None:
        stays.append("The head, and the outputs that it makes of features.")
    return Disclosure(tuned, _sent(manifest, num_tokenizer_parameters), tuple(inferred), tuple(stays))


def _of_outputs(manifest: Manifest) -> list[str]:
    """Say what a server learns of labels and of what the model makes of samples."""
    if manifest.head is None:
        return [
            _LABELS[manifest.task.kind],
            "What the model makes of every sample, test samples included: it computes the outputs.",
        ]
    same = [
        _WITH_OWN_HEAD[manifest.task.kind],
        "The features of every sample, test samples included: it computes them.",
    ]
    return [*same, _FOLLOWED] if manifest.head == "alike" else same


def _in_words(tuning: TuningSpec, *, has_head: bool) -> str:
    embeddings = {"new": "embeddings of modalities that are new", "all": "embeddings of all modalities"}
    with_them = [embeddings[tuning.embeddings]] if tuning.embeddings in embeddings else []
    first = {
        "full": ["all of the encoder"],
        "last": [f"the last {tuning.blocks} blocks" if tuning.blocks > 1 else "the last block", "the norm behind"],
        "lora": [
            f"additions of rank {tuning.rank} (alpha {tuning.alpha:g}) to {', '.join(tuning.targets)} of all blocks"
        ],
        "frozen": [],
    }[tuning.mode]
    return ", ".join([*first, *([] if tuning.mode == "full" else with_them), *(["the head"] if has_head else [])])


def _sent(manifest: Manifest, num_tokenizer_parameters: int) -> tuple[Sent, ...]:
    codecs, width = manifest.codecs, manifest.width
    shapes = {name: (manifest.num_tokens(name), width) for name in sorted(manifest.modalities)}
    trained, evaluated = (manifest.num_train_outputs,), (manifest.num_outputs,)
    name = "outputs" if manifest.head is None else "features"
    ladder = f", or down to {manifest.budget.ladder[-1]}" if manifest.budget.ladder else ""
    sent = [
        Sent(f"activations of {name}", "up", shape, codecs.activations + ladder, _HOW_OFTEN[manifest.activations])
        for name, shape in shapes.items()
    ]
    sent += [
        Sent(name, "down", trained, codecs.outputs, "each step"),
        Sent(f"{name.removesuffix('s')} gradients", "up", trained, codecs.output_gradients, "each step"),
        Sent(f"{name} of test samples", "down", evaluated, codecs.outputs, "each evaluation"),
    ]
    if manifest.tokenizers.mode == "trainable":
        sent += [
            Sent(f"activation gradients of {name}", "down", shape, codecs.activation_gradients, "each step")
            for name, shape in shapes.items()
        ]
    if manifest.tokenizers.mode == "trainable" and num_tokenizer_parameters:
        shape, tokenizers = (num_tokenizer_parameters,), manifest.tokenizers
        sent += [
            Sent("tokenizers' gradients", "up", shape, codecs.output_gradients, f"each {tokenizers.every_steps} steps"),
            Sent("tokenizers", "down", shape, WEIGHTS_CODEC, f"each {tokenizers.every_windows} windows"),
        ]
    return tuple(sent)


def _of_inputs(manifest: Manifest, name: str) -> str:
    """Say what a server learns of a modality's raw data from its tokens, whose tokenizer it has made itself."""
    spec, width = manifest.modalities[name], manifest.width
    num_sent = manifest.num_tokens(name)
    share = "" if num_sent == spec.num_tokens else f" of the {num_sent} tokens of {spec.num_tokens} that are sent"
    but = "" if manifest.codecs.activations == "identity" else ", up to the codec's error"
    if spec.kind == "text":
        return f"{name}: every subword{share}, by comparing tokens with the embedding table."
    if spec.kind == "tokens":
        return f"{name}: what the site's own tokenizer lets through{share}; the server does not have its weights{but}."
    if spec.kind == "table":
        return f"{name}: every cell{share}: a token is its column's vector times its number, or its category's{but}."
    num_values = spec.parameter_shapes(width)["weight"][0]
    what = _FEATURES[spec.kind]
    if num_values <= width:
        return (
            f"{name}: {what}{share}, by solving the linear tokenizer patch by patch "
            f"({num_values} values, {width} equations){but}."
        )
    return (
        f"{name}: {what}{share} but for detail: the linear tokenizer keeps {width} of the {num_values} dimensions of a "
        f"patch{but}."
    )
