"""What an agent needs before it can ask for a lease: the run manifest, its own data for it, the client-side weights.

Manifest and weights are retained at the broker. A broker may drop any of them on the way, or forget them; a new
SUBSCRIBE makes it send again what it has (MQTT 5, section 3.3.1.3), so the agent subscribes again until it is served.

The manifest of a run whose workers were killed stays at the broker. An agent that does not fit it may well fit the run
that comes next: it keeps the error to itself, and raises it once a worker says that it serves that run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from cutlayer.broker.agent_workers import MAX_WORKERS
from cutlayer.broker.errors import ManifestUnsatisfiable, RunError, SettingsError
from cutlayer.broker.manifest import Manifest
from cutlayer.broker.messages import ModelChunk, RunManifest, RunPhase, WorkerState
from cutlayer.broker.model_chunks import ModelAssembler
from cutlayer.broker.topics import RUN, WORKER_STATES, model_chunks
from cutlayer.broker.transport import Transport
from cutlayer.edge_agent.batches import Dataset
from cutlayer.edge_agent.client_side import ClientSide
from cutlayer.edge_agent.epochs import EpochPlan
from cutlayer.edge_agent.satisfiable import check_satisfiable
from cutlayer.edge_agent.site_parts import SiteParts
from cutlayer.edge_agent.validation import num_validation_samples, with_validation

__all__ = ["Enrolled", "Enrolment"]

log = logging.getLogger(__name__)

FIRST_ASK_S = 3.0
LONGEST_ASK_S = 60.0
"""An agent may wait for days, and each answer costs the manifest's bytes."""


@dataclass(frozen=True, slots=True)
class Enrolled:
    """All that an agent needs to take part in a run.

    Attributes:
        manifest: The run.
        client: The client side of its model, over the agent's data.
        plan: Samples of each of the agent's steps.
    """

    manifest: Manifest
    client: ClientSide
    plan: EpochPlan


@dataclass(frozen=True, slots=True)
class _Misfit:
    """A run that the site does not fit, and why.

    Attributes:
        manifest: The run.
        error: What ends the agent if the run goes on.
    """

    manifest: Manifest
    error: ManifestUnsatisfiable | SettingsError


