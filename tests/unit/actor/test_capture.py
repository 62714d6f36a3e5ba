"""What passes by unharmed and what is kept of it, with a server and an engine of a few lines."""

import json
from hashlib import sha256

import pytest
from starlette.types import Receive, Scope, Send

from actor.adapters.request_routing import Route, draw
from streams.core.events import Episode
from tests.support.captured import CHAT, Script, World, breaking, left_alone, refusing, streaming, streaming_late, whole


async def test_the_response_is_passed_on_byte_for_byte_with_headers_before_it() -> None:
    world = World(whole)
    start, body = await world.post(CHAT)
    assert body == {"type": "http.response.body", "body": b'{"answer": "Ahoy"}'}
    (episode,) = world.spool.episodes
    assert dict(start["headers"]) == {
        b"content-type": b"application/json",
        b"x-tidemill-episode": episode.episode_id.encode(),
        b"x-tidemill-conversation": (episode.conversation_id or "").encode(),
        b"x-tidemill-adapter": b"base",
    }


@pytest.mark.parametrize("script", [whole, streaming])
async def test_the_engines_tokens_and_logprobs_are_kept_whether_streamed_or_not(script: Script) -> None:
    world = World(script)
    await world.post(CHAT)
    (episode,) = world.spool.episodes
    assert (episode.prompt_ids, episode.output_ids, episode.output_logprobs) == ((1, 2, 3), (5, 6, 7), (-0.5, -0.6, -0.7))
    assert (episode.answer, episode.outcome, episode.user_id) == ("Ahoy", "completed", "ann")
    assert world.engine.asked_logprobs == [0]


async def test_the_live_adapter_answers_for_the_policy_and_the_episode_says_so() -> None:
    world = World(whole)
    world.router.add("default@7", "b" * 64)
    world.router.route = Route("default@7")
    start, _ = await world.post(CHAT)
    assert json.loads(world.bodies[0])["model"] == "default@7"
    assert dict(start["headers"])[b"x-tidemill-adapter-sha256"] == b"b" * 64
    assert (world.spool.episodes[0].adapter, world.spool.episodes[0].adapter_sha256) == ("default@7", "b" * 64)
    assert world.router.idle() == []


async def test_an_answer_whose_head_is_sent_before_the_engine_is_asked_is_named_all_the_same() -> None:
    world = World(streaming_late)
    world.router.add("default@7", "b" * 64)
    world.router.route = Route("default@7")
    start, *_ = await world.post({"model": "default", "input": "hi"}, "/v1/responses")
    (episode,) = world.spool.episodes
    assert dict(start["headers"])[b"x-tidemill-episode"].decode() == episode.episode_id
    assert (dict(start["headers"])[b"x-tidemill-adapter"], episode.adapter) == (b"default@7", "default@7")
    assert json.loads(world.bodies[0])["request_id"] == f"resp_{episode.episode_id}"


async def test_a_conversation_stays_with_the_canary_and_the_header_names_it() -> None:
    world = World(whole)
    for name in ("default@6", "default@7"):
        world.router.add(name, "b" * 64)
    world.router.route = Route("default@6", "default@7", canary_share=0.5)
    told = [dict((await world.post(CHAT, conversation=f"c-{n // 3}"))[0]["headers"])[b"x-tidemill-adapter"] for n in range(60)]
    assert set(told) == {b"default@6", b"default@7"}
    assert all(len(set(told[n : n + 3])) == 1 for n in range(0, 60, 3))


async def test_a_conversation_that_nobody_named_stays_with_the_canary_too() -> None:
    world = World(whole)
    for name in ("default@6", "default@7"):
        world.router.add(name, "b" * 64)
    world.router.route = Route("default@6", "default@7", canary_share=0.5)
    turns = [[{"role": "user", "content": f"hi {n}"}] for n in range(40)]
    for said in turns:
        await world.post({"messages": said})
    for said in turns:
        await world.post({"messages": [*said, {"role": "assistant", "content": "Ahoy"}, {"role": "user", "content": "so"}]})
    adapters = [episode.adapter for episode in world.spool.episodes]
    assert set(adapters) == {"default@6", "default@7"}
    assert adapters[:40] == adapters[40:]


