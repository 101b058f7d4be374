"""What kfp cannot do, and the pipelines are built around (docs/kubeflow.md): a test that fails here is good news."""

from typing import List  # noqa: UP035  (kfp does not take `list` for a list of artifacts)

import pytest
from google.protobuf import json_format
from kfp import dsl
from kfp.dsl import Dataset, Input, Output
from kfp.local import executor_input_utils, io
from kfp.local.orchestrator.enhanced_dag_orchestrator import ConditionEvaluator
from kfp.pipeline_spec import pipeline_spec_pb2


@dsl.container_component
def make(number: int, part: Output[Dataset]):
    return dsl.ContainerSpec(image="image", command=["make"], args=["--number", number, "--part", part.path])


@dsl.container_component
def join(parts: Input[List[Dataset]], whole: Output[Dataset]):  # noqa: UP006
    return dsl.ContainerSpec(image="image", command=["join"], args=["--parts", parts, "--whole", whole.path])


def test_a_container_cannot_take_what_a_loop_collects():
    """The list compiles to a placeholder that Kubeflow's launcher knows no value for, and the local runner refuses it."""

    @dsl.pipeline(name="loop")
    def loop():
        with dsl.ParallelFor([1, 2]) as number:
            made = make(number=number)
        join(parts=dsl.Collected(made.outputs["part"]))

    spec = json_format.MessageToDict(loop.pipeline_spec)
    assert spec["deploymentSpec"]["executors"]["exec-join"]["container"]["args"][:2] == ["--parts", "{{$.inputs.artifacts['parts']}}"]
    definition = json_format.ParseDict(spec["components"]["comp-join"], pipeline_spec_pb2.ComponentSpec())
    with pytest.raises(ValueError, match="Value must be one of the following types"):
        executor_input_utils.construct_executor_input(
            definition, {"parts": [Dataset(name="part", uri="/part", metadata={})]}, task_root="/root", block_input_artifact=False)


def test_local_runs_do_not_see_a_condition_on_a_named_output():
    store = io.IOStore()
    store.put_task_output("gate", "verdict", "passed")
    assert not ConditionEvaluator.evaluate_condition("inputs.parameter_values['pipelinechannel--gate-verdict'] == 'passed'", store)
