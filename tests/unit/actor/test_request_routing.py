"""Which adapter answers whom."""

import pytest

from actor.adapters.request_routing import Route, Router, draw
from actor.capture.client_request import ClientRequest


def test_the_policy_is_the_base_until_an_adapter_is_in_production() -> None:
    router = Router("default")
    assert router.resolve("default") == router.resolve(None) == "base"
    router.add("default@3", "a" * 64)
    assert router.resolve("default") == "base"
    router.route = Route("default@3")
    assert router.resolve("default") == "default@3"
    assert router.sha256("default@3") == "a" * 64


def test_versions_are_asked_for_by_name_and_what_is_not_ours_is_left_alone() -> None:
    router = Router("default")
    assert router.resolve("default@0") == "base"
    assert router.resolve("default@7") == "default@7"
    assert router.resolve("gpt-9") == "gpt-9"
    assert router.resolve(7) == 7


@pytest.mark.parametrize(("path", "name"), [
    ("tinker://default/sampler_weights/7", "default@7"),
    ("tinker://default/weights/000012", "default@12"),
    ("tinker://default/sampler_weights/0", "base"),
    ("tinker://other/sampler_weights/7", "tinker://other/sampler_weights/7"),
    ("tinker://default/sampler_weights/final", "tinker://default/sampler_weights/final"),
])  # fmt: skip
def test_a_tinker_path_names_a_version(path: str, name: str) -> None:
    assert Router("default").resolve(path) == name


def test_who_asks_for_a_version_that_is_not_loaded_is_told_which_are() -> None:
    router = Router("default")
    router.add("default@7", "a" * 64)
    assert router.why_not_loaded("default@8") == "default@8 is not loaded on this replica; loaded: default@7, base"
    assert router.why_not_loaded("default@candidate") == "no adapter of default is on trial"
    assert [router.why_not_loaded(name) for name in ("default@7", "base", "gpt-9", "gpt@8", 7, None)] == [None] * 6


def test_the_candidate_has_a_name_while_one_is_on_trial() -> None:
    router = Router("default", Route("default@3", "default@4"))
    assert router.resolve("default@candidate") == "default@4"
    assert router.resolve("default", "conversation c") == "default@3"
    assert Router("default").resolve("default@candidate") == "default@candidate"  # for vLLM to refuse


def test_a_conversation_stays_on_its_side_and_the_canary_gets_its_share() -> None:
    router = Router("default", Route("default@3", "default@4", canary_share=0.2))
    sides = {f"conversation {n}": router.resolve("default", f"conversation {n}") for n in range(5000)}
    assert all(router.resolve("default", name) == side for name, side in sides.items())
    assert set(sides.values()) == {"default@3", "default@4"}
    assert sum(side == "default@4" for side in sides.values()) / 5000 == pytest.approx(0.2, abs=0.02)
    assert router.resolve("default@3", "conversation 0") == "default@3"


def test_who_had_the_canary_keeps_it_when_it_is_promoted_and_some_are_held_back_on_what_answered_them_before() -> None:
    names = [f"conversation {n}" for n in range(5000)]
    router = Router("default", Route("default@3", "default@4", canary_share=0.1))
    canary = [name for name in names if router.resolve("default", name) == "default@4"]
    router.route = Route("default@4", production_share=0.9, before="default@3", kept=("default@3",))
    assert all(router.resolve("default", name) == "default@4" for name in canary)
    held_back = [name for name in names if router.resolve("default", name) == "default@3"]
    assert len(held_back) / 5000 == pytest.approx(0.1, abs=0.02)
    assert router.resolve("default") == "default@4"  # who is nobody's conversation cannot be sticky
    router.route = Route("default@4", production_share=0.9)
    assert {router.resolve("default", name) for name in held_back} == {"base"}


def test_the_next_canary_takes_its_share_of_production_and_of_what_is_held_back_alike() -> None:
    router = Router("default", Route("default@4", "default@5", canary_share=0.2, production_share=0.9, before="default@3", kept=("default@3",)))
    sides = [router.resolve("default", f"conversation {n}") for n in range(10_000)]
    assert [sides.count(f"default@{n}") / 10_000 for n in (3, 4, 5)] == pytest.approx([0.08, 0.72, 0.2], abs=0.02)


def test_a_larger_share_keeps_those_who_had_the_canary_and_another_trial_draws_anew() -> None:
    names = [f"conversation {n}" for n in range(2000)]
    small, large = ({n for n in names if draw("default@4", n) < share} for share in (0.1, 0.3))
    assert small < large
    other = {n for n in names if draw("default@5", n) < 0.1}
    assert len(small & other) / len(small) < 0.25


def test_a_canary_is_sticky_by_conversation_else_by_who_asks_and_how_it_began() -> None:
    def key(conversation: str | None, user: str | None, *said: str) -> str | None:
        messages = [{"role": "user" if n % 2 == 0 else "assistant", "content": text} for n, text in enumerate(said)]
        return ClientRequest("chat", {"messages": messages}, user, conversation).conversation_key

    assert key("c", "ann", "hi") == key("c", "bob", "hello", "yes?", "so")
    assert key(None, "ann", "hi") == key(None, "ann", "hi", "hello!", "more")
    assert len({key(None, "ann", "hi"), key(None, "bob", "hi"), key(None, "ann", "ho"), key("c", "ann", "hi")}) == 4
    assert key(None, None, "hi") is None  # each request for itself, unless the replica finds its conversation again


def test_spare_versions_stay_while_there_is_room_and_leave_least_recently_used_first_never_what_is_needed() -> None:
    router = Router("default", Route("default@1", "default@2", kept=("default@3",)), room=4)
    for version in (1, 2, 3, 4):
        router.add(f"default@{version}", "a" * 64)
    assert router.idle() == []
    router.add("default@5", "a" * 64)
    router.add("default@6", "a" * 64)
    router.begin("default@4")
    router.end("default@4")
    assert router.idle() == ["default@5", "default@6"]
    router.begin("default@6")
    assert router.idle() == ["default@5", "default@4"]
    router.route = Route("default@6", kept=("default@1",))  # no new need, less of the old
    router.end("default@6")
    assert router.idle() == ["default@2", "default@3"]


def test_an_old_version_leaves_only_when_it_is_not_routed_to_nor_kept_and_no_request_is_in_flight() -> None:
    router = Router("default", Route("default@3", "default@4", kept=("default@2",)))
    for version in (1, 2, 3, 4):
        router.add(f"default@{version}", "a" * 64)
    router.begin("default@1")
    assert router.idle() == []
    router.end("default@1")
    assert router.idle() == ["default@1"]
    router.remove("default@1")
    assert router.idle() == []
    assert router.sha256("default@1") is None
