"""The limits that several kinds of messages share, and those of any message: what a peer can make a receiver hold.

A limit of one kind's field alone stands with the kind.
"""

MAX_MODALITIES = 16
MAX_NAME = 64
MAX_TOPIC = 256
MAX_DETAIL = 512
MAX_PARAMETERS = 3 * MAX_MODALITIES
"""Parameters of all tokenizers: a table's has a weight, a bias and an embedding, others have fewer."""
MAX_CHUNKS = 65_536
"""Chunks of one message."""
MAX_MESSAGE_BYTES = 64 << 20
"""A message, put together from its chunks."""
MAX_LIST = 4_100
"""Entries of any list: a few more than the longest field has, so that a field's own check names it."""
MAX_TEXT_BYTES = 8_192
"""UTF-8 bytes of any text."""
MAX_VALUES = 1 << 17
"""Values in all lists of a message together; the largest that the limits of the fields admit has about 60,000."""
