"""The pool over torchft, PyTorch's fault-tolerance engine: quorum, healing and additions between real processes.

torchft's lighthouse knows by heartbeats who is alive. A round is one quorum (who takes part, and who of them is
behind), one exchange of the window's parts, one addition of gradient sums where the window closes, and torchft's vote,
which counts the round. Whoever loses the others on the way commits nothing, is behind, and takes over the weights of
one that did in the next round: torchft calls that healing.

Additions run over gloo between processors and over NCCL between GPUs. Replicas trust each other, and nobody else must
reach the ports that torchft opens: it has no authentication.
"""

from __future__ import annotations

import logging
import socket
import urllib.parse
import urllib.request
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed._serialization import _streaming_load
from torch.distributed.distributed_c10d import AllgatherOptions, AllreduceOptions  # type: ignore[attr-defined]
from torchft.checkpointing.http_transport import HTTPTransport  # type: ignore[import-untyped]
from torchft.manager import Manager  # type: ignore[import-untyped]
from torchft.process_group import ProcessGroup, ProcessGroupGloo, ProcessGroupNCCL  # type: ignore[import-untyped]

from cutlayer.broker.errors import PoolError
from cutlayer.broker.pool_round import WindowPart
from cutlayer.server_worker.checkpoint import Checkpoint
from cutlayer.server_worker.parameters import EngineState
from cutlayer.server_worker.pool import RoundResult, RoundTask, flatten, judge_parts, unflatten

