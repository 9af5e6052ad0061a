"""Why a client's part of a round was not used as it came: stable codes for logs, tables, pages and metrics.

The sentences beside them are for people and may change; the codes do not.
"""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """The codes, in the order in which an update is checked.

    The first two are of clients that failed; "signal" only ever marks an update that is used all the same, and so does
    "norm" where the update was scaled down.
    """

    NO_ANSWER = "no-answer"
    PROBLEM = "problem"
    IDENTITY = "identity"
    DUPLICATE = "duplicate"
    SIZE = "size"
    MALFORMED = "malformed"
    ROUND = "round"
    NAMES = "names"
    SHAPE = "shape"
    DTYPE = "dtype"
    FINITE = "finite"
    SCALAR = "scalar"
    EXAMPLES = "examples"
    STEPS = "steps"
    SIGNAL = "signal"
    NORM = "norm"
    REPLAY = "replay"
    DIRECTION = "direction"


MEANING = {
    Reason.NO_ANSWER: "no answer came in time, or the client left",
    Reason.PROBLEM: "the client answered with a problem of its own",
    Reason.IDENTITY: "the answer is in another client's name",
    Reason.DUPLICATE: "the client has answered in this round already",
    Reason.SIZE: "more bytes than the server's own model and the strategy's extra arrays take",
    Reason.MALFORMED: "something that is no update",
    Reason.ROUND: "an answer to another round",
    Reason.NAMES: "missing or unknown arrays",
    Reason.SHAPE: "an array of another shape",
    Reason.DTYPE: "an array of another type of number",
    Reason.FINITE: "NaN or infinite numbers",
    Reason.SCALAR: "a number that the strategy weights clients by is missing or out of range",
    Reason.EXAMPLES: "num_examples is not a positive integer, above the cap, or more than the client has",
    Reason.STEPS: "num_steps is not a positive integer, or more than the rows allow",
    Reason.SIGNAL: "a signal that is no number, out of range, or contradicts the counts beside it",
    Reason.NORM: "a change much larger than usual",
    Reason.REPLAY: "bit for bit an update that has been counted already",
    Reason.DIRECTION: "a change against those of the other clients",
}
