"""What a worker has the broker retain of its run: the run manifest, and the client-side weights in pieces."""

from __future__ import annotations

from cutlayer.broker.actions import Publish
from cutlayer.broker.courier import Courier
from cutlayer.broker.manifest import Manifest
from cutlayer.broker.messages import RunManifest
from cutlayer.broker.model_chunks import cut_model
from cutlayer.broker.topics import RUN, model_chunk
from cutlayer.broker.transport import Transport

__all__ = ["Announcement"]


class Announcement:
    """Announces a run to agents.

    Args:
        transport: The connection.
        courier: Messages over it.
        tokenizer_file: Client-side weights, safetensors.
    """

    def __init__(self, transport: Transport, courier: Courier, tokenizer_file: bytes) -> None:
        self._transport = transport
        self._courier = courier
        self._tokenizer_file = tokenizer_file

    def publish(self, manifest: Manifest) -> None:
        """Announce a run, its weights first."""
        for chunk in cut_model(self._tokenizer_file):
            self._courier.send(Publish(model_chunk(manifest.tokenizers.digest, chunk.index), chunk, retain=True))
        self._courier.send(Publish(RUN, RunManifest(manifest.to_bytes()), retain=True))

    def withdraw(self, manifest: Manifest) -> None:
        """Have the broker forget it: nobody needs it any more."""
        self._transport.publish(RUN, b"", retain=True)
        for chunk in cut_model(self._tokenizer_file):
            self._transport.publish(model_chunk(manifest.tokenizers.digest, chunk.index), b"", retain=True)
