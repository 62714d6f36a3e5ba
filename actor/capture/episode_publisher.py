"""Publishes captured episodes and feedback: redacts them, stores media as artifacts, and hands them to the outbox. Remembers recent episodes.

Rules take microseconds and are applied at once. What takes longer (media to the artifact store, Presidio's models) is done by one thread
beside the server's loop, so that no answer waits for it; more waiting than it can bear is dropped and counted.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock

import structlog

from actor.capture.media_store import MediaStore, has_media
from actor.redaction.redaction import Redactor, Rules, redacted_episode, redacted_feedback
from actor.settings import ActorSettings
from streams.core.errors import InvalidEvent
from streams.core.events import Episode, Erasure, Feedback
from streams.core.metrics import Metrics
from streams.core.topics import EPISODES, FEEDBACK
from streams.core.traces import Headers, Traces
from streams.erasure.forgotten_people import Forgotten
from streams.outbox.outbox import Outbox

MOST_WAITING = 1000
"""Most episodes and feedback that may wait for the slow thread."""
log = structlog.get_logger()


class EpisodePublisher:
    """Publishes finished episodes and feedback. They leave the process in no other way."""

    def __init__(self, outbox: Outbox, metrics: Metrics, settings: ActorSettings, redactor: Redactor, media: MediaStore | None = None,
                 traces: Traces | None = None) -> None:  # fmt: skip
        """``media``: None when messages cannot contain images or sounds."""
        self._outbox, self._metrics, self._remembered = outbox, metrics, settings.recent_episodes
        self._redactor, self._media, self._traces = redactor, media, traces or Traces()
        self._is_quick = isinstance(redactor, Rules)
        self._slow, self._waiting = ThreadPoolExecutor(1, thread_name_prefix="episodes"), 0
        self._recent: OrderedDict[str, Episode] = OrderedDict()
        self._lock = Lock()

    @property
    def has_room(self) -> bool:
        """False while new episodes would be dropped: the outbox or the slow thread is full."""
        return self._outbox.has_room and self._waiting < MOST_WAITING

    def publish(self, episode: Episode, asked_in: Headers = ()) -> "Future[bool]":
        """Publish a finished answer. ``asked_in``: the client's trace context. The future's result is False when there was no room."""
        with_media = self._media is not None and has_media(episode)
        return self._do(self._is_quick and not with_media, lambda: self._put(episode, with_media, asked_in))

    def publish_feedback(self, feedback: Feedback) -> "Future[bool]":
        """Publish feedback. The future's result is False when the outbox had no room."""
        return self._do(self._is_quick, lambda: self._put_feedback(feedback))

    def skip(self, reason: str) -> None:
        """Count an answer that does not become an episode."""
        self._metrics.add("tidemill_capture_skipped_total", reason=reason)

    def count_tokens(self, work: str, prompt: int, output: int) -> None:
        """Count what the engine read and wrote for ``people`` or for a learner's ``rollouts``."""
        self._metrics.add("tidemill_engine_tokens_total", prompt, work=work, kind="prompt")
        self._metrics.add("tidemill_engine_tokens_total", output, work=work, kind="output")

    def find(self, episode_id: str) -> Episode | None:
        """A recent episode by its id."""
        return self._recent.get(episode_id)

    def erase_person(self, erasure: Erasure) -> int:
        """Drop recent episodes of an erased person. Returns their number. May be called from any thread."""
        forgotten = Forgotten()
        forgotten.add(erasure, 0)
        with self._lock:
            gone = [e.episode_id for e in self._recent.values() if forgotten.covers_by_event_time(e.user_id, e.ended_at)]
            for episode_id in gone:
                del self._recent[episode_id]
        return len(gone)

    def close(self) -> None:
        """Publish what is still waiting, then stop."""
        self._slow.shutdown()

    def _do(self, at_once: bool, work: Callable[[], bool]) -> "Future[bool]":
        done: Future[bool] = Future()
        if at_once:
            try:
                done.set_result(work())
            except Exception as error:  # noqa: BLE001 - the boundary to what anybody may send: an answer that was given must not fail now
                done.set_result(False)
                self._lost(error)
            return done
        if self._waiting >= MOST_WAITING:
            self.skip("keeper_busy")
            done.set_result(False)
            return done
        self._waiting += 1
        future = self._slow.submit(work)
        future.add_done_callback(self._done)
        return future

    def _done(self, future: "Future[bool]") -> None:
        self._waiting -= 1
        if (error := future.exception()) is not None:
            self._lost(error)

    def _lost(self, error: BaseException) -> None:
        """Count what could not be kept: ``invalid`` where it fits no event."""
        self.skip("invalid" if isinstance(error, InvalidEvent | RecursionError) else "keeper_failed")
        log.error("a captured episode or feedback was lost", error=f"{type(error).__name__}: {error}")

    def _put(self, episode: Episode, with_media: bool, asked_in: Headers) -> bool:
        if self._media is not None and with_media:
            episode = self._media.taken_out(episode)
        found: Counter[str] = Counter()
        episode = redacted_episode(episode, self._redactor, found)
        headers = self._traces.record_span("capture", episode.started_at, episode.ended_at, [asked_in], episode=episode.episode_id)
        if not self._outbox.put(EPISODES, episode, headers):  # before anything is said of it
            self.skip("outbox_full")
            return False
        self._count(found)
        self._metrics.add("tidemill_episodes_captured_total", outcome=episode.outcome.value)
        self._metrics.observe("tidemill_answer_seconds", max(0.0, (episode.ended_at - episode.started_at).total_seconds()))
        with self._lock:
            self._recent[episode.episode_id] = episode
            while len(self._recent) > self._remembered:
                self._recent.popitem(last=False)
        return True

    def _put_feedback(self, feedback: Feedback) -> bool:
        found: Counter[str] = Counter()
        if not self._outbox.put(FEEDBACK, redacted_feedback(feedback, self._redactor, found)):
            return False
        self._count(found)
        self._metrics.add("tidemill_feedback_received_total", kind=feedback.kind.value)
        return True

    def _count(self, found: Counter[str]) -> None:
        for kind, passages in found.items():
            self._metrics.add("tidemill_redactions_total", passages, kind=kind)
