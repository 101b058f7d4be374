"""Conversions of an asset at ingestion, so that every later stage loads safetensors and plain arrays and nothing else."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from anymal.errors import AssetError

UNPICKLE_SECONDS = 300


def gguf_to_hf(name: str, folder: Path) -> None:
    """Replace the one GGUF file of `folder` by a bfloat16 safetensors model folder with its tokenizer and chat template.

    Loading a GGUF dequantises it each time (4–25 s); the safetensors folder loads in under a second. Same input, same bytes.

    Raises:
        AssetError: if there is not exactly one GGUF file, or transformers cannot read it.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found = sorted(folder.rglob("*.gguf"))
    if len(found) != 1:
        raise AssetError(f"asset {name}: convert gguf_to_hf needs exactly one .gguf file, `take` gave {len(found)}")
    source = found[0]
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
        loaded = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    except (OSError, ValueError, KeyError, RuntimeError, NotImplementedError) as error:
        first = " ".join(str(error).split())[:200]
        raise AssetError(f"asset {name}: {source.name} cannot be read as a GGUF model ({first}); "
                         "take another file, or a newer transformers") from error
    # A model that was loaded quantised refuses to be saved, even dequantised; a new one of the same class with the same weights does not.
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    for noise in ("_model_name_or_path", "_name_or_path"):
        with contextlib.suppress(AttributeError):
            delattr(config, noise)
    model = type(loaded)(config)
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    model.generation_config = loaded.generation_config
    source.unlink()
    model.bfloat16().save_pretrained(folder)
    # Where the tokenizer was loaded from is no property of it.
    for noise in ("name_or_path", "is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(noise, None)
    tokenizer.save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)


def torch_to_safetensors(name: str, folder: Path) -> None:
    """Replace each torch state dictionary (.bin, .pt, .pth) of `folder` by a safetensors file of the same tensors.

    Read with `weights_only=True`: no code of the file is run. `pytorch_model.bin` becomes `model.safetensors`, as transformers expects.

    Raises:
        AssetError: if there is none, or one is not a plain dictionary of tensors.
    """
    import pickle

    import torch
    from safetensors.torch import save_file

    sources = sorted(file for file in folder.rglob("*") if file.suffix in (".bin", ".pt", ".pth"))
    if not sources:
        raise AssetError(f"asset {name}: convert torch_to_safetensors found no .bin, .pt or .pth file in what `take` gave")
    for source in sources:
        try:
            loaded = torch.load(source, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
            raise AssetError(f"asset {name}: {source.name} is not a plain torch weights file; it is refused, since reading it "
                             "could run its code") from error
        state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else loaded
        if not isinstance(state, dict) or not state or not all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in state.items()):
            raise AssetError(f"asset {name}: {source.name} holds no dictionary of tensors, so it cannot become a safetensors file")
        # Cloned: safetensors stores no two tensors in the same memory.
        tensors = {key: value.detach().clone().contiguous() for key, value in state.items()}
        stem = "model" if source.stem == "pytorch_model" else source.stem
        target = source.with_name(f"{stem}.safetensors")
        save_file(tensors, target, metadata={"format": "pt"})
        target.chmod(0o644)
        source.unlink()


def spar_to_npy(name: str, folder: Path) -> None:
    """Replace the pickled .npy file of the SPAR data set (see `anymal.data.pickled`) by one plain .npy per series, and `series.json`.

    Pickles can run code. This one is read once, here, in a process of its own that makes arrays and nothing else.

    Raises:
        AssetError: if there is not exactly one .npy file, or it is not that data set, or it names anything that arrays do not need.
    """
    found = sorted(folder.rglob("*.npy"))
    if len(found) != 1:
        raise AssetError(f"asset {name}: convert spar_to_npy needs exactly one .npy file, `take` gave {len(found)}")
    source = found[0].rename(folder / ".pickled")
    where = found[0].relative_to(folder)
    try:
        done = subprocess.run([sys.executable, "-m", "anymal.data.pickled", str(source), str(folder)], capture_output=True, text=True, check=False,
                              timeout=UNPICKLE_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise AssetError(f"asset {name}: {where} was not read after {UNPICKLE_SECONDS} s; it is refused, take the SPAR data set as seglearn "
                         "carries it") from error
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or ["ended the process that read it"]
        raise AssetError(f"asset {name}: {where} {said[-1][:200]}; it is refused, take the SPAR data set as seglearn carries it")
    source.unlink()


CONVERSIONS: dict[str, Callable[[str, Path], None]] = {
    "gguf_to_hf": gguf_to_hf, "torch_to_safetensors": torch_to_safetensors, "spar_to_npy": spar_to_npy,
}
