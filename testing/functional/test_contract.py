# SPDX-License-Identifier: Apache-2.0
"""The API description itself, and the app held against it by generated requests."""

from importlib.resources import files

import hypothesis
import pytest
import schemathesis
import yaml
from hypothesis import HealthCheck
from openapi_spec_validator import validate
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from pycloud import api
from testing.stand import make_stand

DOCUMENT = yaml.safe_load(files("pycloud.api").joinpath("openapi.yaml").read_text("utf-8"))
EXAMPLES = 15


@schemathesis.serializer("application/offset+octet-stream")
def piece_of_a_file(_context: object, value: object) -> bytes:
    """Send any value as the bytes of an upload."""
    return value if isinstance(value, bytes) else str(value).encode()


CHECKS = (
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
)


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory):
    """The operations of one cloudlet with a few records, and an administrator's headers."""
    stand = make_stand(tmp_path_factory.mktemp("cloudlet"))
    for name in ("echo", "speech"):
        stand.add_service(name, sharing_limit=2)
    app = api.make_app(stand.core, stand.settings)
    return schemathesis.openapi.from_wsgi("/api/v2/openapi.json", app), stand.admin


def test_description_is_valid_openapi() -> None:
    validate(DOCUMENT)


def test_every_schema_of_a_request_is_closed() -> None:
    for item in DOCUMENT["paths"].values():
        for method, operation in item.items():
            if method == "parameters" or "requestBody" not in operation:
                continue
            for part in operation["requestBody"]["content"].values():
                if "$ref" in part["schema"]:
                    name = part["schema"]["$ref"].rpartition("/")[2]
                    schema = DOCUMENT["components"]["schemas"][name]
                    assert schema["additionalProperties"] is False, name


WITHOUT_INPUT = frozenset(
    {
        "index",
        "description_yaml",
        "description_json",
        "get_system",
        "list_peers",
        "upload_features",
    }
)
"""Operations to which nothing wrong can be sent."""
OPERATIONS = sorted(
    operation["operationId"]
    for item in DOCUMENT["paths"].values()
    for method, operation in item.items()
    if method != "parameters"
)


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize("operation_id", OPERATIONS)
def test_operation_keeps_to_its_description(generated, operation_id: str, mode) -> None:
    schema, headers = generated
    operation = schema.find_operation_by_id(operation_id)
    if mode is GenerationMode.NEGATIVE and operation_id in WITHOUT_INPUT:
        return

    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    @hypothesis.settings(
        max_examples=EXAMPLES,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    def check(case: schemathesis.Case) -> None:
        # Held replies would make the run as long as their patience.
        case.headers.pop("Prefer", None)
        response = case.call(headers=headers)
        case.validate_response(response, checks=list(CHECKS))

    check()
