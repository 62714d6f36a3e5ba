"""The actor's OpenAPI document is true: whatever Schemathesis makes of it, right or wrong, is answered as it says."""

from typing import Any

import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.types import Receive, Scope, Send

from actor.api_keys import TENANT
from actor.doors.openapi_document import OPENAPI_PATH
from tests.unit.actor.test_doors import House

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance, negative_data_rejection]


async def doors(scope: Scope, receive: Receive, send: Send) -> None:
    """The doors of a house of acme's, built anew for each request."""
    if scope["type"] == "lifespan":
        while (message := await receive())["type"] != "lifespan.shutdown":
            await send({"type": f"{message['type']}.complete"})
        await send({"type": "lifespan.shutdown.complete"})
    else:
        await House(largest=1_000_000).app(scope | {TENANT: "acme"}, receive, send)


schema = schemathesis.openapi.from_asgi(OPENAPI_PATH, doors)


@schema.parametrize()
def test_every_door_answers_as_its_document_says(case: Any) -> None:
    """That each kind of feedback carries its own field alone is not in the schema, so a right shape may still be refused, by a 400."""
    case.call_and_validate(checks=CHECKS)