async def test_who_declines_capture_is_answered_all_the_same_and_leaves_no_episode() -> None:
    world = World(whole)
    start, body = await world.post(CHAT, capture="off")
    assert (start["status"], body["body"]) == (200, b'{"answer": "Ahoy"}')
    assert dict(start["headers"])[b"x-tidemill-adapter"] == b"base"
    assert b"x-tidemill-episode" not in dict(start["headers"])
    assert world.spool.episodes == []
    assert world.metrics.value("tidemill_capture_skipped_total", reason="declined") == 1


@pytest.mark.parametrize("said", [
    (b"off", b"on"), (b"on", b"off"), (b"on, off",), (b"OFF ",), (b"false",), (b"0",), (b"no",), (b'"off"',),
])  # fmt: skip
async def test_who_declines_once_has_declined_however_it_is_written_and_whatever_a_proxy_adds(said: tuple[bytes, ...]) -> None:
    world = World(whole)
    await world.post(CHAT, raw_headers=tuple((b"x-tidemill-capture", each) for each in said))
    assert world.spool.episodes == []
    assert world.metrics.value("tidemill_capture_skipped_total", reason="declined") == 1


@pytest.mark.parametrize("script", [whole, streaming, streaming_late])
@pytest.mark.parametrize("depth", [149, 160, 220, 400])
async def test_what_is_nested_too_deeply_is_answered_and_counted_and_named_by_no_header(script: Script, depth: int) -> None:
    """Events cannot be written at 255 levels, nor read at 200."""
    world = World(script, changes={"max_request_bytes": 10_000})
    deep = b'{"a":' * depth + b"1" + b"}" * depth
    raw = json.dumps(CHAT)[:-1].encode() + b', "tools": [{"type": "function", "function": {"name": "f", "parameters": ' + deep + b"}}]}"
    start, *_ = await world.post(raw)
    kept = len(world.spool.episodes)
    assert (start["status"], world.metrics.value("tidemill_capture_skipped_total", reason="invalid")) == (200, 1 - kept)
    assert (b"x-tidemill-episode" in dict(start["headers"])) == (kept == 1)
    assert world.metrics.value("tidemill_episodes_captured_total", outcome="completed") == kept
    for episode in world.spool.episodes:
        assert Episode.decode(episode.encode()) == episode


async def test_numbers_that_json_cannot_hold_leave_json() -> None:
    world = World(whole)
    await world.post(json.dumps(CHAT)[:-1].encode() + b', "tools": [{"type": "function", "maximum": NaN, "top": 1e999, "big": ' + b"9" * 400 + b"}]}")
    (episode,) = world.spool.episodes
    assert json.loads(episode.encode(), parse_constant=lambda name: pytest.fail(name))["tools"][0]["maximum"] is None
    assert Episode.decode(episode.encode()).tools[0]["big"] == int("9" * 400)


@pytest.mark.parametrize("asked", [{}, {"priority": -5}])
async def test_a_learners_rollout_comes_after_people_and_is_no_episode(asked: dict[str, int]) -> None:
    world = World(whole)
    world.router.add("default@7", "b" * 64)
    start, _ = await world.post({"model": "default@7", "prompt": [1, 2, 3], **asked}, "/v1/completions", rollout="12")
    assert json.loads(world.bodies[0])["priority"] == 1
    assert dict(start["headers"])[b"x-tidemill-adapter"] == b"default@7"
    assert dict(start["headers"])[b"x-tidemill-adapter-sha256"] == b"b" * 64
    assert world.spool.episodes == []
    assert world.metrics.value("tidemill_capture_skipped_total", reason="rollout") == 1


async def test_a_person_cannot_push_ahead_of_others() -> None:
    world = World(whole)
    await world.post({**CHAT, "priority": -5})
    assert "priority" not in json.loads(world.bodies[0])


async def test_what_the_engine_does_for_people_and_for_rollouts_is_counted_apart() -> None:
    world = World(whole)
    await world.post(CHAT)
    for _ in range(2):
        await world.post({"model": "base", "prompt": [1, 2, 3]}, "/v1/completions", rollout="0")
    counted = {
        (work, kind): world.metrics.value("tidemill_engine_tokens_total", work=work, kind=kind)
        for work in ("people", "rollouts")
        for kind in ("prompt", "output")
    }
    assert counted == {("people", "prompt"): 3, ("people", "output"): 3, ("rollouts", "prompt"): 6, ("rollouts", "output"): 6}


async def test_the_content_length_is_that_of_the_rewritten_body() -> None:
    lengths: list[int] = []

    async def measuring(world: World, scope: Scope, receive: Receive, send: Send) -> None:
        lengths.append(int(dict(scope["headers"])[b"content-length"]))
        await refusing(world, scope, receive, send)

    world = World(measuring)
    await world.post(CHAT)
    assert lengths == [len(world.bodies[0])]