__all__ = ["PoolTimeouts", "TorchftPool"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PoolTimeouts:
    """How long a round waits, in seconds.

    Attributes:
        connect_s: For the lighthouse, at the start.
        quorum_s: For the other replicas to begin the round.
        exchange_s: For one exchange with them, and for the weights of a replica that heals.
    """

    connect_s: float = 20.0
    quorum_s: float = 30.0
    exchange_s: float = 60.0


class _Transport(HTTPTransport[Any]):  # type: ignore[misc]
    """Hands a replica's state to one that is behind; what comes may hold tensors and plain values only.

    Args:
        host: This machine's address for the others; the parent class gives its host name, which may not resolve.
        timeout: For one transfer.
    """

    def __init__(self, host: str, timeout: timedelta) -> None:
        self._host = host
        super().__init__(timeout=timeout, num_chunks=0)
        self._server.RequestHandlerClass.log_message = _say_nothing

    def address(self) -> str:
        """Return where the others fetch the state."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._server.socket.getsockname()[1]}/checkpoint/"

    @classmethod
    def _load_from_address(cls, address: str, timeout: timedelta) -> object:
        # The parent class loads whatever a pickle says, code included.
        with (
            urllib.request.urlopen(address, timeout=timeout.total_seconds()) as response,  # noqa: S310 - the quorum's
            warnings.catch_warnings(),
        ):
            warnings.filterwarnings("ignore", "The given buffer is not writable")  # nobody writes to what is loaded
            return _streaming_load(response, weights_only=True)


class TorchftPool:
    """One replica.

    Args:
        lighthouse: Address of `torchft_lighthouse`, such as `http://10.0.0.5:29510`.
        name: The worker's name.
        device: Where the gradient sums are: NCCL on a GPU, gloo otherwise.
        timeouts: How long a round waits.

    Raises:
        PoolError: When the lighthouse cannot be reached.
    """

    poll_s = 0.001

    def __init__(
        self, lighthouse: str, name: str, *, device: torch.device, timeouts: PoolTimeouts | None = None
    ) -> None:
        for logger in ("torchft", "torchft_commits", "torchft_quorums", "torchft_errors"):
            logging.getLogger(logger).setLevel(logging.CRITICAL)  # they tell of every round; a failed one is told here
        timeouts = timeouts or PoolTimeouts()
        host = own_address(lighthouse)
        exchange = timedelta(seconds=timeouts.exchange_s)
        self._device = device
        self._group: ProcessGroup = (
            ProcessGroupNCCL(timeout=exchange) if device.type == "cuda" else ProcessGroupGloo(timeout=exchange)
        )
        self._store = TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=exchange)
        try:
            self._manager = Manager(
                pg=self._group,
                load_state_dict=self._take_over,
                state_dict=self._give,
                min_replica_size=1,
                use_async_quorum=False,
                timeout=exchange,
                quorum_timeout=timedelta(seconds=timeouts.quorum_s),
                connect_timeout=timedelta(seconds=timeouts.connect_s),
                rank=0,
                world_size=1,
                store_addr=host,
                store_port=self._store.port,
                lighthouse_addr=lighthouse,
                replica_id=name,
                hostname=host,
                checkpoint_transport=_Transport(host, exchange),
            )
        except Exception as error:
            raise PoolError(lighthouse, str(error)) from error
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="pool")
        self._round: Future[RoundResult] | None = None
        self._task: RoundTask | None = None
        self._taken_over: Checkpoint | None = None

    def start_from(self, step: int) -> None:
        """Say how far this worker is."""
        self._manager.load_state_dict({"step": step, "batches_committed": 0})

    def fall_behind(self) -> None:
        """Take over the others' state in their next round, as a replica that has missed one does."""
        self.start_from(max(self._manager.current_step() - 1, 0))

    def begin(self, task: RoundTask) -> None:
        """Start a round."""
        assert self._round is None, "one round at a time"
        self._round = self._executor.submit(self._run, task)

    def poll(self) -> RoundResult | None:
        """Return the result of the round, once."""
        if self._round is None or not self._round.done():
            return None
        result = self._round.result()
        self._round = None
        return result

    def close(self) -> None:
        """Leave the pool: the others go on without waiting for this replica once its heartbeats are missed."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        self._group.abort(errored=False)
        self._manager.shutdown(wait=False)

    # In the pool's thread -------------------------------------------------------------------------------------

    def _run(self, task: RoundTask) -> RoundResult:
        manager = self._manager
        step = manager.current_step()
        result = self._try(task)
        if result.failure and manager.current_step() != step:
            # It has counted what this replica was to take over; nothing of it is, and the next round has to heal it.
            self.start_from(step)
        return result

    def _try(self, task: RoundTask) -> RoundResult:
        self._task, self._taken_over = task, None
        manager = self._manager
        try:
            manager.start_quorum()
        except Exception as error:  # noqa: BLE001 - whatever it is, the round has failed and the next is tried
            # A manager raises the error of a failed quorum again at the next; version pinned in pyproject.toml.
            manager._quorum_future = None
            return RoundResult(0, failure=f"no quorum: {_first_line(error)}")
        generation = manager._quorum_id
        result = RoundResult(generation, failure="another replica is gone")
        try:
            if manager.errored() is None:
                result = self._exchange(task, self._taken_over, generation)
        except Exception as error:  # noqa: BLE001 - another replica has died, and gloo says so in many ways
            manager.report_error(error)
        errored = manager.errored()
        if manager.should_commit():
            return result
        cause = _first_line(errored.original_exception) if errored is not None else "another replica is gone"
        return RoundResult(generation, failure=cause)

    def _exchange(self, task: RoundTask, taken_over: Checkpoint | None, generation: int) -> RoundResult:
        """Exchange parts, judge them, and add the sums up where the window closes."""
        part = task.part
        if taken_over is not None:
            part = WindowPart(part.worker, part.window, part.version)  # its sums are of the weights it had
        parts = self._gather(part)
        verdict = judge_parts(parts, task, taken_over)
        sums = None
        if verdict.commits:
            flat = flatten(task.sums)
            if taken_over is not None or part.worker not in verdict.accepted:
                flat.zero_()
            self._add_up(flat)
            sums = unflatten(flat, task.sums)
        return RoundResult(generation, tuple(one.worker for one in parts), verdict, sums, taken_over)

    def _gather(self, part: WindowPart) -> list[WindowPart]:
        num_replicas = self._group.size()
        if num_replicas == 1:
            return [part]
        data = torch.frombuffer(bytearray(part.to_bytes()), dtype=torch.uint8).to(self._device)
        sizes = self._all_gather(torch.tensor([len(data)], dtype=torch.int64, device=self._device), num_replicas)
        longest = max(int(size.item()) for size in sizes)
        padded = torch.zeros(longest, dtype=torch.uint8, device=self._device)
        padded[: len(data)] = data
        packets = self._all_gather(padded, num_replicas)
        return [
            WindowPart.from_bytes(packet[: int(size.item())].cpu().numpy().tobytes())
            for packet, size in zip(packets, sizes, strict=True)
        ]

    def _all_gather(self, tensor: Tensor, num_replicas: int) -> list[Tensor]:
        gathered = [torch.empty_like(tensor) for _ in range(num_replicas)]
        self._group.allgather([gathered], [tensor], AllgatherOptions()).wait()
        return gathered

    def _add_up(self, flat: Tensor) -> None:
        if self._group.size() > 1:
            self._group.allreduce([flat], AllreduceOptions()).wait()

    def _give(self) -> dict[str, Any]:
        """Return this replica's state for one that is behind: tensors and plain values."""
        assert self._task is not None
        checkpoint = self._task.snapshot()
        return {
            "version": checkpoint.state.version,
            "weights": checkpoint.state.weights,
            "optimizer": checkpoint.state.optimizer,
            "ledger": torch.frombuffer(bytearray(checkpoint.ledger), dtype=torch.uint8),
            "meta": dict(checkpoint.meta),
            "candidates": {name: dict(held) for name, held in checkpoint.candidates.items()},
        }

    def _take_over(self, state: dict[str, Any]) -> None:
        engine_state = EngineState(state["version"], state["weights"], state["optimizer"])
        ledger = state["ledger"].numpy().tobytes()
        self._taken_over = Checkpoint(engine_state, ledger, state["meta"], state["candidates"])


def _say_nothing(*_: object) -> None:
    """Take the place of the HTTP server's own log on standard error."""


def own_address(lighthouse: str) -> str:
    """Return this machine's address as the lighthouse sees it: what the other replicas connect to.

    Raises:
        PoolError: When the lighthouse's address is none, or no route leads to it.
    """
    try:
        url = urllib.parse.urlsplit(lighthouse)
        host, port = url.hostname if url.scheme == "http" else None, url.port
    except ValueError:  # a port that is no number, a bracket that does not close
        host, port = None, None
    if not host or not port:
        raise PoolError(lighthouse, "it is no address such as http://10.0.0.5:29510")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:  # connecting a datagram socket sends nothing
            probe.connect(address)
            return str(probe.getsockname()[0])
    except OSError as error:
        raise PoolError(lighthouse, str(error)) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
