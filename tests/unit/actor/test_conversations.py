"""How turns find the conversation that they go on with, and the answer that they reply to."""

from typing import Any

import pytest

from actor.capture.client_request import Api, ClientRequest
from actor.capture.conversations import ConversationPlace, Conversations

CALL = {"id": "call-1", "type": "function", "function": {"name": "sail", "arguments": '{"to": "sea"}'}}


def asked(*said: Any, user: str | None = None, conversation: str | None = None, api: Api = "chat") -> ClientRequest:
    """Strings are turns of person and model in turn."""
    messages = [{"role": ("user", "assistant")[n % 2], "content": each} if isinstance(each, str) else each for n, each in enumerate(said)]
    return ClientRequest(api, {"messages": messages, "input": messages}, user, conversation)


class Talk:
    """A replica that answers, and what it says of each request."""

    def __init__(self, remembered: int = 100) -> None:
        self.conversations = Conversations(remembered)
        self.count = 0

    def answer(self, request: ClientRequest, *answers: str, tenant: str = "acme", tool_calls: tuple[Any, ...] = ()) -> ConversationPlace:
        """The place of a request, which is then given these answers, as episodes ep-1, ep-2 …"""
        place = self.conversations.place(tenant, request)
        given = []
        for text in answers:
            self.count += 1
            given.append((f"ep-{self.count}", text, tool_calls))
        self.conversations.note(tenant, place, given)
        return place


def test_a_conversation_without_a_name_is_found_again_by_what_was_said() -> None:
    talk = Talk()
    first = talk.answer(asked("hi"), "hello")
    second = talk.answer(asked("hi", "hello", "and tea?"), "yes")
    third = talk.answer(asked("hi", "hello", "and tea?", "yes", "thanks"), "welcome")
    assert first.conversation_id is not None
    assert {place.conversation_id for place in (second, third)} == {first.conversation_id}
    assert [place.turn for place in (first, second, third)] == [0, 1, 2]
    assert [place.replies_to for place in (first, second, third)] == [None, "ep-1", "ep-2"]
    assert first.key == second.key == f"conversation {first.conversation_id}"


def test_who_begins_with_the_same_words_begins_another_conversation() -> None:
    talk = Talk()
    assert talk.answer(asked("hi"), "hello").conversation_id != talk.answer(asked("hi"), "ahoy").conversation_id
    assert talk.answer(asked("hi", "hello", "so"), "?").replies_to == "ep-1"
    assert talk.answer(asked("hi", "ahoy", "so"), "?").replies_to == "ep-2"


@pytest.mark.parametrize("other", [{"tenant": "other"}, {"user": "bob"}])
def test_another_tenant_or_person_finds_nothing(other: dict[str, str]) -> None:
    talk = Talk()
    first = talk.answer(asked("hi", user="ann"), "hello")
    request = asked("hi", "hello", "so", user=other.get("user", "ann"))
    place = talk.answer(request, "?", tenant=other.get("tenant", "acme"))
    assert place.replies_to is None
    assert place.conversation_id != first.conversation_id


def test_what_clients_change_on_the_way_back_does_not_matter() -> None:
    talk = Talk()
    talk.answer(asked({"role": "system", "content": "It is Monday."}, {"role": "user", "content": "hi "}), " hello\n")
    said = [{"role": "system", "content": "It is Tuesday."}, {"role": "user", "content": [{"type": "text", "text": "hi"}]},
            {"role": "assistant", "content": "hello", "refusal": None}, {"role": "user", "content": "so"}]  # fmt: skip
    assert talk.answer(asked(*said)).replies_to == "ep-1"


def test_the_result_of_a_tool_replies_to_the_answer_that_called_it() -> None:
    talk = Talk()
    talk.answer(asked("hi"), "", tool_calls=(CALL,))
    said = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": None, "tool_calls": [CALL | {"id": "renamed"}]},
            {"role": "tool", "tool_call_id": "renamed", "content": "arrived"}]  # fmt: skip
    request = asked(*said)
    assert talk.answer(request).replies_to == "ep-1"
    assert request.reply is None