async def test_a_client_that_leaves_makes_a_cancelled_episode_of_what_it_got() -> None:
    world = World(left_alone)
    await world.post(CHAT, leaves=True)
    (episode,) = world.spool.episodes
    assert (episode.outcome, episode.output_ids, episode.answer) == ("cancelled", (5, 6), "Ah")


async def test_a_server_that_fails_makes_a_failed_episode_and_the_error_goes_on() -> None:
    world = World(breaking)
    with pytest.raises(RuntimeError):
        await world.post(CHAT)
    (episode,) = world.spool.episodes
    assert (episode.outcome, episode.error) == ("failed", "RuntimeError")


async def test_a_refused_request_is_counted_and_is_no_episode() -> None:
    world = World(refusing)
    start, _ = await world.post(CHAT)
    assert start["headers"] == []
    assert world.spool.episodes == []
    assert world.metrics.value("tidemill_capture_skipped_total", reason="refused") == 1


@pytest.mark.parametrize("body", [b"{", b"[1]", b"\xff"])
async def test_what_is_no_json_object_is_the_servers_to_refuse(body: bytes) -> None:
    world = World(refusing)
    await world.post(body)
    assert world.bodies == [body]


async def test_a_request_that_is_too_large_never_reaches_the_server() -> None:
    world = World(whole)
    start, _ = await world.post(CHAT | {"padding": "x" * 3000})
    assert start["status"] == 413
    assert world.bodies == []


async def test_a_user_name_that_fits_no_event_does_not_cost_the_episode() -> None:
    world = World(whole)
    await world.post(CHAT | {"user": "a\n" * 300})
    assert world.spool.episodes[0].user_id == f"sha256:{sha256(b'a' * 300).hexdigest()}"


async def test_requests_in_flight_are_counted_until_they_end() -> None:
    seen: list[bool] = []

    async def looking(world: World, scope: Scope, receive: Receive, send: Send) -> None:
        seen.append("default@1" in world.router.idle())
        await refusing(world, scope, receive, send)

    world = World(looking)
    for version in (1, 2, 3):
        world.router.add(f"default@{version}", "c" * 64)
        world.router.route = Route(f"default@{version}", kept=(f"default@{version - 1}",))
    await world.post(CHAT | {"model": "default@1"})
    assert seen == [False]
    assert world.router.idle() == ["default@1"]


async def test_what_a_person_says_next_is_feedback_on_the_answer_before_and_counts_once() -> None:
    world = World(whole)
    await world.post(CHAT)
    said = [*CHAT["messages"], {"role": "assistant", "content": "Ahoy"}, {"role": "user", "content": "No, in French."}]
    for _ in range(2):
        await world.post(CHAT | {"messages": said})
    first, second, again = world.spool.episodes
    assert (second.conversation_id, second.turn, second.replies_to) == (first.conversation_id, 1, first.episode_id)
    assert again.replies_to == first.episode_id
    assert {(each.kind, each.text, each.user_id, each.episode_id) for each in world.spool.feedback} == {
        ("reply", "No, in French.", "ann", first.episode_id)
    }
    assert len({each.feedback_id for each in world.spool.feedback}) == 1


@pytest.mark.parametrize("quietly", [{"capture": "off"}, {}])
async def test_no_reply_is_kept_where_capture_is_declined_or_the_setting_says_so(quietly: dict[str, str]) -> None:
    world = World(whole, changes={"replies_as_feedback": bool(quietly)})
    await world.post(CHAT)
    await world.post(CHAT | {"messages": [*CHAT["messages"], {"role": "assistant", "content": "Ahoy"}, {"role": "user", "content": "so"}]}, **quietly)
    assert world.spool.feedback == []
    assert len(world.spool.episodes) == (1 if quietly else 2)


async def test_a_version_that_was_published_is_loaded_when_it_is_asked_for_by_either_name() -> None:
    world = World(whole, published={"default@7", "default@8"})
    for model in ("default@7", "tinker://default/sampler_weights/8"):
        start, _ = await world.post(CHAT | {"model": model})
        assert start["status"] == 200
    assert [json.loads(body)["model"] for body in world.bodies] == ["default@7", "default@8"]
    assert world.router.idle() == ["default@7", "default@8"]  # answered: they may go


