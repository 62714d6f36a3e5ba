"""Finds the conversation that a request continues, and the answer that its newest turn replies to: by the client's header, otherwise by its messages.

A client of OpenAI's API sends the whole conversation each time, so the messages up to an answer (its *prefix*) name that answer. A replica
remembers the prefixes of its own recent answers, as hashes; it keeps no text. Pure bookkeeping, touched only from the server's event loop.
"""

import hashlib
import json
import unicodedata
from collections import OrderedDict, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from actor.capture.client_request import ClientRequest, is_text, text_of
from streams.core.events import new_id

RULES = ("system", "developer")
"""Roles that are left out of prefixes, since applications may write the date into them."""
MOST_MESSAGES = 2000
"""Longer conversations are not hashed: that would block the server."""


@dataclass(frozen=True, slots=True)
class ConversationPlace:
    """A request's place in its conversation."""

    conversation_id: str | None = None
    turn: int = 0
    replies_to: str | None = None
    """The episode whose answer the newest messages reply to, if this replica knows it."""
    prefix: bytes = b""
    """Hash of all messages so far. Empty when the request is not a chat."""
    key: str | None = None
    """Key that keeps a conversation on one side of a canary. None: this request belongs to no conversation."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """One answer that was sent."""

    episode_id: str
    place: ConversationPlace


class Conversations:
    """Remembers at most ``remembered`` answers per tenant; the oldest are dropped first."""

    def __init__(self, remembered: int) -> None:
        self._remembered = remembered
        self._by_prefix: defaultdict[str, OrderedDict[bytes, _Answer]] = defaultdict(OrderedDict)
        self._last: defaultdict[str, OrderedDict[str, _Answer]] = defaultdict(OrderedDict)

    def place(self, tenant: str, asked: ClientRequest) -> ConversationPlace:
        """The request's place. When no conversation is found, a new one begins."""
        if asked.api == "completion" or len(asked.said) > MOST_MESSAGES:  # text without turns, or no conversation: only the client knows
            return ConversationPlace(asked.conversation_id, key=asked.conversation_key)
        said = _prefixes(asked)
        prefix = said[-1][1] if said else b""
        answers = [known for role, known in said if role == "assistant"]
        by_prefix = self._by_prefix[tenant]
        found = next((by_prefix[answer] for answer in reversed(answers) if answer in by_prefix), None)
        conversation_id = asked.conversation_id or (found.place.conversation_id if found else None) or new_id("cv")
        place = ConversationPlace(conversation_id, len(answers), None, prefix, self._key(tenant, asked, conversation_id, found))
        if answers and answers[-1] in by_prefix:
            return _after(place, by_prefix[answers[-1]])
        last = self._last[tenant].get(conversation_id)
        if last is None:
            return place
        if last.place.prefix == prefix:  # a retry: it takes the place of the first try
            return replace(place, turn=last.place.turn, replies_to=last.place.replies_to)
        return _after(place, last)

    def _key(self, tenant: str, asked: ClientRequest, conversation_id: str, found: _Answer | None) -> str:
        """What decides the side of a canary. Where the client may not choose it, a conversation keeps what this replica drew when it began."""
        if asked.may_assign or asked.conversation_id is None:
            return asked.conversation_key or (found.place.key if found else None) or f"conversation {conversation_id}"
        last = self._last[tenant].get(conversation_id)
        return (last.place.key if last else None) or f"conversation {new_id('cv')}"

    def note(self, tenant: str, place: ConversationPlace, given: Iterable[tuple[str, str, Iterable[Any]]]) -> None:
        """Remember the answers to a request: episode, text and tool calls of each choice. The first counts as the conversation's last answer."""
        for index, (episode_id, text, tool_calls) in enumerate(given):
            answer = _Answer(episode_id, place)
            if place.prefix:
                _remember(self._by_prefix[tenant], _with(place.prefix, "assistant", text, tool_calls), answer, self._remembered)
            if index == 0 and place.conversation_id is not None:
                _remember(self._last[tenant], place.conversation_id, answer, self._remembered)

    def drop(self, tenant: str, place: ConversationPlace, episode_id: str) -> None:
        """Forget an answer that became no episode after all."""
        if place.conversation_id is not None and self.last(tenant, place.conversation_id) == episode_id:
            del self._last[tenant][place.conversation_id]
        if place.prefix:
            by_prefix = self._by_prefix[tenant]
            gone = next((known for known in reversed(by_prefix) if by_prefix[known].episode_id == episode_id), None)
            if gone is not None:
                del by_prefix[gone]

    def last(self, tenant: str, conversation_id: str) -> str | None:
        """The episode of a conversation's last answer on this replica."""
        answer = self._last[tenant].get(conversation_id)
        return answer.episode_id if answer else None


def _after(place: ConversationPlace, answer: _Answer) -> ConversationPlace:
    return replace(place, turn=max(place.turn, answer.place.turn + 1), replies_to=answer.episode_id)


def _remember(known: OrderedDict[Any, _Answer], name: Any, answer: _Answer, most: int) -> None:
    known[name] = answer
    known.move_to_end(name)
    while len(known) > most:
        known.popitem(last=False)


def _prefixes(asked: ClientRequest) -> list[tuple[Any, bytes]]:
    """Role of each message, and the hash of all that was said to this person and by them until then."""
    found: list[tuple[Any, bytes]] = []
    prefix = hashlib.sha256((asked.user_id or "").encode(errors="replace")).digest()
    for message in asked.said:
        role = message["role"]
        if role not in RULES:
            prefix = _with(prefix, role, message.get("content"), message.get("tool_calls"))
            found.append((role, prefix))
    return found


def _with(prefix: bytes, role: Any, content: Any, tool_calls: Any) -> bytes:
    """The prefix and one more message. What clients change on the way back counts for nothing: space around the text, the ends of
    its lines, its Unicode form, ids of calls, and how a call's arguments are written (spaces, order, escapes, 1 or 1.0)."""
    said = unicodedata.normalize("NFC", "\n".join(text_of(content).splitlines())).strip() if is_text(content) else content
    calls = [call.get("function") for call in tool_calls or () if isinstance(call, dict)] if isinstance(tool_calls, list | tuple) else []
    functions = [[call.get("name"), _meant(call.get("arguments"))] for call in calls if isinstance(call, dict)]
    return hashlib.sha256(prefix + json.dumps([role, said, functions], sort_keys=True).encode()).digest()


def _meant(arguments: Any) -> Any:
    """What a call's arguments say: the JSON in their text, or themselves where they are no JSON. Numbers are JavaScript's; no arguments are {}."""
    if arguments is None or arguments == {}:
        return {}
    if not isinstance(arguments, str):
        return arguments
    try:
        return json.loads(arguments, parse_int=float) if arguments.strip() else {}
    except (ValueError, RecursionError):
        return arguments