def test_items_of_a_response_are_a_conversation_like_messages_of_a_chat() -> None:
    talk = Talk()
    talk.answer(asked("hi"), "Well", tool_calls=(CALL,))
    items = [{"role": "user", "content": "hi"}, {"type": "reasoning", "content": []},
             {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Well"}]},
             {"type": "function_call", "call_id": "c", "name": "sail", "arguments": '{"to": "sea"}'},
             {"type": "function_call_output", "call_id": "c", "output": "arrived"}, {"role": "user", "content": "good"}]  # fmt: skip
    request = asked(*items, api="response")
    assert talk.answer(request).replies_to == "ep-1"
    assert request.reply == "good"
    assert [message.role for message in request.messages(0)] == ["user", "assistant", "tool", "user"]


def test_a_reply_to_one_of_several_answers_is_to_that_one() -> None:
    talk = Talk()
    talk.answer(asked("hi"), "hello", "ahoy")
    assert talk.answer(asked("hi", "ahoy", "so")).replies_to == "ep-2"


def test_a_named_conversation_goes_on_even_where_the_client_sends_only_what_is_new() -> None:
    talk = Talk()
    first = talk.answer(asked("hi", conversation="c-1"), "hello")
    second = talk.answer(asked("and tea?", conversation="c-1"), "yes")
    assert (first.conversation_id, first.turn, first.replies_to) == ("c-1", 0, None)
    assert (second.conversation_id, second.turn, second.replies_to) == ("c-1", 1, "ep-1")
    assert talk.conversations.last("acme", "c-1") == "ep-2"
    assert talk.conversations.last("other", "c-1") is None


def test_a_question_asked_once_more_stands_where_it_stood() -> None:
    talk = Talk()
    talk.answer(asked("hi", conversation="c-1"), "hello")
    assert talk.answer(asked("hi", conversation="c-1"), "ahoy").replies_to is None
    again = [talk.answer(asked("hi", "ahoy", "so", conversation="c-1"), text) for text in ("a", "b")]
    assert [(place.turn, place.replies_to) for place in again] == [(1, "ep-2"), (1, "ep-2")]


def test_text_without_turns_has_a_conversation_only_by_name() -> None:
    talk = Talk()
    assert talk.answer(ClientRequest("completion", {"prompt": "the sea"}, None, None), "is") == ConversationPlace()
    assert talk.answer(ClientRequest("completion", {"prompt": "the sea"}, None, "c-1"), "is").conversation_id == "c-1"
    assert talk.conversations.last("acme", "c-1") == "ep-2"


def test_a_request_of_more_messages_than_people_write_is_not_looked_at() -> None:
    assert Talk().answer(asked(*["x"] * 5000)) == ConversationPlace()


def test_memory_is_bounded_by_tenant() -> None:
    talk = Talk(remembered=2)
    for word in ("a", "b", "c"):
        talk.answer(asked(word), "hello")
        talk.answer(asked(word), "hello", tenant="other")
    assert [talk.answer(asked(word, "hello", "so")).replies_to for word in ("a", "b", "c")] == [None, "ep-3", "ep-5"]


@pytest.mark.parametrize("content", [None, 3, {"a": 1}, ["x", 3], [{"text": 3}], [{"type": "image_url", "image_url": {"url": "u"}}], "\ud800"])
def test_no_message_however_odd_stands_in_the_way_of_an_answer(content: Any) -> None:
    odd = {"role": "assistant", "content": content, "tool_calls": content}
    assert Conversations(10).place("acme", asked("hi", odd, "so", {"role": ["x"]}, user="\ud800")).turn == 1


@pytest.mark.parametrize(("ours", "theirs"), [
    ('{"days": 1.0}', '{"days":1}'), ('{"n": 12345678901234567890}', '{"n": 12345678901234567000}'), ("", "{}"), ("{}", ""), ("", None),
    ('{"big": 1e999}', '{"big": 1e999}'),
])  # fmt: skip
def test_arguments_go_on_with_their_conversation_as_other_languages_write_their_numbers_and_their_absence(ours: str, theirs: str | None) -> None:
    talk = Talk()
    first = talk.answer(asked("weather?"), "", tool_calls=(CALL | {"function": {"name": "sail", "arguments": ours}},))
    said = {"role": "assistant", "content": None, "tool_calls": [CALL | {"function": {"name": "sail", "arguments": theirs}}]}
    second = talk.answer(asked("weather?", said, {"role": "tool", "content": "4 degrees", "tool_call_id": "c"}), "cold")
    assert (second.conversation_id, second.replies_to) == (first.conversation_id, "ep-1")


@pytest.mark.parametrize("back", ["caf\u00e9\n\nau lait", "cafe\u0301\r\n\r\nau lait", " caf\u00e9\n\nau lait\n"])
def test_line_ends_and_unicode_forms_that_change_on_the_way_back_make_no_other_conversation(back: str) -> None:
    talk = Talk()
    first = talk.answer(asked("a drink?"), "caf\u00e9\n\nau lait")
    second = talk.answer(asked("a drink?", back, "thanks"), "welcome")
    assert (second.conversation_id, second.replies_to) == (first.conversation_id, "ep-1")


def test_what_a_person_says_next_is_all_their_words_since_the_answer_within_bounds() -> None:
    said = ["hi", "hello", "no,", {"role": "user", "content": [{"type": "text", "text": "wrong"}]}]
    assert asked(*said).reply == "no,\nwrong"
    assert asked("hi", "hello").reply is None
    assert len(asked("hi", "hello", "x" * 50_000).reply or "") == 20_000


@pytest.mark.parametrize("written", ['{"to":"sea"}', '{\n "to": "sea"\n}', '{"to": "s\\u0065a"}'])
def test_arguments_that_a_client_wrote_its_own_way_go_on_with_their_conversation(written: str) -> None:
    talk = Talk()
    first = talk.answer(asked("weather?"), "", tool_calls=(CALL,))
    call = CALL | {"id": "other", "function": {"name": "sail", "arguments": written}}
    said = {"role": "assistant", "content": None, "tool_calls": [call]}
    second = talk.answer(asked("weather?", said, {"role": "tool", "content": "4 degrees", "tool_call_id": "other"}), "cold")
    assert (second.conversation_id, second.replies_to) == (first.conversation_id, "ep-1")
