"""LoRA on a frozen LLM (paper section 2), in PEFT's own file format, so that PEFT loads what is written here and the other way round."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from anymal.data.manifest import verify_manifest, write_manifest
from anymal.data.tensors import save_tensors
from anymal.errors import BundleError

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
"""PEFT's files name tensors from its own wrapper, which is not used here: the LLM's class stays its own."""
NAME = "default"


def add_adapter(llm: Any, *, rank: int, alpha: int, dropout: float) -> None:
    """Put a fresh, trainable LoRA adapter on all linear layers of the LLM's blocks, quantised or not.

    Its weights are float32 whatever the LLM's precision; as it begins with B = 0, the LLM's answers do not change.
    """
    _inject(llm, _config(_linear_names(llm), rank, alpha, dropout))
    for parameter in adapter_modules(llm).parameters():
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)


def adapter_modules(llm: Any) -> nn.ModuleDict:
    """The adapter's parts alone (A, B and dropout of each layer), which train, are saved and switch to evaluation apart from the LLM."""
    parts = {}
    for name, layer in _layers(llm):
        inner = {"lora_A": layer.lora_A[NAME], "lora_B": layer.lora_B[NAME], "dropout": layer.lora_dropout[NAME]}
        parts[name.replace(".", "/")] = nn.ModuleDict(inner)
    return nn.ModuleDict(parts)


def save_adapter(llm: Any, folder: Path) -> None:
    """Write the adapter of an LLM: PEFT's two files and a manifest."""
    from peft import get_peft_model_state_dict

    folder.mkdir(parents=True)
    state = get_peft_model_state_dict(llm, adapter_name=NAME)
    save_tensors(folder / WEIGHTS, {f"{PREFIX}{name}": tensor for name, tensor in state.items()})
    config = llm.peft_config[NAME].to_dict()
    # Sets have no order of their own and where the LLM lay on this machine says nothing: the same adapter must give the same bytes.
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()} | {
        "base_model_name_or_path": None, "inference_mode": True}
    (folder / CONFIG).write_text(json.dumps(plain, indent=1, sort_keys=True, default=str) + "\n")
    write_manifest(folder)


def load_adapter(llm: Any, folder: Path) -> None:
    """Put a saved adapter on an LLM for inference; it may have been trained on the LLM in another precision.

    Raises:
        BundleError: if a file is missing or changed, or the adapter does not fit the LLM.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file

    verify_manifest(folder, error=BundleError)
    try:
        config = json.loads((folder / CONFIG).read_text())
        _inject(llm, _config(config["target_modules"], config["r"], config["lora_alpha"], config["lora_dropout"]))
        tensors = {name.removeprefix(PREFIX): tensor for name, tensor in load_file(folder / WEIGHTS).items()}
    except (OSError, ValueError, KeyError) as error:
        raise BundleError(f"{folder}: is no adapter ({error}); give the one that finetune wrote") from error
    expected = {name: tensor.shape for name, tensor in get_peft_model_state_dict(llm, adapter_name=NAME).items()}
    if expected != {name: tensor.shape for name, tensor in tensors.items()}:
        raise BundleError(f"{folder / WEIGHTS}: its tensors do not fit the LLM; use the adapter with the LLM it was tuned on")
    for parameter in adapter_modules(llm).parameters():
        parameter.data = parameter.data.float()
    set_peft_model_state_dict(llm, tensors, adapter_name=NAME)
    llm.eval().requires_grad_(False)


def merge_adapter(llm: Any) -> None:
    """Add the adapter into the LLM's weights: answers as fast as without one, rounded to the weights' precision."""
    for _, layer in _layers(llm):
        layer.merge()


def unmerge_adapter(llm: Any) -> None:
    """Take a merged adapter out of the LLM's weights again (to within their rounding)."""
    for _, layer in _layers(llm):
        layer.unmerge()


def _config(targets: list[str], rank: int, alpha: int, dropout: float) -> Any:
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets, bias="none", task_type="CAUSAL_LM")


def _inject(llm: Any, config: Any) -> None:
    llm.add_adapter(config, adapter_name=NAME)
    llm.requires_grad_(False)


def _linear_names(llm: Any) -> list[str]:
    """Last parts of the names of the linear layers in the LLM's blocks: bitsandbytes' classes are subclasses of `nn.Linear`."""
    return sorted({name.rsplit(".", 1)[-1] for name, module in llm.base_model.named_modules() if isinstance(module, nn.Linear)})


def _layers(llm: Any) -> Iterator[tuple[str, Any]]:
    from peft.tuners.lora import LoraLayer

    for name, module in llm.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module

