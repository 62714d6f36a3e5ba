"""Several spans can report the same call (a framework's around its client's, a gateway's next to the caller's): they become one episode. Pure."""

import json
from collections import Counter, OrderedDict
from dataclasses import dataclass, field, replace
from hashlib import sha256

from actor.otlp.reported_span import Span
from streams.core.events import Episode


@dataclass
class Call:
    """One call of a model, and the first span that reported it."""

    tenant: str
    span: Span
    episodes: list[Episode]
    """Redacted."""
    taken_out: Counter[str] = field(default_factory=Counter)
    """Number of redactions by kind."""

    place: int = 0
    """Position of its first span in the export, to keep the order."""

    @property
    def named(self) -> bool:
        """True when the answer has an id."""
        return bool(self.span.attributes.get("gen_ai.response.id"))

    @property
    def said(self) -> bytes:
        """Hash of last question, answers and tool calls."""
        asked = next((message.text.strip() for message in reversed(self.episodes[0].messages) if message.role == "user"), "")
        calls = [[call.get("function", {}).get("name") for call in each.tool_calls] for each in self.episodes]
        return sha256(json.dumps([asked, [each.answer.strip() for each in self.episodes], calls]).encode(errors="replace")).digest()

    def is_same(self, other: "Call") -> bool:
        """True when both spans report the same call: the same id, or one inside the other in one trace. Calls one after the other are two, also with
        the same text; so are calls of two people."""
        users = {self.episodes[0].user_id, other.episodes[0].user_id} - {None}
        if self.span.span_id == other.span.span_id or len(users) > 1:
            return False
        if self.named and other.named:
            return self.episodes[0].episode_id == other.episodes[0].episode_id
        return self.span.trace_id == other.span.trace_id and (_inside(self.span, other.span) or _inside(other.span, self.span))

    def with_facts_of(self, other: "Call") -> "Call":
        """Both merged: the answer's id wins; user and conversation come from the span that has them."""
        first, second = (self, other) if self.named or not other.named else (other, self)
        known = second.episodes[0]
        episodes = [
            each.model_copy(update={"user_id": each.user_id or known.user_id, "conversation_id": each.conversation_id or known.conversation_id})
            for each in first.episodes
        ]
        return replace(first, episodes=episodes, place=self.place)


def _inside(inner: Span, outer: Span) -> bool:
    return outer.started_ns <= inner.started_ns and inner.ended_ns <= outer.ended_ns


def merged(calls: list[Call]) -> list[Call]:
    """The calls of one export, each once."""
    found: dict[bytes, list[Call]] = {}
    for call in calls:
        alike = found.setdefault(call.said, [])
        same = next((index for index, known in enumerate(alike) if known.is_same(call)), None)
        if same is None:
            alike.append(call)
        else:
            alike[same] = alike[same].with_facts_of(call)
    return [call for alike in found.values() for call in alike]


class SeenCalls:
    """Remembers recent calls, for spans that come in a later export. The oldest are dropped first."""

    def __init__(self, remembered: int = 20_000) -> None:
        self._remembered = remembered
        self._known: OrderedDict[tuple[str, bytes], Call] = OrderedDict()

    def has(self, call: Call) -> bool:
        """True when another span has reported this call before."""
        known = self._known.get((call.tenant, call.said))
        return known is not None and known.is_same(call)

    def note(self, call: Call) -> None:
        """Remember a call."""
        lean = [each.model_copy(update={"messages": (), "tools": (), "answer": ""}) for each in call.episodes[:1]]
        told = Span(call.span.trace_id, call.span.span_id, "", _id_alone(call), call.span.started_ns, call.span.ended_ns)
        self._known[call.tenant, call.said] = Call(call.tenant, told, lean)
        while len(self._known) > self._remembered:
            self._known.popitem(last=False)


def _id_alone(call: Call) -> dict[str, object]:
    return {"gen_ai.response.id": call.span.attributes["gen_ai.response.id"]} if call.named else {}
