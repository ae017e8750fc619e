"""Microbatches as they go up: references to what a worker's store has, and encoded activations of the rest.

Axes: B samples, b those of them that a store lacks, K tokens that go up of a modality, D width.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.actions import OutputsReceived, TensorsWanted
from cutlayer.broker.errors import RunError, WireError
from cutlayer.broker.messages import EncodedTensor, Mode, NegotiatedCodecs
from cutlayer.broker.ragged_tokens import pack_rows
from cutlayer.broker.sample_refs import SampleRefs, pack_mask, pack_numbers, pack_positions, unpack_mask
from cutlayer.broker.tensors import encode_tensor
from cutlayer.compression import CodecError
from cutlayer.edge_agent.batches import Targets
from cutlayer.edge_agent.candidate_judge import CandidateJudge
from cutlayer.edge_agent.client_side import Tokenized
from cutlayer.edge_agent.codec_ladder import CodecLadder
from cutlayer.edge_agent.enrolment import Enrolled
from cutlayer.edge_agent.kept_samples import KeptSamples
from cutlayer.edge_agent.reporter import Reporter
from cutlayer.edge_agent.sample_changes import SampleChanges, SentChanges
from cutlayer.edge_agent.work_items import WorkItem

__all__ = ["Flight", "Microbatch", "Packer"]


@dataclass(frozen=True, slots=True)
class Microbatch:
    """A microbatch, ready to go up.

    Attributes:
        step: Its number in its mode.
        mode: What it is for.
        num_samples: Samples B.
        tensors: (modality, tokens (F, K, D)) of each modality given, of the samples that are fresh.
        refs: What goes up of the samples besides.
        candidate: The candidate that it judges; empty for the newest weights.
    """

    step: int
    mode: Mode
    num_samples: int
    tensors: tuple[tuple[str, EncodedTensor], ...]
    refs: SampleRefs
    candidate: str = ""


@dataclass(slots=True)
class Flight:
    """A microbatch that is out.

    Attributes:
        item: What it is of.
        targets: What is true of its samples.
        is_answered: Whether its outputs have come.
        positions: Which tokens went up, (B, K), by modality, where they are reduced or ragged.
        sent: What the worker's store will have of it, where changes went up that are not answered yet.
    """

    item: WorkItem
    targets: Targets
    is_answered: bool = False
    positions: dict[str, NDArray[np.intp]] = field(default_factory=dict)
    sent: SentChanges | None = None


class Packer:
    """Packs one agent's microbatches, and keeps books on what the workers' stores have of its samples.

    Args:
        enrolled: The run, and the client side of its model.
        reporter: Times what is done.
        judge: Has the tokenizers of the candidate that is evaluated.
        may_be_kept: Whether workers may keep activations.
        ladder: Chooses the codec of activations; None for the lease's.
        change_bytes: Memory for what workers have of samples, where changes go up.
    """

    def __init__(
        self,
        enrolled: Enrolled,
        reporter: Reporter,
        judge: CandidateJudge,
        *,
        may_be_kept: bool,
        ladder: CodecLadder | None,
        change_bytes: int,
    ) -> None:
        manifest, plan = enrolled.manifest, enrolled.plan
        self._client = enrolled.client
        self._reporter = reporter
        self._judge = judge
        self._may_be_kept = may_be_kept
        self._ladder = ladder
        self._all_modalities = enrolled.client.modalities
        self._num_tokens = {name: spec.num_tokens for name, spec in manifest.modalities.items()}
        self._num_sent = {name: manifest.num_tokens(name) for name in self._all_modalities}
        self._num_train, self._num_test = plan.num_train, plan.num_test
        num_samples = plan.num_train + plan.num_test + plan.num_val
        self._kept = KeptSamples(num_samples)
        self._changes = SampleChanges(num_samples, change_bytes) if manifest.activations == "delta" else None

    def pack(
        self, flight: Flight, codecs: NegotiatedCodecs, store: str, out: Collection[Flight], num_passes: int = 0
    ) -> Microbatch:
        """Make a microbatch: references to what the store has, tensors of the rest.

        Args:
            flight: What it is of; takes notice of what goes up.
            codecs: The lease's.
            store: The store that it goes to; empty for none.
            out: All that are out.
            num_passes: Its samples, unless it goes again.

        Raises:
            RunError: When the activations cannot be encoded as the lease says.
        """
        item = flight.item
        numbers_B = self._numbers(item)
        known_B = self._kept.known(store, numbers_B)
        if not (store and self._may_be_kept):
            known_B[:] = False
        # A store takes the modalities of a sample together or not at all.
        is_named = bool(known_B.any()) or (bool(store) and self._may_be_kept and item.given == self._all_modalities)
        tensors: tuple[tuple[str, EncodedTensor], ...] = ()
        positions: tuple[tuple[str, bytes], ...] = ()
        bases = b""
        if not known_B.all():
            of_candidate = item.evaluation is not None and item.evaluation.candidate != ""
            with self._reporter.stage("tokenize"), self._judge.tokenizers(is_wanted=of_candidate):
                tokenized = self._client.tokenize(item.split, item.indices[~known_B], item.given)
            with self._reporter.stage("encode"):
                codec = self._codec(codecs.activations, tokenized, item, is_kept=is_named)
                if self._changes is not None and is_named:
                    tensors, bases = self._encode_changes(self._changes, flight, store, codec, tokenized, out)
                else:
                    tensors = self._encoded(codec, tokenized)
                positions = tuple(
                    (name, pack_positions(places_BK, self._num_tokens[name])) for name, places_BK in tokenized.positions
                )
            flight.positions = dict(tokenized.positions)
        refs = SampleRefs(
            samples=pack_numbers(numbers_B) if is_named else b"",
            stored=pack_mask(known_B),
            from_store=item.given if known_B.all() else (),
            bases=bases,
            positions=positions,
        )
        if self._ladder is not None:
            self._ladder.add(
                num_passes=num_passes if item.mode is Mode.TRAIN else 0,
                num_fresh=int((~known_B).sum()) * self._share_of(item.given),
                tensor_bytes=sum(len(tensor.data) for _, tensor in tensors),
            )
        candidate = "" if item.evaluation is None else item.evaluation.candidate
        return Microbatch(item.step, item.mode, len(item.indices), tensors, refs, candidate)

    def answered(self, flight: Flight, received: OutputsReceived) -> None:
        """Take notice of what a store has of a microbatch that was answered."""
        if not (self._may_be_kept and flight.item.given == self._all_modalities):
            return
        numbers_B = self._numbers(flight.item)
        try:
            unkept_B = unpack_mask(received.unkept, len(numbers_B))
        except WireError:
            return
        if self._changes is None and received.store:
            self._kept.add(received.store, numbers_B[~unkept_B])
        if self._changes is not None and flight.sent is not None:
            self._changes.answered(flight.sent, received.store, unkept_B)
            flight.sent = None

    def lacks(self, item: WorkItem, wanted: TensorsWanted) -> None:
        """Take notice of which samples of a microbatch a store lacks."""
        numbers_B = self._numbers(item)
        try:
            missing_B = unpack_mask(wanted.missing, len(numbers_B))
        except WireError:
            missing_B = np.zeros(len(numbers_B), bool)
        # A worker that lacks nothing and asks all the same is helped by everything.
        lacking_b = numbers_B[missing_B] if missing_B.any() else numbers_B
        self._kept.remove(wanted.store, lacking_b)
        if self._changes is not None:
            self._changes.lacks(wanted.store, lacking_b)

    def _encode_changes(
        self,
        changes: SampleChanges,
        flight: Flight,
        store: str,
        codec: str,
        tokenized: Tokenized,
        out: Collection[Flight],
    ) -> tuple[tuple[tuple[str, EncodedTensor], ...], bytes]:
        """Encode a microbatch as changes since its samples' last visits."""
        others = [other.sent for other in out if other.sent is not None and other is not flight]
        numbers_B = self._numbers(flight.item)
        try:
            tensors, bases, flight.sent = changes.encode(store, numbers_B, tokenized.tokens, codec, others)
        except CodecError as error:
            raise _unencodable(codec, error) from error
        return tensors, bases

    def _encoded(self, codec: str, tokenized: Tokenized) -> tuple[tuple[str, EncodedTensor], ...]:
        """Encode tokens: all of each sample's, or of a ragged microbatch those that are there."""
        places = dict(tokenized.positions)
        rows = (
            (name, pack_rows(tokens_BKD, places[name], self._num_tokens[name]) if name in places else tokens_BKD)
            for name, tokens_BKD in tokenized.tokens
        )
        try:
            return tuple((name, encode_tensor(codec, tokens)) for name, tokens in rows)
        except CodecError as error:
            raise _unencodable(codec, error) from error

    def _codec(self, lease_codec: str, tokenized: Tokenized, item: WorkItem, *, is_kept: bool) -> str:
        """Return the codec of a microbatch's activations."""
        if self._ladder is None:
            return lease_codec
        tokens = [tokens_BKD for _, tokens_BKD in tokenized.tokens]
        is_whole = item.given == self._all_modalities
        # Changes go up each time, though of samples that workers know.
        goes_once = is_kept and self._changes is None
        return self._ladder.choose(lease_codec, tokens, is_whole=is_whole, is_kept=goes_once)

    def _share_of(self, given: tuple[str, ...]) -> float:
        """Return the share of a sample's tokens that some modalities have."""
        return sum(self._num_sent[name] for name in given) / sum(self._num_sent.values())

    def _numbers(self, item: WorkItem) -> NDArray[np.int64]:
        """Return the agent's own numbers of a microbatch's samples: for training, then for testing, then the others."""
        first = {"train": 0, "test": self._num_train, "val": self._num_train + self._num_test}
        return item.indices + first[item.split]


def _unencodable(codec: str, error: CodecError) -> RunError:
    return RunError(
        f"activations cannot be encoded as {codec!r}, which the worker asks for: {error}\n"
        "  fix: choose another codec in the run settings"
    )
