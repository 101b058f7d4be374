"""The model registry: bundles become versions of an MLflow registered model, aliases say which one counts.

The only code that moves an alias. What decides whether it may be moved belongs in pure functions of figures, called before `set_alias`.
"""

from __future__ import annotations

import base64
import importlib.metadata
import io
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anymal import __version__, tracking
from anymal.data.asset_folders import cache_folder
from anymal.errors import BundleError, ConfigError, TrackingError
from anymal.model.bundle import CARD, bundle_sha256, read_bundle

SCHEME = "models:/"
SHA_TAG = "bundle_sha256"
REQUIREMENTS = ("mlflow", "torch", "transformers", "safetensors", "pillow", "numpy", "pydantic", "filelock", "efficientnet-lite-pytorch",
                "av", "matplotlib")
"""What loading a bundle imports; their installed versions are written down, so that MLflow need not run the model to find them out."""


@dataclass(frozen=True)
class Registration:
    """A registered model version."""

    name: str
    version: int
    alias: str
    bundle_sha256: str
    created: bool
    """False if a version with this very bundle was there already."""

    @property
    def uri(self) -> str:
        """Where `anymal ask` and MLflow find it."""
        return f"{SCHEME}{self.name}@{self.alias}"


def register_bundle(bundle: Path, *, name: str, alias: str, metrics: Mapping[str, float], tags: Mapping[str, str]) -> Registration:
    """Make a bundle a version of the registered model `name` and point `alias` at it.

    A bundle that is registered already (by the SHA-256 of its manifest) keeps its version. The model is logged to the active
    stage's run if there is one.

    Args:
        metrics: figures of the evaluation, by dotted name; attached to the model and the active stage's run, if there is one.
        tags: what it was made from (data versions), shown with the version.

    Raises:
        BundleError: if the bundle is damaged.
        TrackingError: if MLflow refuses or cannot be reached.
    """
    read_bundle(bundle)
    digest = bundle_sha256(bundle)
    tracking.check_store()
    run = tracking.run_id()
    with _mlflow() as mlflow, tracking.store_lock():
        client, experiment = tracking.connect()
        version = _find_version(client, name, digest)
        if created := version is None:
            mlflow.set_experiment(experiment_id=experiment)
            version = _create_version(mlflow, client, bundle, name=name, digest=digest, run=run, metrics=metrics, tags=tags)
        client.set_registered_model_alias(name, alias, str(version))
    return Registration(name, version, alias, digest, created)


def resolve_bundle(reference: str) -> Path:
    """The folder of a bundle: a local path as it is, `models:/NAME@ALIAS` or `models:/NAME/VERSION` downloaded from MLflow once.

    Raises:
        BundleError: if there is no such folder, model, alias or version.
        TrackingError: if MLflow cannot be reached.
    """
    if not reference.startswith(SCHEME):
        return Path(reference)
    match = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", reference)
    if match is None:
        raise BundleError(f"{reference}: is no address of a registered model; write models:/anymal@candidate or models:/anymal/1")
    tracking.check_store()
    with _mlflow() as mlflow:
        with tracking.store_lock():
            client, _ = tracking.connect()
        found = _lookup(client, reference, *match.groups())
        digest = found.tags.get(SHA_TAG)
        if digest is None:
            raise BundleError(f"{reference}: version {found.version} was not registered by anymal (it has no tag {SHA_TAG}); run the stage register")
        folder = cache_folder() / "bundles" / digest
        if not folder.is_dir():
            _download(mlflow, f"{SCHEME}{found.name}/{found.version}", folder)
    read_bundle(folder)
    if bundle_sha256(folder) != digest:
        raise BundleError(f"{reference}: version {found.version} is registered with bundle {digest[:12]}…, but {folder} holds another; "
                          "remove that folder")
    return folder


def _lookup(client: Any, reference: str, name: str, alias: str | None, version: str | None) -> Any:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(name, alias) if alias is not None else client.get_model_version(name, version)
    except MlflowException as error:
        if error.error_code not in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
            raise
    known = [model.name for model in client.search_registered_models(f"name = '{name}'")] if "'" not in name else []
    aliases = sorted(client.get_registered_model(name).aliases) if known else []
    hint = f"'{name}' has the aliases {', '.join(aliases) or 'none'}" if known else f"no model '{name}' is registered"
    where = tracking.shown_uri(tracking.tracking_uri())
    raise BundleError(f"{reference}: {hint} at MLFLOW_TRACKING_URI = {where}; run the stage register, or correct the name or MLFLOW_TRACKING_URI")


