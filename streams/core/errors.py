"""Every error Tidemill raises on purpose. Each answers the question "what now?".

TidemillError
├── ConfigError        the operator must change a setting, or install what is missing
├── InvalidEvent       this one record is bad: dead-letter it, keep the stream moving
├── BadArtifact        these bytes are not what their event promised: refuse them, keep what you have
├── StalePolicy        this one rollout is too old: count it, drop it
├── Refused            an operator asked for something impossible: say why, change nothing
├── AttestationFailed  this replica does not serve the adapter it should: keep it out of traffic
└── Unavailable        a dependency is down: back off, retry, stay not ready

Built-in errors are bugs and are never caught. A message gives the value, the limit and the setting's name.
"""


class TidemillError(Exception):
    """Base of all errors raised on purpose."""


class ConfigError(TidemillError):
    """The operator must change a setting, or install what is missing."""


class InvalidEvent(TidemillError):
    """One record is bad: dead-letter it, keep the stream moving.

    ``reason`` is a short, countable word (a label of ``tidemill_dead_letters_total``); the message has the details.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class BadArtifact(TidemillError):
    """Bytes are not what their event promised: refuse them, keep what you have."""


class StalePolicy(TidemillError):
    """One rollout is too old: count it, drop it."""


class Refused(TidemillError):
    """An operator asked for something impossible: say why, change nothing."""


class AttestationFailed(TidemillError):
    """A replica does not serve the adapter it should: keep it out of traffic."""


class Unavailable(TidemillError):
    """A dependency is down: back off, retry, stay not ready."""
