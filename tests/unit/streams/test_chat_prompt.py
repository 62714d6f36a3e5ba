"""A prompt with all that its rendering depends on, and an answer as one text."""

from typing import Any

import pytest
from pydantic import TypeAdapter

from streams.core.chat_prompt import (
    ChatPrompt,
    Prompt,
    call_names,
    content_key,
    has_media,
    left_out,
    prompt_of,
    template_inputs,
    whole_answer,
    with_messages,
)
from streams.core.events import Episode, Label, Message

CALL = {"id": "c1", "type": "function", "function": {"name": "brew", "arguments": '{"leaf": "oolong"}'}}
TOOL = {"type": "function", "function": {"name": "brew", "parameters": {"type": "object"}, "x-note": "dropped"}}
TALK = (
    Message(role="user", content="Brew some."),
    Message(role="assistant", content=None, tool_calls=(CALL,)),
    Message(role="tool", content="done", tool_call_id="c1"),
)


def test_a_template_gets_turns_tools_and_arguments_as_vllm_gives_them() -> None:
    turns, arguments = template_inputs(ChatPrompt(TALK, (TOOL,), {"enable_thinking": False, "tokenize": True, "chat_template": "mine"}))
    assert turns == [
        {"role": "user", "content": "Brew some."},
        {"role": "assistant", "content": "", "tool_calls": [CALL | {"function": {"name": "brew", "arguments": {"leaf": "oolong"}}}]},
        {"role": "tool", "content": "done", "tool_call_id": "c1"},
    ]
    tool = {"type": "function", "function": {"name": "brew", "description": None, "parameters": {"type": "object"}}}
    assert arguments == {"enable_thinking": False, "tools": [tool]}  # the rendering's own arguments are not the client's to set
    assert template_inputs(TALK[:1]) == ([{"role": "user", "content": "Brew some."}], {})


def test_a_tool_in_the_shape_of_the_responses_api_is_the_same_tool() -> None:
    flat = {"type": "function", "name": "brew", "parameters": {"type": "object"}, "strict": True}
    nested = {"type": "function", "function": {"name": "brew", "parameters": {"type": "object"}, "strict": True}}
    assert template_inputs(ChatPrompt(TALK, (flat,))) == template_inputs(ChatPrompt(TALK, (nested,)))


@pytest.mark.parametrize("arguments", ["", "no json", "[1]", "null", None, 3, '{"a":'])
def test_arguments_that_are_no_object_count_as_none(arguments: object) -> None:
    said = Message(role="assistant", content="", tool_calls=({"function": {"name": "f", "arguments": arguments}},))
    (turn,), _ = template_inputs((said,))
    assert turn["tool_calls"][0]["function"] == {"name": "f", "arguments": {}}


def test_parts_of_a_text_are_joined_by_line_breaks_and_anything_else_is_media() -> None:
    parts: tuple[dict[str, Any], ...] = ({"type": "text", "text": "one"}, {"type": "input_text", "text": "two"})
    assert template_inputs((Message(role="user", content=parts),))[0] == [{"role": "user", "content": "one\ntwo"}]
    assert not has_media((Message(role="user", content=parts), *TALK))
    assert has_media((*TALK, Message(role="user", content=(*parts, {"type": "image_url", "image_url": {"url": "sha256:0"}}))))
    assert has_media((Message(role="user", content=({"type": "text", "text": None},)),))


def test_an_answer_that_is_a_call_alone_is_a_text() -> None:
    assert whole_answer("It is.", ()) == "It is."
    assert whole_answer("", None) == ""
    assert whole_answer("", [CALL]) == '<tool_call>\n{"name": "brew", "arguments": {"leaf": "oolong"}}\n</tool_call>'
    assert whole_answer("Yes.", [CALL, CALL]).count("<tool_call>") == 2
    assert call_names([CALL, {"function": None}]) == ("brew", "")


def test_what_a_template_does_not_write_is_told_beside_it() -> None:
    asked = ChatPrompt(TALK, (TOOL,))
    assert left_out(asked, "<tools>brew</tools>") == []
    tool, call = left_out(asked, "a template that knows neither")
    assert tool.startswith('{"name": "brew"')
    assert call == whole_answer("", [CALL])
    assert left_out(TALK[:1], "") == []


def test_prompts_that_are_rendered_differently_have_different_keys() -> None:
    told: list[Prompt] = [TALK, TALK[:1], prompt_of(TALK, (TOOL,)), prompt_of(TALK, (), {"enable_thinking": False}),
                          prompt_of(TALK, (), {"enable_thinking": True}), (TALK[0], Message(role="assistant"), TALK[2])]  # fmt: skip
    assert len({content_key(prompt) for prompt in told}) == len(told)
    assert content_key(prompt_of(TALK[:1])) == '[["user", "Brew some."]]'  # what saved pools have used


def test_messages_alone_stay_messages_and_old_prompts_are_read() -> None:
    adapter: TypeAdapter[Prompt] = TypeAdapter(Prompt)
    plain, whole = prompt_of(TALK), prompt_of(TALK, (TOOL,), {"enable_thinking": False})
    assert plain == TALK
    assert isinstance(whole, ChatPrompt)
    assert (len(whole), whole[-1].content, [m.role for m in whole], whole[:1]) == (3, "done", ["user", "assistant", "tool"], TALK[:1])
    for prompt in (plain, whole):
        assert adapter.validate_json(adapter.dump_json(prompt)) == prompt
        assert adapter.validate_python(prompt) == prompt
    assert adapter.dump_json(TALK[:1]).startswith(b"[{")
    assert with_messages(whole, TALK[:1]) == ChatPrompt(TALK[:1], (TOOL,), {"enable_thinking": False})
    assert with_messages(plain, TALK[:1]) == TALK[:1]


def test_events_without_the_new_fields_are_read_as_before() -> None:
    old = {"episode_id": "e", "messages": [{"role": "user", "content": "tea?"}], "answer": "Tea.", "started_at": "2026-01-01T00:00:00Z",
           "ended_at": "2026-01-01T00:00:00Z"}  # fmt: skip
    episode = Episode.model_validate(old)
    assert (episode.prompt, episode.whole_answer, episode.render_fault) == (episode.messages, "Tea.", None)
    times = dict.fromkeys(("episode_at", "first_feedback_at", "newest_feedback_at"), "2026-01-01T00:00:00Z")
    label = Label.model_validate({"episode_id": "e", "policy": "p", "outcome": "completed", "messages": old["messages"], "answer": "Tea."} | times)
    assert (label.prompt, label.whole_answer, label.render_fault, label.led_by) == (label.messages, "Tea.", None, ())


@pytest.mark.parametrize(("fields", "fault"), [
    ({"api": "completion"}, "completion"),
    ({"unrenderable": "own_template"}, "own_template"),
    ({"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]}, "media"),
    ({"tools": [TOOL], "chat_template_kwargs": {"enable_thinking": False}}, None),
])  # fmt: skip
def test_an_episode_says_why_its_prompt_cannot_be_rendered_again(fields: dict[str, Any], fault: str | None) -> None:
    given = {
        "episode_id": "e",
        "messages": [{"role": "user", "content": "tea?"}],
        "started_at": "2026-01-01T00:00:00Z",
        "ended_at": "2026-01-01T00:00:00Z",
    }
    assert Episode.model_validate(given | fields).render_fault == fault
