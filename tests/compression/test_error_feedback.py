"""Error feedback: what is lost comes later, in bounded memory; where it helps a training, and where it harms one."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from cutlayer.compression import Codec, CodecError, NonFiniteInputError, codec_from_name
from cutlayer.compression.error_feedback import ErrorFeedback

COARSE = "topk:ratio=0.02,bits=8"
Floats = NDArray[np.float32]


def noise(shape: tuple[int, ...], seed: int = 7) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("name", [COARSE, "randtopk", "fp16", "int8+zstd", "lowrank:error=0.3"])
def test_the_sum_of_what_arrives_is_the_sum_of_what_was_sent_less_one_residual(name: str) -> None:
    codec = codec_from_name(name)
    feedback = ErrorFeedback(codec)
    sent, arrived = np.zeros((40, 30)), np.zeros((40, 30))
    for seed in range(30):
        array = noise((40, 30), seed)
        sent += array
        arrived += codec.decode(feedback.encode("weights", array), array.shape)
    np.testing.assert_allclose(arrived + feedback.residual("weights", (40, 30)), sent, atol=1e-4)


def test_small_elements_arrive_in_the_end() -> None:
    codec = codec_from_name("topk:ratio=0.1")
    feedback = ErrorFeedback(codec)
    array = np.linspace(1, 2, 10, dtype=np.float32)
    arrived = sum(codec.decode(feedback.encode("weights", array), (10,)) for _ in range(40))
    assert isinstance(arrived, np.ndarray)
    assert (arrived > 0).all()
    assert (codec.decode(codec.encode(array), (10,)) > 0).sum() == 1


def test_keys_and_shapes_have_residuals_of_their_own() -> None:
    codec = codec_from_name(COARSE)
    feedback = ErrorFeedback(codec)
    array = noise((8, 8))
    first = feedback.encode("a", array)
    assert feedback.encode("b", array) == first
    assert feedback.encode("a", array) != first
    assert feedback.encode("a", array[:4]) == codec.encode(array[:4])


def test_reset_forgets_one_key_or_all() -> None:
    feedback = ErrorFeedback(codec_from_name(COARSE))
    first = {key: feedback.encode(key, noise((8, 8))) for key in "abc"}
    feedback.reset("a")
    assert feedback.encode("a", noise((8, 8))) == first["a"]
    assert feedback.encode("b", noise((8, 8))) != first["b"]
    feedback.reset()
    assert feedback.num_bytes == 0
    assert feedback.encode("c", noise((8, 8))) == first["c"]


def test_memory_stays_below_its_limit_and_the_longest_unused_goes_first() -> None:
    codec = codec_from_name(COARSE)
    feedback = ErrorFeedback(codec, max_bytes=2 * 256)
    for key in ("a", "b", "a", "c"):
        feedback.encode(key, noise((8, 8)))
    assert feedback.num_bytes == 2 * 256
    assert not feedback.residual("b", (8, 8)).any()
    assert feedback.residual("a", (8, 8)).any()
    feedback.encode("large", noise((100, 100)))
    assert feedback.num_bytes == 2 * 256


def test_a_negative_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="max_bytes is -1"):
        ErrorFeedback(codec_from_name(COARSE), max_bytes=-1)


def test_an_array_that_cannot_be_encoded_leaves_the_residual_as_it_was() -> None:
    feedback = ErrorFeedback(codec_from_name(COARSE))
    feedback.encode("a", noise((8, 8)))
    before = feedback.residual("a", (8, 8))
    with pytest.raises(NonFiniteInputError):
        feedback.encode("a", np.full((8, 8), np.nan, np.float32))
    np.testing.assert_array_equal(feedback.residual("a", (8, 8)), before)


def test_a_residual_that_would_overflow_is_dropped() -> None:
    largest = np.finfo(np.float32).max
    feedback = ErrorFeedback(codec_from_name("fp16"))
    array = np.full(4, largest, np.float32)
    for _ in range(3):
        feedback.encode("a", array)  # each time, all but 65504 is lost
        assert np.isfinite(feedback.residual("a", (4,))).all()


def test_the_callers_array_is_left_alone() -> None:
    feedback = ErrorFeedback(codec_from_name("identity"))
    array = noise((8, 8))
    array.flags.writeable = False
    feedback.encode("a", array)
    assert feedback.encode("a", array) == codec_from_name("identity").encode(array)


def softmax_regression(compress: Callable[[str, Floats], Floats]) -> float:
    """Train on samples of a random teacher and return the loss; `compress` sees both kinds of gradients.

    Ten classes, 64 inputs of falling scale, 300 steps of 64 of 2,048 samples. Keys are `outputs`, each sample's
    gradient (64, 10), and `weights`, their sum over samples, (64, 10) as well.
    """
    generator = np.random.default_rng(7)
    inputs_SP = (noise((2048, 64), 1) * np.geomspace(2, 0.2, 64)).astype(np.float32)
    labels_S = (inputs_SP @ noise((64, 10), 2)).argmax(axis=1)
    weights_PC = np.zeros((64, 10), np.float32)
    for _ in range(300):
        rows_B = generator.choice(2048, 64, replace=False)
        gradient_BC = probabilities(inputs_SP[rows_B] @ weights_PC)
        gradient_BC[np.arange(64), labels_S[rows_B]] -= 1
        gradient_PC = inputs_SP[rows_B].T @ compress("outputs", gradient_BC) / 64
        weights_PC -= np.float32(0.3) * compress("weights", gradient_PC.astype(np.float32))
    return float(-np.log(probabilities(inputs_SP @ weights_PC)[np.arange(2048), labels_S]).mean())


def probabilities(outputs_BC: Floats) -> Floats:
    exponentials = np.exp(outputs_BC - outputs_BC.max(axis=1, keepdims=True))
    shares: Floats = (exponentials / exponentials.sum(axis=1, keepdims=True)).astype(np.float32)
    return shares


def loss_with(which: str, codec: Codec, *, feedback: bool) -> float:
    memory = ErrorFeedback(codec)

    def compress(key: str, gradient: Floats) -> Floats:
        if key != which:
            return gradient
        encoded = memory.encode(key, gradient) if feedback else codec.encode(gradient)
        return codec.decode(encoded, gradient.shape)

    return softmax_regression(compress)


def test_gradients_of_weights_train_as_well_as_uncompressed_ones() -> None:
    codec = codec_from_name(COARSE)
    exact = loss_with("weights", codec_from_name("identity"), feedback=False)
    without, with_feedback = (loss_with("weights", codec, feedback=feedback) for feedback in (False, True))
    print(f"weights: exact {exact:.3f}, without {without:.3f}, with {with_feedback:.3f}")  # -s shows it
    assert with_feedback < 1.1 * exact
    assert without > 1.5 * exact


def test_gradients_of_samples_train_worse_with_feedback() -> None:
    codec = codec_from_name("topk:ratio=0.1,bits=8")
    exact = loss_with("outputs", codec_from_name("identity"), feedback=False)
    without, with_feedback = (loss_with("outputs", codec, feedback=feedback) for feedback in (False, True))
    print(f"outputs: exact {exact:.3f}, without {without:.3f}, with {with_feedback:.3f}")
    assert with_feedback > 1.05 * without


def test_errors_of_the_codec_are_its_own() -> None:
    with pytest.raises(CodecError):
        ErrorFeedback(codec_from_name(COARSE)).encode("a", np.zeros((2, 2)))  # type: ignore[arg-type]
