"""Whatever the description of the API allows, and much that it does not, gives no 500."""

import pytest
import schemathesis
import urllib3
from hypothesis import HealthCheck, Phase, given, settings

from fastsam3d.wire.volumes import volume_to_bytes
from tests.server.conftest import run_live, toy_app
from tests.session.phantoms import ball_volume

API = "/api/v1"
APP = toy_app(port=0, max_sessions=10_000)
# Requests of the nnInteractive protocol have forms that OpenAPI cannot describe: see test_fuzz.
OURS = f"^({API}|/healthz|/(info|auth|train|activelearning|session|infer|datastore)/)"
SCHEMA = schemathesis.openapi.from_dict(APP.openapi()).include(path_regex=OURS)
OPERATIONS = [found.ok() for found in SCHEMA.get_all_operations()]


def takes_any(parameter):
    """Whether every text is a value of a parameter, so that none is wrong."""
    schema = parameter.definition["schema"]
    return parameter.definition["in"] == "path" and schema.get("type") == "string"


# Where nothing is sent, nothing can be wrong.
KINDS = [
    pytest.param(operation, mode, id=f"{mode.value} {operation.label}")
    for operation in OPERATIONS
    for mode in schemathesis.GenerationMode
    if mode == schemathesis.GenerationMode.POSITIVE
    or operation.body
    or not all(takes_any(parameter) for parameter in operation.iter_parameters())
]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("datastore")
    yield from run_live(toy_app(port=0, max_sessions=10_000, datastore_dir=folder))


@pytest.fixture
def tenant(served):
    root = f"{served.url}{API}"
    headers = {"X-Lease-Token": urllib3.request("POST", f"{root}/sessions").json()["lease"]}
    content = volume_to_bytes(ball_volume(shape=(12, 12, 12), centre_mm=(6, 6, 6), radius_mm=3))
    urllib3.request("PUT", f"{root}/session/volume", body=content, headers=headers)
    body = {"type": "object.add"}
    urllib3.request("POST", f"{root}/session/call", json=body, headers=headers)
    yield headers
    urllib3.request("DELETE", f"{root}/session", headers=headers)


@pytest.mark.parametrize(("operation", "mode"), KINDS)
def test_no_request_makes_the_server_fail(served, tenant, operation, mode):
    @settings(
        max_examples=12,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(operation.as_strategy(generation_mode=mode))
    def ask(case):
        reply = case.call(base_url=served.url, headers=tenant)
        assert reply.status_code < 500, reply.text
        if reply.status_code >= 400 and reply.headers["content-type"] == ["application/json"]:
            assert reply.json()["error"].keys() == {"code", "message"}

    ask()
