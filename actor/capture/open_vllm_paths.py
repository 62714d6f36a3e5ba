"""Which paths of vLLM's server are open: every path that gives answers is either captured or closed, and an unknown path is closed.

vLLM adds APIs with each version. One that is neither routed nor captured would answer with the base, past every adapter, canary and erasure.
A test holds these tables to the routes of the installed vLLM.
"""

from starlette.types import ASGIApp, Receive, Scope, Send

from actor.asgi_replies import reply
from actor.capture.client_request import APIS

TELLING = frozenset({
    "/docs", "/docs/oauth2-redirect", "/health", "/load", "/metrics", "/openapi.json", "/ping", "/redoc", "/v1/models", "/version",
    "/tokenize", "/detokenize",
})  # fmt: skip
"""Open paths that give no answer of the model: they tell of the server, or turn text into tokens and back."""
CLOSED = frozenset({
    "/generative_scoring", "/inference/v1/abort_requests", "/inference/v1/generate", "/invocations", "/is_scaling_elastic_ep", "/kv_event_sources",
    "/scale_elastic_ep", "/v1/audio/transcriptions", "/v1/audio/translations", "/v1/chat/completions/batch", "/v1/chat/completions/derender",
    "/v1/chat/completions/render", "/v1/completions/derender", "/v1/completions/render", "/v1/messages", "/v1/messages/count_tokens",
    "/v1/messages/render", "/v1/realtime", "/v1/responses/render", "/v1/responses/{response_id}", "/v1/responses/{response_id}/cancel",
    "/v1/systemone",
})  # fmt: skip
"""vLLM's other routes, which are closed. Any path that stands in no table is closed too."""


def is_open(path: str) -> bool:
    """Whether requests to this path reach vLLM. A slash at the end changes nothing: vLLM redirects it."""
    path = path.rstrip("/")
    return path in APIS or path in TELLING


class ServerPaths:
    """The ASGI layer around vLLM's own: lets open paths through and answers all others with OpenAI's JSON error."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": "closed on this server"})
        elif scope["type"] != "http" or is_open(scope["path"]) or scope["method"] == "OPTIONS":  # what a browser asks beforehand is no answer
            await self._app(scope, receive, send)
        else:
            told = f"{scope['path'][:200]} is closed on this server: its answers would be neither routed nor captured. Answers: {', '.join(APIS)}"
            await reply(send, 404, {"error": {"message": told, "type": "NotFoundError", "param": None, "code": 404}})
