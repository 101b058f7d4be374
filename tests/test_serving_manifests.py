"""The InferenceService and the server that it starts: what one says of the other is so. With the real command line, application and metrics."""

from __future__ import annotations

from typing import Any

import pytest

from anymal.commands.serve import command
from anymal.serving.metrics import Metrics
from tests.kserve_schema import inference_service_problem
from tests.test_manifests import MANIFESTS, OVERLAYS, Object, kubectl, load, render

__all__ = ["kubectl"]  # a fixture
SERVING = [name for name in OVERLAYS if name.endswith("-kserve")]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=SERVING)
def objects(request: pytest.FixtureRequest) -> list[Object]:
    """Of an overlay with servers."""
    return load(render(request.getfixturevalue("kubectl"), MANIFESTS / "overlays" / request.param))


@pytest.fixture
def predictor(objects: list[Object]) -> Object:
    return service_of(objects)["spec"]["predictor"]


@pytest.fixture
def container(predictor: Object) -> Object:
    (found,) = predictor["containers"]
    return found


def service_of(objects: list[Object]) -> Object:
    (found,) = (document for document in objects if document["kind"] == "InferenceService")
    return found


def parsed(container: Object) -> dict[str, Any]:
    """What the real command line makes of the arguments; an unknown or renamed option raises."""
    assert container["command"] == ["anymal", "serve"]
    return command.make_context("serve", list(container["args"])).params


def test_there_are_two(kubectl):
    assert SERVING == ["local-kserve", "production-kserve"]


def test_the_command_line_takes_the_arguments(container):
    options = parsed(container)
    assert (options["model"], options["guard"]) == ("models:/anymal@champion", "models:/anymal-guard@champion")
    assert options["host"] == "0.0.0.0"
    (port,) = container["ports"]
    assert options["port"] == port["containerPort"]
    assert not options["remote_media"] and options["text_in_pictures"]
    with pytest.raises(Exception, match="No such option"):
        parsed(container | {"args": [*container["args"], "--quantisation=nf4"]})


def test_precision_is_a_setting(kubectl):
    found = {}
    for name in SERVING:
        (server,) = service_of(load(render(kubectl, MANIFESTS / "overlays" / name)))["spec"]["predictor"]["containers"]
        found[name] = parsed(server)["quantization"]
    assert found == {"local-kserve": None, "production-kserve": "nf4"}


def test_keys_and_writable_folders_are_mounted(predictor, container):
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in predictor["volumes"]}
    keys = parsed(container)["keys"]
    assert volumes[mounts[str(keys.parent)]["name"]] == {"name": "keys", "secret": {"secretName": "anymal-serving-keys"}}
    environment = {variable["name"]: variable.get("value") for variable in container["env"]}
    for folder in (environment["ANYMAL_CACHE"], environment["HOME"]):
        assert "readOnly" not in mounts[folder]
        assert volumes[mounts[folder]["name"]].keys() & {"emptyDir", "persistentVolumeClaim"}


def test_probes_ask_what_the_application_answers(predictor, container):
    from anymal.safety.guard import Guard
    from anymal.serving.api import Limits, create_app
    from anymal.serving.desk import Desk
    from anymal.serving.host import Host, load_with
    from tests.safety.planted_guard import PlantedModels

    host = Host("nowhere", rows=1, waiting=1, follow_seconds=1.0, load=load_with(None, None))
    desk = Desk(host, Guard(PlantedModels(), reader=None), seconds=1.0, limit=1)
    paths = {route.path for route in create_app(desk, limits=Limits()).routes}
    port = parsed(container)["port"]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        asked = container[probe]["httpGet"]
        assert asked["path"] in paths and asked["port"] == port, probe
    assert container["livenessProbe"]["httpGet"]["path"] == "/health"  # a server whose registry is down, or that loads, must not be restarted
    assert container["readinessProbe"]["httpGet"]["path"] == "/ready"
    scraped = predictor["annotations"]
    assert scraped["prometheus.io/path"] in paths and scraped["prometheus.io/port"] == str(port)


def test_answers_under_way_have_time_to_end(predictor, container):
    waits = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert predictor["terminationGracePeriodSeconds"] > waits + parsed(container)["seconds"] + 10  # the model is closed last


def test_servers_are_added_for_requests_that_wait(objects):
    service = service_of(objects)
    predictor = service["spec"]["predictor"]
    scaler = service["metadata"]["annotations"]["serving.kserve.io/autoscalerClass"]
    if scaler == "none":
        assert "autoScaling" not in predictor and "maxReplicas" not in predictor
        return
    assert scaler == "keda" and predictor["minReplicas"] < predictor["maxReplicas"]
    (metric,) = predictor["autoScaling"]["metrics"]
    # KServe reads `value` of external metrics, and KEDA divides it by the number of servers.
    assert metric["external"]["target"] == {"type": "Value", "value": str(parsed(predictor["containers"][0])["rows"])}
    named = Metrics(lambda: (0, 0)).text().decode()
    for name in ("anymal_decoding", "anymal_waiting"):
        assert f"\n{name} " in f"\n{named}" and f'{name}{{namespace="anymal"}}' in metric["external"]["metric"]["query"]


def test_the_network_lets_through_what_a_server_needs(objects):
    policies = {document["metadata"]["name"]: document["spec"] for document in objects if document["kind"] == "NetworkPolicy"}
    serving = {"podSelector": {"matchLabels": {"app.kubernetes.io/component": "serving"}}}
    assert serving in policies["mlflow"]["ingress"][0]["from"]
    (container,) = service_of(objects)["spec"]["predictor"]["containers"]
    assert all("namespaceSelector" in source for source in policies["serving"]["ingress"][0]["from"])
    assert policies["serving"]["ingress"][0]["ports"] == [{"protocol": "TCP", "port": parsed(container)["port"]}]


def test_the_schema_finds_what_is_wrong(objects):
    service = service_of(objects)
    assert inference_service_problem(service) is None
    predictor = service["spec"]["predictor"]
    for changed, said in (({"maxReplica": 3}, "V1beta1PredictorSpec has no maxReplica"), ({"minReplicas": "1"}, "minReplicas: '1' is no int"),
                          ({"autoScaling": {"metrics": [{"typ": "External"}]}}, "metrics.0: V1beta1MetricsSpec has no typ")):
        assert said in str(inference_service_problem(service | {"spec": {"predictor": predictor | changed}}))
    assert "predictor" in str(inference_service_problem(service | {"spec": {}}))
