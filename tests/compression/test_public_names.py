"""The package exports what it says, and nothing that its errors' tree does not draw."""

import inspect

import cutlayer.compression
from cutlayer.compression import CodecError, errors


def test_all_lists_exactly_the_public_names() -> None:
    assert set(cutlayer.compression.__all__) == {
        "MAX_AXES",
        "MAX_ELEMENTS",
        "MAX_NAME_LENGTH",
        "BadOptionError",
        "Codec",
        "CodecError",
        "CorruptError",
        "DecodeError",
        "EncodeError",
        "NonFiniteDataError",
        "NonFiniteInputError",
        "OversizedError",
        "ShapeError",
        "UnknownCodecError",
        "WrongDtypeError",
        "WrongLengthError",
        "available_byte_stages",
        "available_codecs",
        "available_shuffles",
        "codec_from_name",
    }


def test_every_name_in_all_exists() -> None:
    for name in cutlayer.compression.__all__:
        assert hasattr(cutlayer.compression, name)


def _error_classes() -> list[type[Exception]]:
    classes = [value for _, value in inspect.getmembers(errors, inspect.isclass)]
    return [value for value in classes if issubclass(value, Exception)]


def test_every_error_is_exported_and_drawn_in_the_tree() -> None:
    assert errors.__doc__ is not None
    for error in _error_classes():
        assert error.__name__ in cutlayer.compression.__all__
        assert f" {error.__name__} " in errors.__doc__


def test_every_error_is_a_codec_error_and_a_value_error() -> None:
    for error in _error_classes():
        assert issubclass(error, CodecError)
        assert issubclass(error, ValueError)
