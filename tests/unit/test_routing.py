"""Which adapter answers whom."""

from actor.routing import Router


def test_the_policy_is_the_base_until_an_adapter_is_live() -> None:
    router = Router("default")
    assert router.resolve("default") == router.resolve(None) == "base"
    router.add("default@3", "a" * 64)
    assert router.resolve("default") == "base"
    router.go_live("default@3")
    assert router.resolve("default") == "default@3"
    assert router.sha256("default@3") == "a" * 64


def test_versions_are_asked_for_by_name_and_what_is_not_ours_is_left_alone() -> None:
    router = Router("default")
    assert router.resolve("default@0") == "base"
    assert router.resolve("default@7") == "default@7"
    assert router.resolve("gpt-9") == "gpt-9"
    assert router.resolve(7) == 7


def test_an_old_version_leaves_only_when_no_request_is_in_flight() -> None:
    router = Router("default")
    for version in (1, 2, 3):
        router.add(f"default@{version}", "a" * 64)
        router.go_live(f"default@{version}")
    router.begin("default@1")
    assert router.idle() == []
    router.end("default@1")
    assert router.idle() == ["default@1"]  # 3 is live, 2 is the one to go back to
    router.forget("default@1")
    assert router.idle() == []
    assert router.sha256("default@1") is None