class Enrolment:
    """Collects what an agent needs.

    Args:
        agent: The agent's topic.
        open_data: Opens the agent's samples for a run.
        transport: The connection.
        site: What the site has of the model by itself.
        is_visit: Whether the agent trains nothing.
    """

    def __init__(
        self,
        agent: str,
        open_data: Callable[[Manifest], Dataset],
        transport: Transport,
        site: SiteParts | None = None,
        *,
        is_visit: bool = False,
    ) -> None:
        self._site = replace(site or SiteParts(), agent=agent)
        self._is_visit = is_visit
        self.due_at: float | None = None
        self._agent = agent
        self._open_data = open_data
        self._transport = transport
        self._manifest: Manifest | None = None
        self._dataset: Dataset | None = None
        self._assembler: ModelAssembler | None = None
        self._ask_s = FIRST_ASK_S
        self._told: str | None = None
        self._misfit: _Misfit | None = None
        self._serving: dict[str, bytes] = {}

    def wait(self, now: float) -> None:
        """Be patient for a while from now on: a connection is new, or a lease was lost."""
        self._ask_s = FIRST_ASK_S
        self.due_at = now + self._ask_s

    def stop_waiting(self) -> None:
        """Take notice that a worker serves the agent."""
        self.due_at = None

    def tick(self, now: float) -> None:
        """Ask again for what is missing, when it is due."""
        if self.due_at is None or now < self.due_at:
            return
        self._ask_s = min(2 * self._ask_s, LONGEST_ASK_S)
        self.due_at = now + self._ask_s
        self._transport.subscribe(RUN)
        self._transport.subscribe(WORKER_STATES)
        if self._manifest is not None and self._assembler is not None:
            self._transport.subscribe(model_chunks(self._manifest.tokenizers.digest))
        if self._misfit is not None:
            self._tell(f"{self.lacking}; waiting for another run, or for a worker of this one", logging.WARNING)
        else:
            self._tell(f"{self.lacking}; waiting{' for one' if self._manifest is None else ''}")

    @property
    def lacking(self) -> str:
        """What the agent still needs, for people."""
        if self._misfit is not None:
            run_id, problem = self._misfit.manifest.run_id, str(self._misfit.error).splitlines()[0]
            return f"run {run_id} is announced, no worker serves it, and it does not fit this site ({problem})"
        if self._manifest is None:
            return "no run is announced on this broker"
        run = f"run {self._manifest.run_id}"
        if self._assembler is not None:
            return f"{run} is announced, and the weights of its tokenizers have not come"
        return f"{run} is announced, and no worker serves it"

    def read_manifest(self, message: RunManifest, *, is_bound: bool) -> bool:
        """Take a run manifest.

        Args:
            message: The message.
            is_bound: Whether the agent has taken part in the run that it knows.

        Returns:
            Whether it is a run that was not known: what came of an earlier one is void.

        Raises:
            MalformedMessage: When it is no manifest.
            ManifestUnsatisfiable: When the agent's data do not fit it, and a worker serves it; else the agent waits.
            SettingsError: The same, where they cannot be read for it.
            RunError: When another run has taken the place of the one that the agent takes part in.
        """
        manifest = Manifest.from_bytes(message.document)
        known = self._manifest
        if known is not None and manifest.digest() == known.digest():
            return False
        if self._misfit is not None and manifest.digest() == self._misfit.manifest.digest():
            return False
        if known is not None and is_bound:
            raise RunError(
                f"another run ({manifest.run_id}) has taken the place of {known.run_id} on this broker\n"
                "  fix: start the agent again to take part in it"
            )
        if known is not None and self._assembler is not None:
            self._transport.unsubscribe(model_chunks(known.tokenizers.digest))
        self._misfit = None
        try:
            dataset = self._open_data(manifest)
            check_satisfiable(manifest, dataset, is_visit=self._is_visit)
        except (ManifestUnsatisfiable, SettingsError) as error:
            self._keep(_Misfit(manifest, error))
            return True
        if manifest.evaluation.selects and not self._is_visit:
            dataset = with_validation(dataset, manifest, self._agent)
        self._manifest, self._dataset = manifest, dataset
        self._assembler = ModelAssembler(manifest.tokenizers)
        what = f"{manifest.epochs} epochs over {dataset.num_samples('train')} own samples"
        if self._is_visit:
            what = f"a visit with {dataset.num_samples('test')} own samples"
        codec = manifest.codecs.activations
        log.info("run %s: %s, %s, activations as %s", manifest.run_id, manifest.model, what, codec)
        self._transport.subscribe(model_chunks(manifest.tokenizers.digest))
        return True

    def read_model(self, message: ModelChunk) -> Enrolled | None:
        """Take a piece of the client-side weights; return everything once it is there.

        Raises:
            MalformedMessage: When it is no piece of this run's weights.
            ManifestUnsatisfiable: When what the site has does not fit it, and a worker serves the run.
            SettingsError: The same, where it cannot be read.
        """
        manifest, dataset, assembler = self._manifest, self._dataset, self._assembler
        if manifest is None or dataset is None or assembler is None:
            return None
        weights = assembler.feed(message)
        if weights is None:
            return None
        self._assembler = None
        self._transport.unsubscribe(model_chunks(manifest.tokenizers.digest))
        plan = EpochPlan(
            manifest.seed,
            self._agent,
            manifest.epochs,
            dataset.num_samples("train"),
            dataset.num_samples("test"),
            manifest.microbatch_samples,
            num_validation_samples(dataset) if manifest.evaluation.selects and not self._is_visit else 0,
        )
        try:
            client = ClientSide(manifest, weights, dataset, self._site, is_visit=self._is_visit)
        except (ManifestUnsatisfiable, SettingsError) as error:
            self._keep(_Misfit(manifest, error))
            return None
        return Enrolled(manifest, client, plan)

    def take_state(self, state: WorkerState) -> None:
        """Take notice of a worker's retained state.

        Raises:
            ManifestUnsatisfiable: When it serves a run that the site does not fit.
            SettingsError: The same, where its data cannot be read for it.
        """
        if not state.online or state.phase is RunPhase.ENDED:
            self._serving.pop(state.worker, None)
        elif state.worker in self._serving or len(self._serving) < MAX_WORKERS:
            self._serving[state.worker] = state.manifest_digest
        if self._misfit is not None:
            self._keep(self._misfit)

    def _keep(self, misfit: _Misfit) -> None:
        """Keep an error for the time when it matters, which may be now."""
        if bytes.fromhex(misfit.manifest.digest()) in self._serving.values():
            raise misfit.error
        self._misfit = misfit
        self._manifest = self._dataset = self._assembler = None

    def _tell(self, what: str, level: int = logging.INFO) -> None:
        if what != self._told:
            self._told = what
            log.log(level, "%s", what)
