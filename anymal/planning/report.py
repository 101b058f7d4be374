"""A plan as text."""

from __future__ import annotations

from anymal.planning.cost import Cost
from anymal.planning.profile import GIB, Machine, StagePlan

PARTS = {"llm": "LLM", "projectors": "projectors", "adapter": "adapter", "optimizer": "moments of AdamW", "gradients": "gradients",
         "communication": "exchange between GPUs", "logits": "logits", "working": "activations and temporaries"}
"""Part of the memory -> its line."""


def describe(plan: StagePlan, machine: Machine) -> str:
    """One stage's plan, a line for each part."""
    prompt, media, answer = plan.sequence
    precision = "full precision" if plan.quantization == "none" else plan.quantization
    gpus = f"{machine.gpus} GPUs ({plan.parallelism})" if machine.gpus > 1 else "1 GPU"
    lines = [f"{plan.stage}: {plan.llm} in {precision}, {_count(plan.trained)} weights train, {gpus}",
             f"  micro-batch {plan.micro_batch_size} of batch {plan.batch_size}, up to {prompt} prompt + {media} modality + {answer} answer tokens"]
    lines += [f"  {PARTS[name]:<30}{size / GIB:>10.2f} GiB" for name, size in plan.memory.items() if size]
    over = plan.total - machine.usable
    heaviest = PARTS[max(plan.memory, key=lambda name: plan.memory[name])]
    verdict = "fits" if plan.fits else f"does not fit: {over / GIB:.2f} GiB too much; the largest part is the {heaviest}"
    lines.append(f"  {'together':<30}{plan.total / GIB:>10.2f} GiB of {machine.usable / GIB:.1f} per GPU, {_when(plan.phase)}: {verdict}")
    largest = "none fits, not even 1" if plan.largest_micro_batch is None else str(plan.largest_micro_batch)
    lines.append(f"  {'largest micro-batch that fits':<30}{largest:>10}")
    lines.append(f"  {'as the profile says':<30}{plan.steps:>10} steps, {_count(plan.steps * plan.batch_size)} samples")
    return "\n".join([*lines, *([] if plan.cost is None else _cost_lines(plan.cost, machine))])


def _cost_lines(cost: Cost, machine: Machine) -> list[str]:
    lines = [f"  {f'one pass over {_count(cost.pairs)} pairs':<30}{cost.steps:>10} steps, {_count(cost.answer_tokens)} answer tokens, "
             f"{_count(cost.llm_tokens)} tokens read",
             f"  {'storage':<30}{cost.feature_bytes / GIB:>10.1f} GiB of features, {cost.state_bytes / GIB:.1f} GiB of training state"]
    if cost.gpu_hours is not None and cost.hours is not None:
        lines.append(f"  {'time at the rate given':<30}{cost.gpu_hours:>10.1f} GPU-hours, {cost.hours:.1f} hours ({cost.hours / 24:.1f} days) "
                     f"on {machine.gpus} GPU{'s' if machine.gpus > 1 else ''}")
    return lines


def _when(phase: str) -> str:
    return {"optimizer": "in AdamW's step", "checkpoint": "while the state is saved", "forward": "in the forward pass"}.get(phase, f"in the {phase}")


def _count(number: int) -> str:
    for size, letter in ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.2f}{letter}"
    return str(number)
