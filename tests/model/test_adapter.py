"""LoRA on the frozen LLM: what is trained and saved, PEFT's format, precision of training and of use, merging."""

import json

import pytest
import torch

from anymal.data.manifest import write_manifest
from anymal.errors import BundleError
from anymal.model.adapter import adapter_modules, add_adapter, load_adapter, merge_adapter, save_adapter, unmerge_adapter
from anymal.model.llm import load_llm
from tests.tiny import make_llm

IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_llm(tmp_path_factory.mktemp("llm") / "tiny-llm", hidden=64, spread=0.1)


def load(folder, quantization="none", dtype="float32"):
    return load_llm(folder, dtype=dtype, quantization=quantization, attention="eager")[0]


def logits(llm):
    with torch.no_grad():
        return llm(input_ids=IDS).logits.float()


def train(llm, steps=8):
    """Push the adapter towards a token; returns its gradients of the first step, on one line."""
    add_adapter(llm, rank=4, alpha=8, dropout=0.0)
    parameters = [p for p in llm.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.5)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(llm(input_ids=IDS).logits.float()[0], torch.full((6,), 11)).backward()
        optimizer.step()
    return parameters


@pytest.fixture(scope="module")
def tuned(folder):
    torch.manual_seed(0)
    llm = load(folder)
    train(llm)
    return llm


def test_a_fresh_adapter_changes_no_answer_and_is_all_that_trains(folder):
    llm = load(folder)
    before = logits(llm)
    add_adapter(llm, rank=4, alpha=8, dropout=0.1)
    assert torch.equal(logits(llm), before)
    trained = {name for name, p in llm.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    adapted = {name.split(".")[-4] for name in trained}
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert {id(p) for p in adapter_modules(llm).parameters()} == {id(p) for p in llm.parameters() if p.requires_grad}
    assert type(llm).__name__ == "LlamaForCausalLM"


def test_dropout_follows_the_adapter_not_the_llm(folder):
    llm = load(folder)
    torch.manual_seed(0)
    add_adapter(llm, rank=4, alpha=8, dropout=0.9)
    for name, p in adapter_modules(llm).named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p)
    adapter_modules(llm).eval()
    assert torch.equal(logits(llm), logits(llm))
    adapter_modules(llm).train()
    assert not torch.equal(logits(llm), logits(llm))


def test_what_is_saved_gives_the_same_answers_and_the_same_bytes(folder, tuned, tmp_path):
    save_adapter(tuned, tmp_path / "one")
    save_adapter(tuned, tmp_path / "two")
    for name in ("adapter_model.safetensors", "adapter_config.json", "manifest.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert str(folder) not in (tmp_path / "one" / "adapter_config.json").read_text()
    loaded = load(folder)
    plain = logits(loaded)
    load_adapter(loaded, tmp_path / "one")
    assert torch.equal(logits(loaded), logits(tuned))
    assert (logits(loaded) - plain).abs().max() > 0.1
    assert not any(p.requires_grad for p in loaded.parameters())


def test_peft_itself_loads_it(folder, tuned, tmp_path):
    from peft import PeftModel

    save_adapter(tuned, tmp_path / "adapter")
    other = PeftModel.from_pretrained(load(folder), tmp_path / "adapter")
    assert torch.allclose(logits(other), logits(tuned), atol=1e-6)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_an_adapter_trained_quantised_serves_the_full_precision_llm(folder, quantization, tmp_path):
    """Paper section 3.1: training in 4 or 8 bits, generation in full precision."""
    torch.manual_seed(0)
    llm = load(folder, quantization, "bfloat16")
    train(llm)
    save_adapter(llm, tmp_path / "adapter")
    full = load(folder)
    before = torch.nn.functional.cross_entropy(logits(full)[0], torch.full((6,), 11))
    load_adapter(full, tmp_path / "adapter")
    after = torch.nn.functional.cross_entropy(logits(full)[0], torch.full((6,), 11))
    assert after < before - 0.5


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_gradients_of_an_adapter_are_right_also_after_an_evaluation_pass(folder, quantization):
    """The trap of bitsandbytes (`keep_quantized_backward_right`): an eval forward without gradients spoiled every backward after it."""

    def gradient(llm):
        llm.zero_grad()
        torch.nn.functional.cross_entropy(llm(input_ids=IDS).logits.float()[0], torch.full((6,), 11)).backward()
        return torch.cat([p.grad.flatten() for name, p in adapter_modules(llm).named_parameters() if "lora_B" in name])

    def prepared(quantization):
        llm = load(folder, quantization, "bfloat16")
        torch.manual_seed(0)
        add_adapter(llm, rank=4, alpha=8, dropout=0.0)
        return llm

    reference, llm = gradient(prepared("none")), prepared(quantization)
    before = gradient(llm)
    logits(llm)
    after = gradient(llm)
    cosine = torch.nn.functional.cosine_similarity
    assert cosine(before, reference, dim=0) > 0.9
    assert cosine(after, reference, dim=0) > 0.9
    assert cosine(after, before, dim=0) > 0.999


def test_merged_and_unmerged_it_answers_alike(folder, tuned, tmp_path):
    save_adapter(tuned, tmp_path / "adapter")
    llm = load(folder)
    plain = llm.model.layers[0].self_attn.q_proj.weight.clone()
    load_adapter(llm, tmp_path / "adapter")
    expected = logits(llm)
    merge_adapter(llm)
    merged = llm.model.layers[0].self_attn.q_proj.base_layer.weight.clone()
    assert torch.allclose(logits(llm), expected, atol=1e-4)
    unmerge_adapter(llm)
    assert torch.allclose(logits(llm), expected, atol=1e-4)
    assert (merged - plain).abs().max() > 1e-3
    assert torch.allclose(llm.model.layers[0].self_attn.q_proj.base_layer.weight, plain, atol=1e-5)


def test_an_adapter_that_is_damaged_or_of_another_llm_is_refused(folder, tuned, tmp_path):
    save_adapter(tuned, tmp_path / "adapter")
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(BundleError, match="changed adapter_model"):
        load_adapter(load(folder), tmp_path / "adapter")
    weights.write_bytes(data)
    other = make_llm(tmp_path / "other-llm", hidden=32)
    with pytest.raises(BundleError, match="do not fit the LLM"):
        load_adapter(load(other), tmp_path / "adapter")
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps({"r": 4}))
    write_manifest(tmp_path / "adapter")
    with pytest.raises(BundleError, match="is no adapter"):
        load_adapter(load(folder), tmp_path / "adapter")
    weights.unlink()
    with pytest.raises(BundleError, match="missing adapter_model"):
        load_adapter(load(folder), tmp_path / "adapter")
