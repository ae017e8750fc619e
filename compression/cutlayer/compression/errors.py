"""The ways in which coding a tensor fails.

    CodecError                      everything this package raises on purpose; a ValueError
    ├── UnknownCodecError           a codec name that does not resolve
    ├── BadOptionError              an option that a family refuses; becomes the cause of an UnknownCodecError
    ├── ShapeError                  a shape that no codec takes
    ├── EncodeError                 ours: the input is not codable
    │   ├── WrongDtypeError         not native float32
    │   └── NonFiniteInputError     NaN or Inf
    └── DecodeError                 theirs: the bytes are not what the named codec writes
        ├── WrongLengthError        too short or too long for the shape
        ├── OversizedError          declares or holds more than the shape can need (a decompression bomb)
        ├── CorruptError            the byte stage does not understand the bytes
        └── NonFiniteDataError      NaN, Inf or a negative scale where finite values belong

A receiver of bytes from a peer catches `DecodeError` and `ShapeError`, or simply `CodecError`.
"""

_SHOWN_CHARACTERS = 80
"""How much of a peer's string an error text repeats; the attribute keeps all of it."""


class CodecError(ValueError):
    """Anything that goes wrong in naming, encoding or decoding."""


class UnknownCodecError(CodecError):
    """A codec name does not resolve.

    Args:
        name: The name as it was given.
        available: What may stand at the place that is wrong (codecs, byte stages or options).
        problem: What is wrong with the name.
        suggestion: The entry of `available` nearest to what was written, if one is near.
    """

    def __init__(self, name: str, available: tuple[str, ...], problem: str, suggestion: str | None = None):
        self.name = name
        self.available = available
        self.problem = problem
        self.suggestion = suggestion
        hint = "" if suggestion is None else f"; did you mean {suggestion!r}?"
        super().__init__(
            f"unknown codec {name[:_SHOWN_CHARACTERS]!r}: {problem}{hint} (available: {', '.join(available)})"
        )


class BadOptionError(CodecError):
    """A codec family or byte stage refuses an option.

    Args:
        family: The family, such as `zstd`.
        option: The option as it was written, such as `99`.
        accepted: What the family takes, in words.
        known: Options that it takes, as they are written; what was meant is looked for among them.
    """

    def __init__(self, family: str, option: str, accepted: str, known: tuple[str, ...] = ()):
        self.family = family
        self.option = option
        self.accepted = accepted
        self.known = known
        super().__init__(f"{family} takes {accepted}, not {option[:_SHOWN_CHARACTERS]!r}")


class ShapeError(CodecError):
    """A shape is negative somewhere, has too many axes, or holds too many elements.

    Args:
        shape: The shape as it was given.
        problem: Which rule it breaks.
    """

    def __init__(self, shape: tuple[int, ...], problem: str):
        self.shape = shape
        self.problem = problem
        super().__init__(f"shape {str(shape)[:_SHOWN_CHARACTERS]}: {problem}")


class EncodeError(CodecError):
    """An array cannot be encoded.

    Args:
        codec: The codec that refuses it.
        problem: Why.
    """

    def __init__(self, codec: str, problem: str):
        self.codec = codec
        self.problem = problem
        super().__init__(f"{codec} cannot encode: {problem}")


class WrongDtypeError(EncodeError):
    """An array is not native float32.

    Args:
        codec: The codec that refuses it.
        dtype: The array's dtype, in NumPy's spelling.
    """

    def __init__(self, codec: str, dtype: str):
        self.dtype = dtype
        super().__init__(codec, f"dtype is {dtype}, not native float32")


class NonFiniteInputError(EncodeError):
    """An array holds NaN or Inf, which no codec carries: training with them is lost anyway.

    Args:
        codec: The codec that refuses it.
        num_nan: How many elements are NaN.
        num_inf: How many elements are infinite, of either sign.
    """

    def __init__(self, codec: str, num_nan: int, num_inf: int):
        self.num_nan = num_nan
        self.num_inf = num_inf
        super().__init__(codec, f"the array holds {num_nan} NaN and {num_inf} Inf")


class DecodeError(CodecError):
    """Bytes are not what the codec writes.

    Args:
        codec: The codec or byte stage that refuses them.
        problem: Why.
    """

    def __init__(self, codec: str, problem: str):
        self.codec = codec
        self.problem = problem
        super().__init__(f"{codec} cannot decode: {problem}")


class WrongLengthError(DecodeError):
    """The number of bytes does not fit the shape.

    Args:
        codec: The codec or byte stage that refuses them.
        expected_bytes: How many bytes belong there.
        actual_bytes: How many there are.
    """

    def __init__(self, codec: str, expected_bytes: int, actual_bytes: int):
        self.expected_bytes = expected_bytes
        self.actual_bytes = actual_bytes
        super().__init__(codec, f"{actual_bytes} bytes where {expected_bytes} belong")


class OversizedError(DecodeError):
    """The bytes are, or say they become, more than the shape can need; refused before memory is taken.

    Args:
        codec: The codec or byte stage that refuses them.
        declared_bytes: The size found.
        limit_bytes: The most that is allowed.
    """

    def __init__(self, codec: str, declared_bytes: int, limit_bytes: int):
        self.declared_bytes = declared_bytes
        self.limit_bytes = limit_bytes
        super().__init__(codec, f"{declared_bytes} bytes where at most {limit_bytes} are allowed")


class CorruptError(DecodeError):
    """A byte stage does not understand the bytes."""


class NonFiniteDataError(DecodeError):
    """The bytes spell NaN, Inf or a negative scale, which no encoder here writes."""
