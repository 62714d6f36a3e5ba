"""The actor's own endpoints as an OpenAPI 3.1 document (vLLM's own is at ``/openapi.json``). A test checks every real reply against it."""

from typing import Any

from pydantic.json_schema import models_json_schema

from streams.core.events import Episode, Feedback

OPENAPI_PATH = "/tidemill/openapi.json"
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {"type": "object", "required": ["message", "type"], "properties": {"message": {"type": "string"}, "type": {"type": "string"}}}
    },
}
_ABOUT = (
    "Answers come from vLLM's OpenAI API on the same port. Its responses carry `x-tidemill-episode` (one id, or several separated by commas for"
    " several choices), `x-tidemill-conversation`, `x-tidemill-adapter` and, where an adapter answered, `x-tidemill-adapter-sha256`. Requests may"
    " carry `x-tidemill-user`, `x-tidemill-conversation` and `x-tidemill-capture: off`."
)
_FEEDBACK = (
    "What a person says of an answer. The same `feedback_id` (or header `Idempotency-Key`) sent twice counts once. Words (`text`) may stand beside a"
    " thumb, a rating, a comparison or a signal: they are kept as a comment of their own, `FEEDBACK_ID-words`."
)
_KEY_REFUSALS = {401: "No such key.", 403: "The key's scopes do not reach here.", 429: "More requests than the key's rate; `retry-after` says when."}


def document() -> dict[str, Any]:
    """The document, for as long as this version runs."""
    _, models = models_json_schema([(Episode, "validation"), (Feedback, "validation")], ref_template="#/components/schemas/{model}")
    schemas = models["$defs"] | {"Error": _ERROR, "FeedbackGiven": _feedback_given(models["$defs"]["Feedback"])}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Tidemill's doors on an actor",
            "version": "1",
            "description": _ABOUT,
        },
        "paths": {
            "/v1/feedback": {"post": _operation(
                _FEEDBACK, "feedback",
                {202: ("Taken; it goes to the log at once or when Kafka is back. `hint`: this replica does not know the episode.", _TAKEN)},
                {400: "It cannot be used, and why.", 404: "No such episode of this tenant, or no answer in that conversation on this replica.",
                 403: "A page of another origin sent it (actor.allowed_origins), or the key's scopes do not reach here.",
                 409: "This feedback_id was used for something else.", 413: "Larger than actor.max_feedback_bytes.",
                 415: "Not sent as application/json.", 503: "The outbox is full."},
                requestBody={"required": True, "content": _json({"$ref": "#/components/schemas/FeedbackGiven"})},
            )},
            "/v1/episodes/{episode_id}": {"get": _operation(
                "A recent episode of this replica and of the caller's tenant, as it is kept: redacted.", "feedback",
                {200: ("The episode.", {"$ref": "#/components/schemas/Episode"})}, {404: "Not on this replica, too long ago, or of another tenant."},
                parameters=[{"name": "episode_id", "in": "path", "required": True, "schema": {"type": "string"}}],
            )},
            "/healthz": {"get": _operation("Whether the engine and the adapter loader make progress.", None,
                                           {200: ("They do.", _ALIVE), 503: ("One is dead or hangs: restart it.", _ALIVE)}, {})},
            "/readyz": {"get": _operation("Whether this replica should get traffic.", None, {200: ("Yes.", _READY), 503: ("Not yet.", _READY)}, {})},
            "/metrics": {"get": _operation("Prometheus' text format.", "operate", {200: ("The metrics.", None)}, {}, media_type="text/plain")},
            "/chat": {"get": _operation("A page to talk to the policy.", None, {200: ("The page.", None)}, {}, media_type="text/html")},
            OPENAPI_PATH: {"get": _operation("This document.", None, {200: ("OpenAPI 3.1.", {"type": "object"})}, {})},
        },
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": "Where actor.keys_file is set: `tidemill keys add`."}},
        },
    }  # fmt: skip


IDS = ("feedback_id", "episode_id", "over", "retracts")
NAMES = ("user_id", "conversation_id")
"""Ids may be sent as numbers: they are read as their digits."""


def _feedback_given(feedback: dict[str, Any]) -> dict[str, Any]:
    """What may be sent: the event, with what the door fills in left out, or the conversation in place of its episode."""
    conversation = {"type": "string", "description": "Means the last answer of this conversation on this replica."}
    alternatives = [{"required": ["episode_id"]}, {"required": ["conversation_id"]}]
    properties = feedback["properties"] | {"conversation_id": conversation}
    properties |= {name: {"anyOf": [properties[name], {"type": "number" if name in NAMES else "integer"}]} for name in (*IDS, *NAMES)}
    return {
        "type": "object",
        "properties": properties,
        "anyOf": alternatives,
        "additionalProperties": False,
    }


def _operation(summary: str, scope: str | None, replies: dict[int, tuple[str, Any]], refusals: dict[int, str], media_type: str = "application/json",
               **more: Any) -> dict[str, Any]:  # fmt: skip
    refused = (_KEY_REFUSALS if scope else {}) | refusals
    responses = {
        str(status): {"description": told, "content": {media_type: {"schema": schema} if schema else {}}}
        for status, (told, schema) in replies.items()
    }
    responses |= {
        str(status): {"description": told, "content": _json({"$ref": "#/components/schemas/Error"})} for status, told in sorted(refused.items())
    }
    return {"summary": summary, "responses": responses, "security": [{}, {"key": [scope]}] if scope else [], **more}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _object(**properties: str) -> dict[str, Any]:
    return {"type": "object", "required": list(properties), "properties": {name: {"type": kind} for name, kind in properties.items()}}


_TAKEN = _object(feedback_id="string", episode_id="string")
_TAKEN["properties"]["hint"] = {"type": "string"}
_RUN = {"type": "string", "description": "Names the run that this replica belongs to, where it has a name."}
_ALIVE = {
    "type": "object",
    "required": ["status", "hanging"],
    "properties": {
        "status": {"enum": ["alive", "hanging"]},
        "hanging": {"type": "array", "items": {"enum": ["engine", "adapters"]}},
        "run_id": _RUN,
    },
}
_READY = {
    "type": "object",
    "required": ["status", "missing"],
    "properties": {
        "status": {"enum": ["ready", "waiting"]},
        "missing": {"type": "array", "items": {"enum": ["stopping", "engine", "adapters"]}},
        "run_id": _RUN,
    },
}
