import pytest
import torch

from anymal.errors import ConfigError, DataError
from anymal.model.llm import PrefixCache, load_llm
from tests.tiny import make_llm


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_llm(tmp_path_factory.mktemp("llm") / "tiny-llm", hidden=128, spread=0.05)


def gradient(llm, inputs):
    inputs = inputs.clone().requires_grad_()
    llm(inputs_embeds=inputs).logits.float().logsumexp(-1).mean().backward()
    return inputs.grad.float().flatten()


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_gradients_through_a_quantised_llm_stay_right_after_an_evaluation_pass(folder, quantization):
    """The trap of bitsandbytes on CPUs with AVX512-BF16: an eval forward without gradients spoils every backward after it."""
    full, _ = load_llm(folder, dtype="bfloat16", quantization="none", attention="eager")
    quantised, _ = load_llm(folder, dtype="bfloat16", quantization=quantization, attention="eager")
    inputs = torch.randn(4, 12, 128, generator=torch.Generator().manual_seed(0), dtype=torch.float32).to(torch.bfloat16) * 0.02
    reference = gradient(full, inputs)
    before = gradient(quantised, inputs)
    with torch.no_grad():
        quantised(inputs_embeds=inputs)
    after = gradient(quantised, inputs)
    cosine = torch.nn.functional.cosine_similarity
    assert cosine(before, reference, dim=0) > 0.9
    assert cosine(after, reference, dim=0) > 0.9
    assert cosine(after, before, dim=0) > 0.999


def test_everything_is_frozen(folder):
    llm, tokenizer = load_llm(folder, dtype="float32", quantization="none", attention="sdpa")
    assert not any(p.requires_grad for p in llm.parameters())
    assert tokenizer.chat_template


def test_a_cached_prefix_gives_what_the_whole_sequence_gives(folder):
    llm, _ = load_llm(folder, dtype="float32", quantization="none", attention="eager")
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    with torch.no_grad():
        expected = llm(input_ids=ids).logits[:, 3:]
        cache = PrefixCache(llm)
        for _ in range(2):  # the second time from memory
            got = llm(input_ids=ids[:, 3:].expand(2, -1), past_key_values=cache.get((5, 6, 7), 2)).logits
            assert torch.allclose(got, expected.expand(2, -1, -1), atol=1e-5)


def test_bad_folders_and_settings_are_named(folder, tmp_path):
    with pytest.raises(DataError, match="no such asset"):
        load_llm(tmp_path / "none", dtype="float32", quantization="none", attention="eager")
    with pytest.raises(ConfigError, match="quantization = int3"):
        load_llm(folder, dtype="float32", quantization="int3", attention="eager")


def test_generating_does_not_copy_the_vocabulary_for_each_prompt(folder):
    """A view of the last positions made torch multiply batch by batch, each with a copy of the output layer's weights."""
    from torch.profiler import ProfilerActivity, profile

    llm, _ = load_llm(folder, dtype="bfloat16", quantization="none", attention="eager")
    weights = llm.get_output_embeddings().weight.numel()
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU], record_shapes=True) as found:
        llm.generate(inputs_embeds=torch.zeros(4, 6, 128, dtype=torch.bfloat16), attention_mask=torch.ones(4, 6, dtype=torch.long), max_new_tokens=1)
    copied = [event.input_shapes[0] for event in found.events() if event.name == "aten::copy_" and event.input_shapes]
    assert copied
    assert max(torch.Size(shape).numel() for shape in copied) < 4 * weights
