"""In which order the ring starts and stops. ``infra/local/local_ring.py`` follows this order.

1. Side by side: Kafka starts and gets its topics, the base is made ready, the machine is measured, and vLLM reads the arguments that are for it.
2. The actor starts as soon as the base and the measurement are there. It does not wait for Kafka: loading the model takes longest.
3. The parts that store what people say start as soon as the topics are there too.
4. The parts that learn start when the actor is ready, so that they do not compete with it for the cores.

Stopping goes against the data flow. Kafka stops last.
"""

from collections.abc import Iterable

KAFKA, TOPICS, BASE, MACHINE, ARGUMENTS = "Apache Kafka", "topics", "the base", "this machine's measurement", "vLLM's arguments"
"""Names of the preparations, as the log shows them."""
ACTOR_NEEDS = frozenset({BASE, MACHINE, ARGUMENTS})
OTHERS_NEED = ACTOR_NEEDS | {TOPICS}
AFTER_ACTOR = ("reward", "learner", "promoter", "critic")
"""Parts that start when the actor is ready."""
AFTER_ACTOR_WAIT_S = 240.0
"""They wait at most this long for the actor: they can also learn from answers of actors on other machines."""
STOP_ORDER = (("otlp", "critic", "learner", "actor", "promoter"), ("reward",), ("streams",))
"""Groups of parts. The parts of a group stop at the same time."""


def beside_actor(parts: Iterable[str]) -> tuple[str, ...]:
    """Those of ``parts`` that start as soon as the topics are there."""
    return tuple(part for part in parts if part != "actor" and part not in AFTER_ACTOR)


def after_actor(parts: Iterable[str]) -> tuple[str, ...]:
    """Those of ``parts`` that wait for the actor."""
    return tuple(part for part in parts if part in AFTER_ACTOR)