async def test_a_version_that_is_not_loaded_is_refused_with_those_that_are() -> None:
    world = World(whole)
    start, body = await world.post(CHAT | {"model": "default@9"})
    assert start["status"] == 404
    assert "default@9 is not loaded on this replica; loaded: base" in json.loads(body["body"])["error"]["message"]
    assert (world.bodies, world.spool.episodes) == ([], [])
    assert world.metrics.value("tidemill_capture_skipped_total", reason="refused") == 1


async def test_a_gateways_request_id_does_not_hide_the_episode_and_the_same_one_twice_is_two_answers() -> None:
    asked: list[bytes] = []

    async def noting(world: World, scope: Scope, receive: Receive, send: Send) -> None:
        asked.extend(value for name, value in scope["headers"] if name.lower() == b"x-request-id")
        await whole(world, scope, receive, send)

    world = World(noting)
    for _ in range(2):
        await world.post(CHAT, raw_headers=((b"X-Request-Id", b"7f3c-edge-1"),))
    assert asked == [episode.episode_id.encode() for episode in world.spool.episodes]
    assert len(set(asked)) == 2


async def test_a_request_id_in_a_responses_body_does_not_hide_the_episode() -> None:
    world = World(streaming_late)
    await world.post({"model": "default", "input": "hi", "request_id": "resp_mine"}, "/v1/responses")
    assert json.loads(world.bodies[0])["request_id"] == f"resp_{world.spool.episodes[0].episode_id}"


@pytest.mark.parametrize(
    ("prompt", "redact", "kept"), [([5, 6], ("cards",), ()), ([[5, 6]], ("cards",), ()), ([5, 6], (), (1, 2, 3)), ("hi", ("cards",), (1, 2, 3))]
)
async def test_a_prompt_of_token_ids_which_no_rule_can_read_is_not_kept_where_redaction_is_on(
    prompt: object, redact: tuple[str, ...], kept: object
) -> None:
    world = World(whole, changes={"redact": redact})
    await world.post({"model": "default", "prompt": prompt}, "/v1/completions")
    (episode,) = world.spool.episodes
    assert (episode.prompt_ids, episode.output_ids) == (kept, (5, 6, 7))


@pytest.mark.parametrize(
    "body", [{"user": "u-14"}, {"safety_identifier": "u-14"}, {"metadata": {"user_id": "u-14"}}, {"user": "", "safety_identifier": "u-14"}]
)
async def test_who_asks_is_found_by_every_name_that_clients_have_for_it(body: dict[str, object]) -> None:
    world = World(whole)
    await world.post({name: value for name, value in CHAT.items() if name != "user"} | body)
    assert world.spool.episodes[0].user_id == "u-14"


async def test_names_in_headers_are_read_as_utf_8_and_are_those_of_the_body() -> None:
    world = World(whole)
    headers = ((b"x-tidemill-user", "jose\u0301".encode()), (b"x-tidemill-conversation", "gespr\u00e4ch-1".encode()))
    start, _ = await world.post(CHAT, raw_headers=headers)
    await world.post(CHAT | {"user": "jos\u00e9"})
    first, second = world.spool.episodes
    assert first.user_id == second.user_id == "jos\u00e9"
    assert first.conversation_id == "gespr\u00e4ch-1"
    assert dict(start["headers"])[b"x-tidemill-conversation"] == "gespr\u00e4ch-1".encode()


@pytest.mark.parametrize(("fields", "episodes"), [
    ({"n": "2"}, 2), ({"n": 2.0}, 2), ({"n": True}, 1), ({"n": None}, 1), ({"use_beam_search": "false"}, 1), ({"use_beam_search": "true"}, 0),
])  # fmt: skip
async def test_numbers_and_truth_are_read_as_the_engine_reads_them(fields: dict[str, object], episodes: int) -> None:
    world = World(whole)
    start, _ = await world.post(CHAT | fields | {"temperature": "0.5", "max_tokens": "7"})
    named = dict(start["headers"]).get(b"x-tidemill-episode", b"").decode()
    assert [each for each in named.split(",") if each] == [each.episode_id for each in world.spool.episodes]
    assert len(world.spool.episodes) == episodes
    assert all((each.sampling["temperature"], each.sampling["max_tokens"]) == (0.5, 7) for each in world.spool.episodes)


