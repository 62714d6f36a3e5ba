"""What nobody should send: JSON of any shape, and what is right but for one place."""

import copy
import json
from typing import Any

from hypothesis import strategies as st

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["", "\x00", "../x", "ep-1", "NaN", "-1", "💥" * 9]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@st.composite
def spoiled(draw: st.DrawFn, right: Any) -> Any:
    """A right document with up to three of its places replaced, left out or added to."""
    document = copy.deepcopy(right)
    for _ in range(draw(st.integers(0, 3))):
        at, where = document, draw(st.integers(0, 4))
        while where and isinstance(at, dict | list) and at:
            inner = at[draw(st.sampled_from(sorted(at)))] if isinstance(at, dict) else at[draw(st.integers(0, len(at) - 1))]
            if not isinstance(inner, dict | list) or not inner:
                break
            at, where = inner, where - 1
        if isinstance(at, dict):
            key = draw(st.sampled_from(sorted(at)) if at else st.just("x")) if draw(st.booleans()) else draw(st.text(max_size=6))
            if draw(st.booleans()) and key in at:
                del at[key]
            else:
                at[key] = draw(JSON)
        elif isinstance(at, list) and at:
            at[draw(st.integers(0, len(at) - 1))] = draw(JSON)
    return document


def raw(right: Any) -> st.SearchStrategy[bytes]:
    """Bytes: of the right document first (Hypothesis tries the simplest example in every run), of a spoiled one, of any JSON, cut short, deep beyond
    reason, or of nothing at all."""
    whole = spoiled(right).map(as_bytes)
    cut = st.tuples(whole, st.integers(0, 400)).map(lambda pair: pair[0][: pair[1]])
    deep = st.integers(1, 50_000).map(lambda depth: b"[" * depth + b"]" * depth)
    return st.just(as_bytes(right)) | whole | cut | JSON.map(as_bytes) | st.binary(max_size=200) | deep


@st.composite
def damaged(draw: st.DrawFn, right: bytes) -> bytes:
    """Right bytes with up to nine of them changed, whole or cut short."""
    content = bytearray(right)
    for _ in range(draw(st.integers(1, 9))):
        content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(content[: draw(st.integers(0, len(content)) | st.just(len(content)))])


def as_bytes(document: Any) -> bytes:
    """JSON, half surrogates and all, as a careless client would write it."""
    return json.dumps(document, default=str).encode("utf-8", "surrogatepass")
