"""Words that two processes share: of a ring cell, and of the block that controls the workers.

All are int64 unless said. What different threads write lies in different cache lines.
"""

from enum import IntEnum

WORD_BYTES = 8
LINE_WORDS = 8

# A cell: first line, written by the publisher; TICKET is counted down by the workers.
TICKET = 0
MODEL = 1
SLOT = 2
LAYER = 3
CONTEXT_LEN = 4
Q_LEN = 5
NUM_PARTS = 6
# Second line, written by the workers.
DONE = 8
PARTS_LEFT = 9
"""int32; set by the publisher, counted down as parts end."""
FAILURE = 10
"""A HostStatus that some part ended with; set to OK by the publisher."""
CELL_WORDS = 2 * LINE_WORDS
CELL_BYTES = CELL_WORDS * WORD_BYTES

# Byte offsets in the control block: a line of the publisher's, one of sleepers, one of workers.
STOP = 0
OLDEST = 8
"""Every task before this position has been collected."""
SLEEPERS = 64
WAKE = 72
"""int32; counted up at each wake; sleepers wait for it to change."""
PROGRESS = 128
"""Counted up after each part; after the result where it was the last."""
CONTROL_BYTES = 256

# A ticket and a done word: a position, then this many bits of parts or status.
LOW_BITS = 8
LOW_MASK = (1 << LOW_BITS) - 1
MAX_PARTS = LOW_MASK

MAX_MODELS = 32
"""At a time; tables have a row for each from the start and never grow."""


class HostStatus(IntEnum):
    """How a task ended."""

    OK = 0
    BAD_MODEL = 1
    BAD_SLOT = 2
    BAD_LAYER = 3
    BAD_Q_LEN = 4
    BAD_CONTEXT_LEN = 5
    BAD_PARTS = 6
    BAD_BLOCK = 7
    CRASHED = 8
    """The process died over it too often; it was not done."""
    NO_MEMORY = 9
    """The kernel had no memory to work in."""
