"""The doctor's look at the run: clocks, manifest, the client-side weights, workers, an agent of this topic."""

from __future__ import annotations

from typing import Final

from pydantic import JsonValue

from cutlayer.broker.errors import WireError, WrongVersion
from cutlayer.broker.messages import PROTOCOL_VERSION, RunPhase, WorkerState
from cutlayer.broker.probe import clock_difference
from cutlayer.simulation.doctor_report import EXIT_RUN, Finding, found, problem, seconds, skipped, warning
from cutlayer.simulation.doctor_scene import Scene

__all__ = ["check_agent", "check_clock", "check_manifest", "check_weights", "check_workers"]

CLOCKS_APART_S: Final = 5.0
START_A_WORKER: Final = "start a worker: `server-worker start --run RUN.toml --broker ...`; agents may wait for it"


def check_clock(scene: Scene) -> Finding:
    """Compare this machine's clock with each worker's."""
    answered = [(name, proof.round_trips) for name, proof in scene.proofs.items() if proof.round_trips]
    if not answered:
        return skipped("clock", "no worker has answered a probe, so there is no clock to compare with")
    estimates = {name: clock_difference(round_trips) for name, round_trips in answered}
    fact = "; ".join(
        f"worker {name}'s is {seconds(abs(estimate.ahead_s))} {'ahead' if estimate.ahead_s >= 0 else 'behind'}, "
        f"give or take {seconds(estimate.uncertainty_s)}"
        for name, estimate in estimates.items()
    )
    worst = max(estimates.values(), key=lambda estimate: abs(estimate.ahead_s) - estimate.uncertainty_s)
    values: dict[str, JsonValue] = {"ahead_s": worst.ahead_s, "uncertainty_s": worst.uncertainty_s}
    if abs(worst.ahead_s) - worst.uncertainty_s > CLOCKS_APART_S:
        fix = "set both machines' clocks (timedatectl set-ntp true): certificates, logs and restarts go by them"
        return warning("clock", fact, fix, values)
    return found("clock", fact, values)


def check_manifest(scene: Scene) -> Finding:
    """Look at the run's manifest."""
    if scene.manifest_error is not None:
        return _unreadable("manifest", "the run's manifest", scene.manifest_error)
    if scene.manifest is None:
        return warning("manifest", "no run is announced, as far as this user can read", START_A_WORKER)
    manifest, digest = scene.manifest, scene.manifest.digest()
    others = [state.worker for state in scene.online if state.manifest_digest.hex() != digest]
    fact = (
        f"run {manifest.run_id}: {manifest.model}, {manifest.epochs} epochs, "
        f"{' and '.join(sorted(manifest.modalities))}; "
        f"protocol version {PROTOCOL_VERSION}, digest {digest[:12]}"
    )
    values: dict[str, JsonValue] = {"run_id": manifest.run_id, "digest": digest, "protocol_version": PROTOCOL_VERSION}
    if others:
        fix = "stop all workers and start those of one run again: one run a broker"
        fact += f"; worker {others[0]} serves another run"
        return problem("manifest", fact, fix, values, exit_code=EXIT_RUN)
    return found("manifest", fact, values)


def check_weights(scene: Scene) -> Finding:
    """Look at the client-side weights, which an agent reads from the broker."""
    if scene.manifest is None:
        return skipped("weights", "there is no manifest that says which")
    weights = scene.manifest.tokenizers
    values: dict[str, JsonValue] = {
        "num_pieces": scene.num_pieces,
        "num_expected": weights.num_chunks,
        "num_bytes": scene.model_bytes,
    }
    if scene.is_model_whole:
        pieces = "1 piece" if weights.num_chunks == 1 else f"{weights.num_chunks} pieces"
        fact = f"{weights.num_bytes:,} B in {pieces}, digest {weights.digest[:12]} as in the manifest"
        return found("weights", fact, values)
    fix = "start the worker again, which publishes them; a broker's limits may drop some (broker/mosquitto.conf)"
    if scene.model_error is not None:
        return problem("weights", str(scene.model_error), fix, values, exit_code=EXIT_RUN)
    fact = f"{scene.num_pieces} of {weights.num_chunks} pieces are there"
    if scene.online:
        return problem("weights", fact, fix, values, exit_code=EXIT_RUN)
    return warning("weights", fact, START_A_WORKER, values)


def check_workers(scene: Scene) -> Finding:
    """Tell which workers are online, and where their run stands."""
    if scene.worker_error is not None and not scene.workers:
        return _unreadable("workers", "a worker's state", scene.worker_error)
    values: dict[str, JsonValue] = {"online": [state.worker for state in scene.online]}
    if not scene.online:
        ended = next((state for state in scene.workers.values() if state.phase is RunPhase.ENDED), None)
        if ended is not None:
            fact = f"none is online; the last run has ended{f': {ended.reason}' if ended.reason else ''}"
            return warning("workers", fact, START_A_WORKER, values)
        fact = f"none is online{f', {len(scene.workers)} known' if scene.workers else ''}"
        return warning("workers", fact, START_A_WORKER, values)
    fact = "; ".join(_describe(state) for state in scene.online)
    silent = [name for name, proof in scene.proofs.items() if not proof.round_trips]
    if silent:
        fact += f"; {', '.join(silent)} did not answer"
        fix = f"see the lines `rights`; if they are ok, try a longer --timeout, then look into the log of {silent[0]}"
        return warning("workers", fact, fix, values)
    if all(state.is_draining for state in scene.online):
        return warning("workers", f"{fact}; none takes anything new", START_A_WORKER, values)
    if all(state.phase is RunPhase.ENDED for state in scene.online):
        return warning("workers", fact, START_A_WORKER, values)
    return found("workers", fact, values)


def check_agent(scene: Scene) -> Finding | None:
    """Tell whether an agent runs under the topic now; None where none does."""
    if scene.agent is None or not scene.agent.online or scene.topics is None:
        return None
    fact = f"one is online as {scene.topics.root} and was left in peace; a second one would be told to stop"
    return found("agent", fact, {"incarnation": scene.agent.incarnation})


def _describe(state: WorkerState) -> str:
    phase = f"{state.phase}, draining" if state.is_draining else str(state.phase)
    agents = "1 agent" if state.agents == 1 else f"{state.agents:,} agents"
    return f"{state.worker} is {phase} with {agents}"  # its version is as old as the last change of phase


def _unreadable(check: str, what: str, error: WireError) -> Finding:
    fix = "install the same release here and at the worker"
    if not isinstance(error, WrongVersion):
        fix = f"{fix}; or see who else may publish there (broker/acl.example)"
    return problem(check, f"{what} cannot be read: {error}", fix, exit_code=EXIT_RUN)
