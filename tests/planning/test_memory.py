"""Memory of a step on the meta device: against real tensors, and against what measuring real steps gives."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from anymal.errors import ConfigError
from anymal.model.adapter import adapter_modules, add_adapter
from anymal.model.llm import load_llm
from anymal.model.projectors import build_projector
from anymal.planning import memory as planning
from anymal.planning.ledger import Kernels, Ledger
from anymal.planning.memory import Memory, frozen, largest_micro_batch, memory, static_bytes
from anymal.planning.meta import held_bytes
from benchmarks.plan import measure, predict
from tests import tiny
from tests.planning.setups import ADAPTER, LENGTHS, LLM, setup

MIB = 2**20


def test_ledger_counts_what_lives():
    """Four bytes a value; what is let go no longer counts; views and what was there before are free."""
    before = torch.empty(1000, device="meta")
    ledger = Ledger(vocabulary=7)
    with ledger:
        kept = before * 2
        view = kept.view(10, 100)
        gone = kept + view.flatten()
        del gone
        ledger.phase = "later"
        scores = torch.empty(3, 7, device="meta")
        again = scores.clone()
    assert ledger.peaks["forward"].total == 8000
    assert (ledger.alive, ledger.logits) == (4000 + 2 * 84, 2 * 84)
    assert (ledger.peaks["later"].total, ledger.peaks["later"].logits) == (4168, 168)
    del view, again


def test_ledger_counts_what_autograd_keeps():
    weight = torch.empty(50, 50, device="meta", requires_grad=True)
    entry = torch.empty(20, 50, device="meta")
    ledger = Ledger(vocabulary=7)
    ledger.ignore([weight, entry])
    with ledger:
        out = torch.tanh(entry @ weight)  # tanh keeps its result, the product its inputs, which were there before
        assert ledger.alive == 4 * 20 * 50
        loss = (out * out).sum()
        loss.backward()
    assert weight.grad is not None
    del out, loss
    assert ledger.alive == 4 * 50 * 50


def test_fused_attention_keeps_no_scores():
    query = torch.empty(2, 4, 300, 16, device="meta", dtype=torch.bfloat16, requires_grad=True)
    ledger = Ledger(vocabulary=7)
    ledger.ignore([query])
    with Kernels("cuda"), ledger:
        out = nn.functional.scaled_dot_product_attention(query, query, query, is_causal=True)
    assert out.shape == query.shape
    assert ledger.peaks["forward"].total == query.nbytes + 4 * 2 * 4 * 300
    assert ledger.peaks["forward"].total < 2 * 2 * 4 * 300 * 300


def test_dropout_keeps_a_byte_per_value_on_gpus():
    entry = torch.empty(1000, device="meta", requires_grad=True)
    for device, kept in (("cuda", 1000), ("cpu", 4000)):
        ledger = Ledger(vocabulary=7)
        ledger.ignore([entry])
        with Kernels(device), ledger:
            out = nn.functional.dropout(entry, 0.1, training=True)
        assert ledger.alive == 4000 + kept, device
        del out


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
def test_weights_are_those_of_a_loaded_llm(tmp_path: Path, quantization: str):
    """To the byte, with the scales and tables that quantised layers hold beside their weights."""
    tiny.make_llm(tmp_path, hidden=64)
    llm, _ = load_llm(tmp_path, dtype="bfloat16", quantization=quantization, attention="eager")
    projector = build_projector(*setup().projectors["image"])
    planned = static_bytes(frozen(setup(llm=llm.config.to_dict(), quantization=quantization)))
    assert planned.llm == held_bytes(llm)
    assert planned.projectors == planned.trained == sum(parameter.nbytes for parameter in projector.parameters())
    assert planned.adapter == 0
    add_adapter(llm, **ADAPTER)
    planned = static_bytes(frozen(setup(llm=llm.config.to_dict(), quantization=quantization, adapter=ADAPTER)))
    assert planned.adapter == sum(parameter.nbytes for parameter in adapter_modules(llm).parameters())
    assert planned.llm + planned.adapter == held_bytes(llm)


def test_quantised_weights_by_hand():
    """LLaMA-2-70B: nf4 takes half a byte a weight, an 8-bit scale per 64 and a float32 per 256 of these; embeddings stay in bfloat16."""
    from anymal.planning.shapes import llm_config

    config = llm_config("llama-2-70b-chat", None)
    dim, wide, key_dim = 8192, 28672, 1024
    linear = 80 * (2 * dim * dim + 2 * dim * key_dim + 3 * dim * wide)
    rest = 2 * (2 * 32000 * dim + (2 * 80 + 1) * dim)
    found = {quantization: static_bytes(frozen(_at_width(config, quantization))).llm for quantization in ("none", "nf4", "int8")}
    buffers = 1024  # rotary frequencies, and per layer the tables of 16 and 256 entries
    assert found["none"] == pytest.approx(2 * linear + rest, abs=buffers)
    assert found["nf4"] == pytest.approx(linear * (0.5 + 1 / 64 + 4 / 64 / 256) + rest, rel=1e-4)
    assert found["int8"] == pytest.approx(linear + 4 * 80 * (2 * dim + 2 * key_dim + 2 * wide + dim) + rest, rel=1e-5)
    assert found["none"] // 2 == pytest.approx(68.98e9, rel=1e-3)


def _at_width(config, quantization):
    arguments = {"media_dim": 24, "media_tokens": 4, "dim": config["hidden_size"], "tokens": 4, "output_scale": 1.0}
    return setup(llm=config, quantization=quantization, projectors={"image": ("linear", arguments)})


@pytest.mark.parametrize("changes", [{}, {"adapter": ADAPTER}, {"adapter": ADAPTER, "gradient_checkpointing": True}, {"quantization": "nf4"},
                                     {"quantization": "int8", "attention": "eager"}])
def test_two_shallow_llms_tell_of_a_deep_one(monkeypatch: pytest.MonkeyPatch, changes):
    deep = setup(llm={**LLM, "num_hidden_layers": 13}, **changes)
    quick = memory(deep, LENGTHS, 4)
    static_bytes.cache_clear()
    monkeypatch.setattr(planning, "DEPTHS", (4, 13))
    exact = memory(deep, LENGTHS, 4)
    static_bytes.cache_clear()
    assert quick == exact


def test_parts_add_up_and_follow_the_knobs():
    base = memory(setup(), LENGTHS, 8)
    assert base.total == sum(getattr(base, entry.name) for entry in dataclasses.fields(Memory) if entry.name not in ("phase", "kept"))
    assert base.optimizer == 2 * base.projectors
    assert base.gradients == base.projectors  # batch 64: gradients of earlier micro-batches wait
    assert memory(setup(batch_size=8), LENGTHS, 8).gradients in (0, base.projectors)
    assert memory(setup(), LENGTHS, 16).total > base.total
    assert memory(setup(quantization="nf4"), LENGTHS, 8).llm < memory(setup(quantization="int8"), LENGTHS, 8).llm < base.llm
    tuned = memory(setup(adapter=ADAPTER), LENGTHS, 8)
    assert tuned.adapter > 0
    assert tuned.kept > base.kept
    assert memory(setup(adapter=ADAPTER, gradient_checkpointing=True), LENGTHS, 8).kept < tuned.kept
    assert memory(setup(attention="flash_attention_2"), LENGTHS, 8) == base
    longer = dataclasses.replace(LENGTHS, answer=100)
    assert memory(setup(), longer, 8).logits > base.logits > 0


def test_several_gpus():
    alone = memory(setup(), LENGTHS, 4)
    replicas = memory(setup(processes=4), LENGTHS, 4)
    assert replicas.llm == alone.llm
    assert replicas.communication == 0
    # Nothing is accumulated, but the buckets of DDP stay.
    assert memory(setup(batch_size=4), LENGTHS, 4).gradients == 0
    assert memory(setup(batch_size=16, processes=4), LENGTHS, 4).gradients == alone.projectors
    shards = memory(setup(processes=4, parallelism="fsdp"), LENGTHS, 4)
    assert shards.llm == alone.llm // 4
    assert shards.optimizer == alone.optimizer // 4
    assert shards.communication > 0


def test_largest_micro_batch_is_the_last_that_fits():
    for fits in (1, 5, 8):
        limit = memory(setup(), LENGTHS, fits).total
        assert largest_micro_batch(setup(), LENGTHS, limit) == fits
        assert memory(setup(), LENGTHS, fits + 1).total > limit
    assert largest_micro_batch(setup(), LENGTHS, memory(setup(), LENGTHS, 1).total - 1) is None
    assert largest_micro_batch(setup(batch_size=6), LENGTHS, 2**60) == 6
    assert largest_micro_batch(setup(batch_size=6, processes=2), LENGTHS, 2**60) == 3


def test_what_cannot_be_built_is_refused():
    with pytest.raises(ConfigError, match="describes no causal LLM"):
        memory(setup(llm={**LLM, "model_type": "bert-of-my-own"}), LENGTHS, 1)
    kind, arguments = setup().projectors["image"]
    with pytest.raises(ConfigError, match="heads = 3"):
        memory(setup(projectors={"image": (kind, {**arguments, "heads": 3})}), LENGTHS, 1)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "quantization"), [("align", "none"), ("finetune, checkpointing", "nf4"), ("finetune", "int8")])
def test_predictions_are_near_what_is_measured(kind: str, quantization: str):
    said, found = predict("small", kind, quantization), measure("small", kind, quantization)
    assert said["total"] == pytest.approx(found["total"], rel=0.15)
    assert said["weights"] == pytest.approx(found["weights"], rel=0.02)