@pytest.mark.parametrize("script", [whole, streaming, streaming_late])
async def test_what_finds_no_room_is_named_by_no_header_counter_or_later_turn(script: Script) -> None:
    world = World(script)
    world.spool.has_room = False
    start, *_ = await world.post(CHAT)
    assert not {b"x-tidemill-episode", b"x-tidemill-conversation"} & set(dict(start["headers"]))
    assert world.metrics.value("tidemill_episodes_captured_total", outcome="completed") == 0
    assert world.metrics.value("tidemill_capture_skipped_total", reason="outbox_full") == 1
    world.spool.has_room = True
    await world.post({"messages": [*CHAT["messages"], {"role": "assistant", "content": "Ahoy"}, {"role": "user", "content": "so"}]})
    (episode,) = world.spool.episodes
    assert episode.replies_to is None
    assert world.spool.feedback == []


async def test_beam_search_is_named_by_no_header_even_where_the_head_comes_first() -> None:
    world = World(streaming_late)
    start, *_ = await world.post(CHAT | {"use_beam_search": "1"})
    assert b"x-tidemill-episode" not in dict(start["headers"])
    assert world.spool.episodes == []


async def test_an_answer_that_was_named_and_never_begun_is_kept_as_failed() -> None:
    async def head_alone(world: World, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        await send({"type": "http.response.body", "body": b'data: {"error": {"message": "no"}}\n\n'})

    world = World(head_alone)
    start, _ = await world.post(CHAT)
    (episode,) = world.spool.episodes
    assert (dict(start["headers"])[b"x-tidemill-episode"].decode(), episode.outcome) == (episode.episode_id, "failed")


@pytest.mark.parametrize(("scopes", "steers"), [(None, True), (("talk", "assign"), True), (("operate",), True), (("talk",), False)])
async def test_a_client_that_may_not_choose_reaches_no_side_of_a_canary_by_the_names_that_it_sends(
    scopes: tuple[str, ...] | None, steers: bool
) -> None:
    world = World(whole)
    for name in ("default@6", "default@7"):
        world.router.add(name, "b" * 64)
    world.router.route = Route("default@6", "default@7", canary_share=0.5)
    chosen = [name for name in map(str, range(150)) if draw("default@7", f"conversation {name}") < 0.5]
    for name in chosen:
        await world.post(CHAT, conversation=name, scopes=scopes)
    reached = [episode.adapter for episode in world.spool.episodes].count("default@7") / len(chosen)
    assert (reached == 1.0) is steers
    assert steers or 0.25 < reached < 0.75  # of about 75 fair draws
    first = {episode.conversation_id: episode.adapter for episode in world.spool.episodes}
    for name in chosen:
        await world.post({"messages": [{"role": "user", "content": f"and {name}?"}], "user": "bob"}, conversation=name, scopes=scopes)
    assert [episode.adapter for episode in world.spool.episodes[len(chosen) :]] == [first[name] for name in chosen]  # and stays where it was drawn


@pytest.mark.parametrize(("path", "more", "kwargs", "fault"), [
    ("/v1/chat/completions", {"chat_template_kwargs": {"enable_thinking": False}}, {"enable_thinking": False}, None),
    ("/v1/chat/completions", {"reasoning_effort": "none"}, {"reasoning_effort": "none", "enable_thinking": False}, None),
    ("/v1/chat/completions", {"reasoning_effort": "high", "chat_template_kwargs": {"enable_thinking": False}},
     {"enable_thinking": False, "reasoning_effort": "high"}, None),
    ("/v1/chat/completions", {"chat_template": "{{ messages }}"}, {}, "own_template"),
    ("/v1/chat/completions", {"continue_final_message": True, "add_generation_prompt": False}, {}, "continued"),
    ("/v1/chat/completions", {"truncate_prompt_tokens": 8}, {}, "truncated"),
    ("/v1/responses", {"input": "hi", "reasoning": {"effort": "low"}}, {"reasoning_effort": "low", "enable_thinking": True}, None),
    ("/v1/completions", {"prompt": "hi", "chat_template_kwargs": {"a": 1}}, {}, "completion"),
])  # fmt: skip
async def test_what_renders_the_prompt_again_is_kept(path: str, more: dict[str, object], kwargs: dict[str, object], fault: str | None) -> None:
    """Thinking follows from the effort as in vLLM's build_chat_params."""
    world = World(whole)
    await world.post(CHAT | more, path)
    (episode,) = world.spool.episodes
    assert (episode.chat_template_kwargs, episode.render_fault) == (kwargs, fault)