def _download(mlflow: Any, uri: str, folder: Path) -> None:
    """Fetch a version's bundle into the cache; a partial download is not taken for a whole one."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".partial-") as staging:
        got = Path(mlflow.artifacts.download_artifacts(f"{uri}/data/bundle", dst_path=staging))
        if not folder.is_dir():
            got.rename(folder)


def _find_version(client: Any, name: str, digest: str) -> int | None:
    if "'" in name:
        raise ConfigError(f"register.name = {name}: a quote cannot be part of a model's name")
    versions = client.search_model_versions(f"name = '{name}' and tag.{SHA_TAG} = '{digest}'")
    return max((int(version.version) for version in versions), default=None)


def _create_version(mlflow: Any, client: Any, bundle: Path, *, name: str, digest: str, run: str | None, metrics: Mapping[str, float],
                    tags: Mapping[str, str]) -> int:
    from mlflow.exceptions import MlflowException
    from mlflow.models import Model

    document = read_bundle(bundle)
    git = tracking.git_version()
    labels = {SHA_TAG: digest, "anymal.version": __version__, **({"git.revision": git["revision"], "git.dirty": git["dirty"]} if git else {}), **tags}
    signature, example = _signature(document)
    with tempfile.TemporaryDirectory(prefix="anymal-register-") as folder:
        # The stage's output still has its temporary name; in the model it is called `bundle`.
        link = Path(folder) / "bundle"
        link.symlink_to(bundle.absolute(), target_is_directory=True)
        logged = Model.log(None, _Saver, name=name, run_id=run, tags=labels, metadata=labels, signature=signature, input_example=example,
                           loader_module="anymal.serving.pyfunc", data_path=str(link), code_paths=[str(Path(__file__).parent)],
                           pip_requirements=_requirements(), validate_serving_input=False)
    if metrics and run is not None:
        mlflow.log_metrics({tracking.clean_key(key): value for key, value in metrics.items()}, run_id=run, model_id=logged.model_id)
    try:
        client.create_registered_model(name, description="AnyMAL: any mix of modalities in, text out. Each version is a complete bundle.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    card = (bundle / CARD).read_text(encoding="utf-8")
    version = client.create_model_version(name, logged.model_uri, run_id=run, tags=labels, description=card, model_id=logged.model_id)
    return int(version.version)


class _Saver:
    """The pyfunc flavor for `Model.log`, which loads the whole model to try the example unless told not to; pyfunc does not know that word."""

    @staticmethod
    def save_model(*, validate_serving_input: bool, **arguments: Any) -> None:
        import mlflow.pyfunc

        mlflow.pyfunc.save_model(**arguments)


def _signature(document: Mapping[str, Any]) -> tuple[Any, Any]:
    """Rows in, texts out; and one example row with a small picture."""
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from PIL import Image

    modalities = list(document["encoders"])
    inputs = Schema([ColSpec(DataType.string, column, required=False) for column in (*modalities, "media", "question")])
    limit = ParamSpec("max_new_tokens", DataType.long, document["inference"]["max_new_tokens"])
    signature = ModelSignature(inputs, Schema([ColSpec(DataType.string)]), ParamSchema([limit]))
    if "image" not in modalities:
        return signature, None
    stream = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(stream, "PNG")
    image = f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
    return signature, pd.DataFrame([{"image": image, "question": "What colour is this?"}])


def _requirements() -> list[str]:
    found = []
    for name in REQUIREMENTS:
        try:
            # "+cpu" names a build of this machine, which another one need not have.
            found.append(f"{name}=={importlib.metadata.version(name).partition('+')[0]}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@contextmanager
def _mlflow() -> Iterator[Any]:
    """MLflow, set up as the recorder's; its errors become one sentence."""
    os.environ.update(tracking.environment())
    import mlflow
    import mlflow.artifacts
    import mlflow.pyfunc
    import requests
    from mlflow.exceptions import MlflowException

    mlflow.set_tracking_uri(tracking.tracking_uri())
    try:
        yield mlflow
    except (MlflowException, requests.RequestException, ConnectionError) as error:
        first = (str(error).strip() or type(error).__name__).split("\n")[0][:500]
        where = tracking.shown_uri(tracking.tracking_uri())
        raise TrackingError(f"MLFLOW_TRACKING_URI = {where}: the model registry failed: {first}; {tracking.REMEDY}") from error
