"""Names: which exist, what they become, and what the others are told."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutlayer.compression import (
    MAX_NAME_LENGTH,
    BadOptionError,
    UnknownCodecError,
    available_byte_stages,
    available_codecs,
    available_shuffles,
    codec_from_name,
)


def test_available_names() -> None:
    assert available_codecs()[:4] == ("identity", "fp16", "bf16", "int8")
    assert available_shuffles() == ("shuffle", "bitshuffle")
    assert available_byte_stages() == ("shuffle", "bitshuffle", "none", "lz4", "zstd")


@pytest.mark.parametrize("tensor", available_codecs())
@pytest.mark.parametrize("stage", available_byte_stages())
def test_every_codec_goes_with_every_stage(tensor: str, stage: str) -> None:
    assert codec_from_name(f"{tensor}+{stage}").name.startswith(tensor)


@pytest.mark.parametrize("tensor", available_codecs())
@pytest.mark.parametrize("shuffle", available_shuffles())
@pytest.mark.parametrize("compressor", ["none", "lz4", "zstd"])
def test_a_shuffle_may_stand_between_the_codec_and_the_compressor(tensor: str, shuffle: str, compressor: str) -> None:
    assert codec_from_name(f"{tensor}+{shuffle}+{compressor}").name.startswith(tensor)


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("bf16+shuffle+zstd", "bf16+shuffle+zstd:3"),
        ("fp16+bitshuffle+lz4", "fp16+bitshuffle+lz4"),
        ("identity+shuffle+none", "identity+shuffle"),
        ("int8+shuffle+zstd:1", "int8+zstd:1"),
        ("int8+bitshuffle", "int8+bitshuffle"),
        ("int8:block=token", "int8:block=token"),
        ("int8:block=token,symmetric", "int8:symmetric"),
        ("int4:block=token", "int4"),
        ("int4:block=064", "int4:block=64"),
        ("int2:round=stochastic,symmetric,block=all", "int2:block=all,symmetric,round=stochastic"),
        ("identity", "identity"),
        ("fp16+none", "fp16"),
        ("int8+lz4", "int8+lz4"),
        ("int8+zstd", "int8+zstd:3"),
        ("int8+zstd:3", "int8+zstd:3"),
        ("int8+zstd:03", "int8+zstd:3"),
        ("identity+zstd:19", "identity+zstd:19"),
    ],
)
def test_names_become_canonical_and_lead_back_to_an_equal_codec(name: str, canonical: str) -> None:
    codec = codec_from_name(name)
    assert codec.name == canonical
    assert codec_from_name(canonical) == codec


def test_the_same_name_gives_the_same_object() -> None:
    assert codec_from_name("int8+zstd:5") is codec_from_name("int8+zstd:5")


@pytest.mark.parametrize(
    ("name", "is_lossless"), [("identity", True), ("identity+zstd", True), ("fp16", False), ("int8+lz4", False)]
)
def test_only_identity_is_lossless(name: str, is_lossless: bool) -> None:
    assert codec_from_name(name).is_lossless is is_lossless


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("int16", "int8"),
        ("in8", "int8"),
        ("INT8", "int8"),
        ("fp-16", "fp16"),
        ("identiy+lz4", "identity"),
        ("bf-16", "bf16"),
    ],
)
def test_an_unknown_codec_is_told_what_exists_and_the_nearest(name: str, suggestion: str) -> None:
    with pytest.raises(UnknownCodecError) as caught:
        codec_from_name(name)
    assert caught.value.name == name
    assert caught.value.available == available_codecs()
    assert caught.value.suggestion == suggestion
    assert f"did you mean '{suggestion}'?" in str(caught.value)
    assert "identity, fp16, bf16, int8" in str(caught.value)


def test_an_unknown_stage_is_told_the_stages() -> None:
    with pytest.raises(UnknownCodecError, match="no byte stage 'zst'; did you mean 'zstd'") as caught:
        codec_from_name("int8+zst")
    assert caught.value.available == available_byte_stages()


def test_nothing_is_suggested_where_nothing_is_near() -> None:
    with pytest.raises(UnknownCodecError) as caught:
        codec_from_name("wavelet")
    assert caught.value.suggestion is None


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("fp16:block=64", "fp16 takes no options, not 'block=64'"),
        ("bf16:a,b", "bf16 takes no options, not 'a,b'"),
        ("int8+shuffle:4", "shuffle takes no options, not '4'"),
        ("int8+lz4:9", "lz4 takes no options, not '9'"),
        ("int8+none:1", "none takes no options, not '1'"),
        ("int8+zstd:0", "zstd takes one level from 1 to 19, not '0'"),
        ("int8+zstd:20", "zstd takes one level from 1 to 19, not '20'"),
        ("int8+zstd:fast", "zstd takes one level from 1 to 19, not 'fast'"),
        ("int8+zstd:3,4", "zstd takes one level from 1 to 19, not '3,4'"),
        ("int8+zstd:-1", "zstd takes one level from 1 to 19, not '-1'"),
    ],
)
def test_an_unknown_option_is_named_with_what_is_accepted(name: str, problem: str) -> None:
    with pytest.raises(UnknownCodecError) as caught:
        codec_from_name(name)
    assert caught.value.name == name
    assert caught.value.problem == problem
    assert isinstance(caught.value.__cause__, BadOptionError)


@pytest.mark.parametrize(
    ("name", "option", "suggestion"),
    [
        ("int4:blok=64", "blok=64", "block=64"),
        ("int8:block", "block", "block=64"),
        ("int2:symetric", "symetric", "symmetric"),
        ("int4:block=16,round=stochastically", "round=stochastically", "round=stochastic"),
        ("int4:block=3", "block=3", "block=64"),
        ("int4:block=65537", "block=65537", "block=64"),
        ("int4:block=-8", "block=-8", "block=64"),
        ("int4:symmetric=1", "symmetric=1", "symmetric"),
        ("int4:a", "a", None),
    ],
)
def test_an_option_that_a_quantizer_does_not_know_is_told_the_options_and_the_nearest(
    name: str, option: str, suggestion: str | None
) -> None:
    with pytest.raises(UnknownCodecError, match="takes block=K") as caught:
        codec_from_name(name)
    assert caught.value.available == ("block=64", "block=token", "block=all", "symmetric", "round=stochastic")
    assert caught.value.suggestion == suggestion
    assert f"not '{option}'" in caught.value.problem


@pytest.mark.parametrize("options", ["block=64,block=64", "block=64,block=all", "symmetric,symmetric"])
def test_an_option_stands_once(options: str) -> None:
    with pytest.raises(UnknownCodecError, match="each once"):
        codec_from_name(f"int4:{options}")


def test_the_longest_canonical_name_of_a_quantizer_is_within_the_limit() -> None:
    name = "int4:block=65536,symmetric,round=stochastic+bitshuffle+zstd:19"
    assert codec_from_name(name).name == name
    assert len(name) <= MAX_NAME_LENGTH


@pytest.mark.parametrize(
    ("name", "problem", "available"),
    [
        ("fp16+zstd+lz4", "'zstd' cannot be the first of two byte stages", available_shuffles()),
        ("fp16+zstd+shuffle", "'zstd' cannot be the first of two byte stages", available_shuffles()),
        ("fp16+shuffle+bitshuffle", "'bitshuffle' cannot be the second of two byte stages", ("none", "lz4", "zstd")),
        ("fp16+none+zstd", "'none' cannot be the first of two byte stages", available_shuffles()),
    ],
)
def test_two_byte_stages_are_a_shuffle_and_a_compressor(name: str, problem: str, available: tuple[str, ...]) -> None:
    with pytest.raises(UnknownCodecError) as caught:
        codec_from_name(name)
    assert (caught.value.problem, caught.value.available) == (problem, available)


@pytest.mark.parametrize(
    "name",
    ["", "+", "int8+", "+zstd", "int8:", "int8+zstd:", "int8 ", " int8", "int8+a+b+c", "int8:,", "int8\n", "8int"],
)
def test_a_name_that_breaks_the_grammar_is_told_the_form(name: str) -> None:
    with pytest.raises(UnknownCodecError, match="not of the form"):
        codec_from_name(name)


def test_digits_of_other_scripts_are_no_level() -> None:
    with pytest.raises(UnknownCodecError, match="not of the form"):
        codec_from_name("int8+zstd:\u0663")


def test_a_long_name_is_refused_and_not_repeated_whole() -> None:
    name = "int8" * 100_000
    with pytest.raises(UnknownCodecError, match=f"at most {MAX_NAME_LENGTH} characters") as caught:
        codec_from_name(name)
    assert len(str(caught.value)) < 400


@given(
    st.text(max_size=80)
    | st.from_regex(
        r"(int8|int4|fp16|x)(:([a-z0-9=]{1,4}|block=\d{1,6}|symmetric))?(\+(zstd|lz4|shuffle|y)(:\d{1,2})?){0,2}"
    )
)
def test_any_string_is_a_codec_or_an_unknown_codec_error(name: str) -> None:
    try:
        codec = codec_from_name(name)
    except UnknownCodecError:
        return
    assert codec_from_name(codec.name) == codec
