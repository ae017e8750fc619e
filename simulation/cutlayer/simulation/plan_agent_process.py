"""How much memory an agent takes: its interpreter, its libraries, its data, and the making of one microbatch.

Measured in a process of its own, since the one that plans has torch in it, which an agent has not. It is asked by one
JSON object on its standard input, and answers with a number of bytes.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Mapping

from cutlayer.broker.manifest import Manifest

__all__ = ["agent_process_bytes"]


def agent_process_bytes(
    manifest: Manifest,
    tokenizer_file: bytes,
    data: str | None = None,
    shard: str = "0/1",
    options: Mapping[str, object] | None = None,
) -> int | None:
    """Start such a process.

    Args:
        manifest: The run.
        tokenizer_file: The client-side weights.
        data: Data set; None for libraries only.
        shard: Which part of it.
        options: Its options.

    Returns:
        Its largest resident memory in bytes; None where it does not come to an end.
    """
    asked = {
        "manifest": manifest.to_bytes().decode(),
        "weights": base64.b64encode(tokenizer_file).decode(),
        "data": data,
        "shard": shard,
        "options": dict(options or {}),
    }
    done = subprocess.run(
        [sys.executable, "-m", "cutlayer.simulation.plan_agent_process"],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
    )
    return int(done.stdout) if done.returncode == 0 else None


def _main(asked: str) -> None:
    import numpy as np

    from cutlayer.broker.mqtt import MqttTransport
    from cutlayer.broker.process_usage import peak_rss_bytes
    from cutlayer.broker.tensors import encode_tensor
    from cutlayer.edge_agent.client_side import ClientSide
    from cutlayer.edge_agent.datasets import open_dataset
    from cutlayer.edge_agent.partition import Shard
    from cutlayer.edge_agent.runtime import AgentRuntime

    del MqttTransport, AgentRuntime  # loaded, which is what counts
    wanted = json.loads(asked)
    manifest = Manifest.from_bytes(wanted["manifest"].encode())
    if wanted["data"] is not None:
        shard, options = Shard.parse(wanted["shard"]), wanted["options"]
        dataset = open_dataset(wanted["data"], shard=shard, seed=manifest.seed, options=options, manifest=manifest)
        client = ClientSide(manifest, base64.b64decode(wanted["weights"]), dataset)
        num_samples = min(manifest.microbatch_samples, dataset.num_samples("train"))
        tokenized = client.tokenize("train", np.arange(num_samples), tuple(sorted(manifest.modalities)))
        for _, tokens_BKD in tokenized.tokens:
            encode_tensor(manifest.codecs.activations, tokens_BKD)
    sys.stdout.write(str(peak_rss_bytes()))


if __name__ == "__main__":
    _main(sys.stdin.read())
