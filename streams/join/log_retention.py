"""How long the log can hold a record about an episode, and what is wrong when feedback may come for longer than that. Pure."""

from collections.abc import Mapping
from datetime import timedelta

import structlog

from streams.core.topics import EPISODES, FEEDBACK
from streams.join.join_settings import JoinSettings

SEGMENTS = timedelta(days=2)
"""Records outlive their retention by the age of their segment and the cleaner's pace."""
FOR_EVER = timedelta(days=36_500)
log = structlog.get_logger()


def remembered(settings: JoinSettings, kept: Mapping[str, timedelta | None]) -> timedelta:
    """How long the log can hold a record about an episode, from the topics' retentions. Warns where the window is longer than episodes are kept."""
    if window_problem := window_outlives(settings, kept):
        log.warning(window_problem)
    spans = [span for topic in (EPISODES, FEEDBACK) if (span := kept[topic.name]) is not None]
    return max(spans) + SEGMENTS if len(spans) == 2 else FOR_EVER


def window_outlives(settings: JoinSettings, kept: Mapping[str, timedelta | None]) -> str | None:
    """What is wrong when feedback may come for longer than its episode is on the log."""
    for topic in (EPISODES, FEEDBACK):
        if (span := kept[topic.name]) is not None and settings.window > span:
            days = span / timedelta(days=1)
            return (
                f"join.window_days = {settings.window_days:g} is longer than {topic.name} is kept: retention.ms is {days:g} days. A join that has to"
                " start with an empty disk then no longer finds episodes that may still be judged: set the one lower or the other higher"
            )
    return None
