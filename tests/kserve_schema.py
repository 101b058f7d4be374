"""What KServe's own models say against an InferenceService.

The package needs older versions of what we need (pandas, psutil), so that its models alone are fetched, by the assets' own road. They know
KServe's fields; those of Kubernetes in between are checked as the objects that KServe makes of them.
"""

from __future__ import annotations

import functools
import importlib
import re
import sys
from types import ModuleType
from typing import Any

from anymal.data.assets import parse_entry, provide

KSERVE = {
    "kind": "pip", "package": "kserve", "version": "0.21.0", "sha256": "df9bc5888704d9085015e08f1a8fced5ff0698f3becc6212d4e7b8234c71623b",
    "licence": {"id": "Apache-2.0"}, "take": ["kserve/models/*", "kserve/configuration.py"],
}
PLAIN = {"int": int, "str": str, "bool": bool, "V1beta1MetricQuantity": str}
"""Kinds that are no models. The package names the last and does not hold it."""


@functools.cache
def models() -> ModuleType:
    """`kserve.models`, without the server around it: a package with no `__init__` of its own."""
    sys.path.append(str(provide("kserve", parse_entry("kserve", KSERVE, "test"))))
    return importlib.import_module("kserve.models")


def inference_service_problem(document: dict[str, Any]) -> str | None:
    """The first unknown key, missing field or wrong type among KServe's own fields; None if there is none."""
    try:
        _check(document, "V1beta1InferenceService", "InferenceService")
    except ValueError as error:
        return str(error)
    return None


def _check(value: Any, kind: str, path: str) -> None:
    """Raise ValueError if a value is not of a kind of KServe's."""
    inside = re.fullmatch(r"(?:list\[|dict\(str, )(.+)[\])]", kind)
    model = getattr(models(), kind, None)
    if inside is not None:
        _expect(value, list if kind.startswith("list") else dict, path)
        for key, child in enumerate(value) if isinstance(value, list) else value.items():
            _check(child, inside[1], f"{path}.{key}")
    elif kind in PLAIN:
        _expect(value, PLAIN[kind], path)
    elif model is not None:
        _expect(value, dict, path)
        attributes = {key: attribute for attribute, key in model.attribute_map.items()}
        if unknown := value.keys() - attributes.keys():
            raise ValueError(f"{path}: {kind} has no {', '.join(sorted(unknown))}")
        model(**{attributes[key]: child for key, child in value.items()})  # a ValueError for what is missing
        for key, child in value.items():
            _check(child, model.openapi_types[attributes[key]], f"{path}.{key}")
    else:
        assert not kind.startswith("V1beta1"), kind  # it is Kubernetes' own


def _expect(value: Any, kind: type, path: str) -> None:
    if type(value) is not kind:
        raise ValueError(f"{path}: {value!r} is no {kind.__name__}")


def made_of(document: dict[str, Any]) -> list[dict[str, Any]]:
    """What Standard mode makes of the predictor, as far as Kubernetes' schemas have a say: its pods, how they are replaced, and how they scale."""
    predictor, metadata = document["spec"]["predictor"], document["metadata"]
    own = models().V1beta1PodSpec.attribute_map.values()
    labels = {"app": f"isvc.{metadata['name']}-predictor"}
    strategy = {"strategy": predictor["deploymentStrategy"]} if "deploymentStrategy" in predictor else {}
    deployment = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": {
        "selector": {"matchLabels": labels}, **strategy, "template": {
            "metadata": {"labels": labels | predictor.get("labels", {}), "annotations": predictor.get("annotations", {})},
            "spec": {key: value for key, value in predictor.items() if key in own}}}}
    if (behavior := predictor.get("autoScaling", {}).get("behavior")) is None:
        return [deployment]
    return [deployment, {"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": metadata, "spec": {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": f"{metadata['name']}-predictor"},
        "maxReplicas": predictor["maxReplicas"], "behavior": behavior}}]
