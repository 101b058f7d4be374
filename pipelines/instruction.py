"""Instruction data and fine-tuning, from the checkpoints and features of an earlier run."""

from pipelines import parts
from pipelines.tasks import Graph, Plan


def instruction(graph: Graph) -> None:
    """Instructions, tuned model."""
    parts.instruct(graph)
    parts.tune(graph)


PLAN = Plan(
    "instruction", "Instruction data and fine-tuning from aligned projectors.",
    parts.sections("compose_instructions", "synthesize_image", "finetune"),
    parts.imported("assets", "guard", "shards_image", "instructions_human", *parts.each("features"), *parts.each("checkpoints")), instruction)
