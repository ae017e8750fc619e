from __future__ import annotations

import pydantic
import pytest

from cutlayer.broker.tuning_spec import TuningSpec


def test_everything_trains_by_default() -> None:
    assert TuningSpec().mode == "full"


def test_it_comes_back_from_a_manifest_as_it_was() -> None:
    spec = TuningSpec(mode="lora", rank=4, targets=("fc1", "fc2"), embeddings="none")
    assert TuningSpec.model_validate_json(spec.model_dump_json()) == spec
    assert TuningSpec.model_validate_json(TuningSpec().model_dump_json()) == TuningSpec()


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ({"rank": 4}, "rank without a mode: set mode"),
        ({"blocks": 2, "alpha": 1.0}, "alpha, blocks without a mode: set mode"),
        ({"mode": "some"}, "'full', 'last', 'lora' or 'frozen'"),
        ({"mode": "last", "blocks": 0}, "greater than 0"),
        ({"mode": "lora", "rank": 0}, "greater than or equal to 1"),
        ({"mode": "lora", "alpha": float("inf")}, "finite"),
        ({"mode": "lora", "targets": ["q"]}, "'qkv', 'proj', 'fc1' or 'fc2'"),
        ({"mode": "lora", "targets": []}, "at least 1 item"),
        ({"mode": "lora", "targets": ["qkv", "qkv"]}, "targets has one twice: name each once"),
        ({"mode": "lora", "dropout": 0.1}, "Extra inputs are not permitted"),
    ],
    ids=str,
)
def test_what_it_cannot_be_is_refused(document: dict[str, object], problem: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=problem):
        TuningSpec.model_validate(document)
