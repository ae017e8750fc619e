from __future__ import annotations

import pytest

from cutlayer.broker.broker_settings import BrokerSettings
from cutlayer.broker.manifest import CodecNames, ImageSpec
from cutlayer.broker.messages import Activations, parse
from cutlayer.compression.errors import CodecError
from cutlayer.simulation.doctor_client import DoctorClient
from cutlayer.simulation.doctor_report import Verdict
from cutlayer.simulation.doctor_scene import Scene
from cutlayer.simulation.doctor_speed import DEFAULT_BYTES, check_down, check_round_trip, check_up, make_sample
from support.brokers import running_broker
from support.scripted_broker import CONNECT, PUBLISH, accept_3_1_1, scripted_broker
from support.synthetic_run import synthetic_manifest

pytestmark = pytest.mark.judges_by_silence

QUIET = "clinic/07/up/nobody/activations"


def client_of(url: str, timeout_s: float = 2.0) -> DoctorClient:
    client = DoctorClient(BrokerSettings(url=url), "3.1.1", timeout_s)
    assert client.open().is_accepted
    return client


def test_a_sample_is_a_microbatch_of_the_run_under_its_codec() -> None:
    manifest = synthetic_manifest()
    sample = make_sample(manifest)
    message = parse(sample.message)
    assert isinstance(message, Activations)
    assert message.num_samples == manifest.microbatch_samples
    assert {name: tensor.shape for name, tensor in message.tensors} == {"audio": (32, 16, 128), "image": (32, 16, 128)}
    assert {tensor.codec for _, tensor in message.tensors} == {"int8+zstd"}
    assert sample.microbatch_bytes == len(sample.message)
    assert "32 samples" in sample.description


def test_of_a_very_large_microbatch_a_part_is_made_and_the_size_is_of_the_whole() -> None:
    large = synthetic_manifest().model_copy(
        update={
            "microbatch_samples": 4_096,
            "width": 1_024,
            "modalities": {"image": ImageSpec(height=512, width=512, patch=16)},
        }
    )
    sample = make_sample(large)
    assert len(sample.message) < 6_000_000
    assert sample.microbatch_bytes > 500 * len(sample.message)


def test_without_a_run_the_size_is_stated() -> None:
    sample = make_sample(None)
    assert len(sample.message) == sample.microbatch_bytes == DEFAULT_BYTES
    assert "500,000 B" in sample.description


def test_a_codec_that_this_release_does_not_know_is_an_error_of_its_own() -> None:
    other = synthetic_manifest().model_copy(update={"codecs": CodecNames(activations="from-the-future")})
    with pytest.raises(CodecError):
        make_sample(other)


def test_the_link_is_timed_both_ways() -> None:
    with running_broker("amqtt") as broker, client_of(broker.url) as client:
        trip = check_round_trip(client, Scene(None), QUIET)
        up = check_up(client, make_sample(synthetic_manifest()), QUIET, 20_000)
        down = check_down(client, Scene(None), "clinic/07/down/probe/1", 1_000_000)
    assert trip.verdict is up.verdict is down.verdict is Verdict.OK
    assert 0.0 < trip.values["broker_median_s"] <= trip.values["broker_p95_s"]  # type: ignore[operator]
    assert up.values["microbatch_bytes"] == len(make_sample(synthetic_manifest()).message)
    assert up.values["bytes_per_s"] > 0.0  # type: ignore[operator]
    assert down.values["num_bytes"] == DEFAULT_BYTES


def test_nothing_comes_down_without_a_run_and_without_an_open_broker() -> None:
    with running_broker("amqtt") as broker, client_of(broker.url) as client:
        assert check_down(client, Scene(None), None, 1_000_000).verdict is Verdict.SKIPPED


def test_a_link_that_acknowledges_nothing_is_told() -> None:
    with scripted_broker([(CONNECT, accept_3_1_1())]) as port, client_of(f"mqtt://127.0.0.1:{port}", 0.2) as client:
        assert check_round_trip(client, Scene(None), QUIET).verdict is Verdict.SKIPPED
        finding = check_up(client, make_sample(None), QUIET, 1_000_000)
    assert finding.verdict is Verdict.WARNING
    assert "--timeout" in finding.fix


def test_a_connection_that_ends_while_it_is_timed_is_told() -> None:
    script = [(CONNECT, accept_3_1_1()), (PUBLISH, b"!")]
    with scripted_broker(script) as port, client_of(f"mqtt://127.0.0.1:{port}") as client:
        finding = check_up(client, make_sample(None), QUIET, 1_000_000)
    assert finding.verdict is Verdict.WARNING
    assert "ended the connection after 0 B" in finding.fact
