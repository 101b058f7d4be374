"""A stand-in for the API server of Kubeflow Pipelines: an HTTP server on the loopback that answers the calls which kfp's client makes to start a
run and follow it, and refuses what the real one's schemas (protobuf, REST v2beta1) do not have. Nothing of it runs a pipeline."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import kfp_server_api
from google.protobuf import json_format
from kfp.kubernetes import kubernetes_executor_config_pb2
from kfp.pipeline_spec import pipeline_spec_pb2

Answer = tuple[int, Any]
KINDS = {"STRING": str, "STRUCT": dict, "LIST": list, "BOOLEAN": bool, "NUMBER_INTEGER": int, "NUMBER_DOUBLE": (int, float)}


class KfpServer:
    """The server; a context manager."""

    def __init__(self, *, token: str | None = None, multi_user: bool = False) -> None:
        self.token, self.multi_user = token, multi_user
        self.calls: list[str] = []
        """Method and path of each request, in order."""
        self.experiments: list[dict[str, Any]] = []
        self.runs: list[dict[str, Any]] = []
        self.progress: list[Answer] = []
        """What is answered to each question about a run; the last one stays."""
        self.override: Callable[[str], Answer | None] = lambda _: None
        """Path -> an answer in place of the proper one."""
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                """Tests look at `calls`."""

            def _serve(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                owner.calls.append(f"{self.command} {urlsplit(self.path).path}")
                status, answer = owner.answer(self.command, self.path, self.headers.get("Authorization"), body)
                text = answer if isinstance(answer, str) else json.dumps(answer)
                self.send_response(status)
                self.send_header("Content-Type", "text/html" if isinstance(answer, str) else "application/json")
                self.send_header("Content-Length", str(len(text.encode())))
                self.end_headers()
                self.wfile.write(text.encode())

            do_GET = do_POST = _serve

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.uri = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> KfpServer:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, method: str, target: str, authorization: str | None, body: bytes) -> Answer:
        """Status and content of the answer to a request."""
        path, query = urlsplit(target).path, {name: values[0] for name, values in parse_qs(urlsplit(target).query).items()}
        if (answer := self.override(path)) is not None:
            return answer
        if self.token is not None and authorization != f"Bearer {self.token}":
            return 401, {"error": "Unauthorized"}
        routes: dict[tuple[str, str], Callable[[], Answer]] = {
            ("GET", "/apis/v2beta1/healthz"): lambda: (200, {"multi_user": self.multi_user}),
            ("GET", "/apis/v2beta1/experiments"): lambda: self._list(query),
            ("POST", "/apis/v2beta1/experiments"): lambda: self._create_experiment(json.loads(body)),
            ("POST", "/apis/v2beta1/runs"): lambda: self._create_run(json.loads(body)),
            ("GET", "/apis/v2beta1/runs/run-1"): lambda: self.progress.pop(0) if len(self.progress) > 1 else self.progress[0],
        }
        return routes.get((method, path), lambda: (404, {"error": f"{method} {path}: no such call"}))()

    def _list(self, query: dict[str, str]) -> Answer:
        (predicate,) = json.loads(query["filter"])["predicates"]
        assert predicate["key"] == "display_name"
        found = [entry for entry in self.experiments if entry["display_name"] == predicate["stringValue"]
                 and (entry.get("namespace") or "") == query.get("namespace", "")]
        return 200, {"experiments": found}

    def _create_experiment(self, body: dict[str, Any]) -> Answer:
        if problem := unknown(kfp_server_api.V2beta1Experiment, body):
            return 400, {"message": problem}
        self.experiments.append(body | {"experiment_id": f"experiment-{len(self.experiments)}"})
        return 200, self.experiments[-1]

    def _create_run(self, body: dict[str, Any]) -> Answer:
        if problem := unknown(kfp_server_api.V2beta1Run, body) or unknown(kfp_server_api.V2beta1RuntimeConfig, body["runtime_config"]):
            return 400, {"message": problem}
        if body["experiment_id"] not in {entry["experiment_id"] for entry in self.experiments}:
            return 404, {"message": f"Experiment {body['experiment_id']} not found"}
        try:
            self._check(body["pipeline_spec"], body["runtime_config"]["parameters"])
        except (json_format.ParseError, ValueError) as error:
            return 400, {"message": f"Invalid input error: {error}"}
        self.runs.append(body)
        return 200, body | {"run_id": f"run-{len(self.runs)}", "state": "PENDING"}

    @staticmethod
    def _check(document: dict[str, Any], parameters: dict[str, Any]) -> None:
        """Protobuf's parser refuses unknown fields; parameters are those that the pipeline declares, of their types and none missing."""
        pipeline, platform = (document["pipeline_spec"], document["platform_spec"]) if "pipeline_spec" in document else (document, {})
        spec = json_format.ParseDict(pipeline, pipeline_spec_pb2.PipelineSpec())
        json_format.ParseDict(platform, pipeline_spec_pb2.PlatformSpec())
        for settings in platform.get("platforms", {}).get("kubernetes", {}).get("deploymentSpec", {}).get("executors", {}).values():
            json_format.ParseDict(settings, kubernetes_executor_config_pb2.KubernetesExecutorConfig())
        declared = spec.root.input_definitions.parameters
        if missing := [name for name, entry in declared.items() if name not in parameters and not entry.is_optional]:
            raise ValueError(f"missing parameters {sorted(missing)}")
        for name, value in parameters.items():
            if name not in declared:
                raise ValueError(f"parameter {name} is not declared")
            kind = pipeline_spec_pb2.ParameterType.ParameterTypeEnum.Name(declared[name].parameter_type)
            if not isinstance(value, KINDS[kind]):
                raise ValueError(f"parameter {name} is no {kind}")


def unknown(model: Any, body: dict[str, Any]) -> str | None:
    """Fields that the REST API's schema does not have."""
    extra = sorted(body.keys() - set(model.attribute_map.values()))
    return f"unknown fields {extra}" if extra else None


def running(state: str, tasks: dict[str, str], *, error: str | None = None) -> Answer:
    """An answer about a run, with the pods that the real server lists beside the tasks."""
    details: list[dict[str, Any]] = [{"display_name": "root", "state": state}, {"display_name": "root-driver", "state": "SUCCEEDED"}]
    for name, task in tasks.items():
        failed = {"error": {"code": 9, "message": error}} if error is not None and task == "FAILED" else {}
        details += [{"display_name": f"{name}-driver", "state": "SUCCEEDED"}, {"display_name": name, "state": task},
                    {"display_name": "executor", "state": task, **failed}]
    return 200, {"run_id": "run-1", "state": state, "run_details": {"task_details": details}}
