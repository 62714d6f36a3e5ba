"""All settings of an actor (``actor.*``). Each topic's are in a ``*_settings.py`` beside the code that they steer."""

from actor.adapters.adapter_loader_settings import AdapterLoaderSettings
from actor.adapters.attestation_settings import AttestationSettings
from actor.capture.capture_settings import CaptureSettings
from actor.capture.media_settings import MediaSettings
from actor.doors.http_settings import HttpSettings
from actor.redaction.redaction_settings import RedactionSettings
from actor.vllm_settings import VllmSettings
from streams.outbox.outbox_settings import OutboxSettings


class ActorSettings(
    HttpSettings,
    VllmSettings,
    AdapterLoaderSettings,
    AttestationSettings,
    CaptureSettings,
    MediaSettings,
    RedactionSettings,
    OutboxSettings,
):
    """One replica: how it serves a policy, records answers, and proves what it serves."""
