"""From packages to a projector per modality, aligned with the LLM."""

from kfp.dsl import Artifact

from pipelines import parts
from pipelines.tasks import Graph, Plan


def alignment(graph: Graph) -> None:
    """Assets, the guard, curated data, features, checkpoints."""
    parts.ingest(graph)
    parts.guard(graph)
    parts.curate(graph)
    parts.align(graph)


PLAN = Plan(
    "alignment", "From raw packages to one aligned projector per modality.",
    parts.sections("ingest", "curate_safety", "train_safety", *parts.each("curate"), "import_instructions",
                   *parts.each("pretrain_encoder", of=parts.TRAINED), *parts.each("encode"), *parts.each("align")),
    {"lock": Artifact}, alignment)
