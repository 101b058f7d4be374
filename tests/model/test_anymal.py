import pytest
import torch

from anymal.errors import BundleError, ConfigError, DataError
from anymal.model.anymal import AnyMAL, load_anymal
from anymal.model.llm import load_llm
from anymal.model.projectors import build_projector
from anymal.model.prompt import Medium, Prompt, Template, tokenize
from anymal.model.resampler import PerceiverResampler
from tests.tiny import make_llm

TOKENS, DIM = 5, 16
ARGUMENTS = {
    "media_dim": DIM, "media_tokens": TOKENS, "dim": 32, "tokens": 3, "layers": 2, "heads": 4, "pooled_latents": True, "media_positions": True,
    "output_scale": 0.02}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    llm, tokenizer = load_llm(make_llm(tmp_path_factory.mktemp("llm") / "tiny-llm"), dtype="float32", quantization="none", attention="eager")
    templates = {"caption": Template(None, "describe : <image>"), "question": Template("look at <image>", "{question}")}
    return AnyMAL(llm, tokenizer, {"image": build_projector("resampler", ARGUMENTS)}, templates=templates, metadata={}, encoder_folders={})


def medium(seed=0):
    return Medium("image", torch.randn(TOKENS, DIM, generator=torch.Generator().manual_seed(seed)).half())


def test_token_losses_equal_the_llms_own(model):
    """Against a plain forward of the whole sequence with the LLM's own labels."""
    prompt, target = Prompt(model.templates["caption"].messages(), [medium()]), "a red apple ."
    pieces, ids = model.tokenize(prompt), model.target_ids(target)
    embed = model.llm.get_input_embeddings()
    media = model.projectors["image"](medium().features.float()[None])
    parts = [embed(torch.tensor([pieces.texts[0]])), media, embed(torch.tensor([pieces.texts[1]])), embed(torch.tensor([ids]))]
    whole = torch.cat(parts, dim=1)
    labels = torch.full((1, whole.shape[1]), -100)
    labels[0, -len(ids):] = torch.tensor(ids)
    expected = model.llm(inputs_embeds=whole, labels=labels).loss
    assert model.token_losses([pieces], [ids]).values.mean().item() == pytest.approx(expected.item(), abs=1e-5)


def test_losses_do_not_depend_on_padding_or_company(model):
    prompts = [Prompt(model.templates["caption"].messages(), [medium(i)]) for i in range(4)]
    prompts.append(Prompt(model.templates["question"].messages("what colour is the picture , and why so very much of it ?"), [medium(9)]))
    targets = ["a", "a red apple is to the left of a green dog .", "two", "yes no yes no", "blue"]
    together = model.score(prompts, targets, batch_size=8)
    alone = [model.score([p], [t], batch_size=1)[0] for p, t in zip(prompts, targets, strict=True)]
    for (a, n), (b, m) in zip(together, alone, strict=True):
        assert n == m
        assert a == pytest.approx(b, abs=1e-5 * max(1, n))


def test_gradients_reach_the_projector_and_nothing_else(model):
    pieces = [model.tokenize(Prompt(model.templates["caption"].messages(), [medium(i)])) for i in range(2)]
    model.token_losses(pieces, [model.target_ids("a cat"), model.target_ids("two dogs .")]).values.mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.projectors.parameters())
    assert all(p.grad is None for p in model.llm.parameters())
    model.projectors.zero_grad(set_to_none=True)


def test_batched_generation_equals_one_by_one(model):
    prompts = [Prompt(model.templates["caption"].messages(), [medium(i)]) for i in range(5)]
    prompts += [Prompt(model.templates["question"].messages("what is to the left ?"), [medium(7)])]
    together = model.generate(prompts, max_new_tokens=12, batch_size=6)
    assert together == [model.generate([p], max_new_tokens=12, batch_size=1)[0] for p in prompts]
    assert len(set(together)) > 1


def test_generation_takes_the_likeliest_token(model):
    prompt = Prompt(model.templates["caption"].messages(), [medium(3)])
    answer = model.generate([prompt], max_new_tokens=1, batch_size=1)[0]
    pieces = model.tokenize(prompt)
    losses = [model.token_losses([pieces], [[token]]).values.item() for token in range(len(model.tokenizer))]
    assert model.tokenizer.decode([losses.index(min(losses))], skip_special_tokens=True).strip() == answer


def test_placeholders_and_inputs_must_match(model):
    with pytest.raises(DataError, match="placeholders are none but the inputs given are"):
        tokenize(Prompt([{"role": "user", "content": "hello"}], [medium()]), model.tokenizer)
    with pytest.raises(DataError, match="the inputs given are none"):
        tokenize(Prompt([{"role": "user", "content": "<image> hello"}]), model.tokenizer)


def test_a_modality_without_projector_is_named(model):
    with pytest.raises(DataError, match="no projector for 'audio'; it reads image"):
        model.tokenize(Prompt([{"role": "user", "content": "<audio>"}], [Medium("audio", torch.zeros(2, 2))]))
    with pytest.raises(DataError, match="no projector for 'image'"):
        model.encode("image", [])


def test_the_resampler_sees_positions_only_when_told():
    torch.manual_seed(1)
    media = torch.randn(1, TOKENS, DIM)
    turned = media.flip(1)
    with_positions = PerceiverResampler(**ARGUMENTS)
    without = PerceiverResampler(**{**ARGUMENTS, "media_positions": False})
    assert with_positions(media).shape == (1, 3, 32)
    assert not torch.allclose(with_positions(media), with_positions(turned), atol=1e-5)
    assert torch.allclose(without(media), without(turned), atol=1e-6)


def test_wrong_projectors_are_refused():
    with pytest.raises(ConfigError, match="projector kind = mlp"):
        build_projector("mlp", {})
    with pytest.raises(ConfigError, match="heads = 5"):
        build_projector("resampler", {**ARGUMENTS, "heads": 5})
    with pytest.raises(ConfigError, match="tokens = 3"):
        build_projector("linear", {"media_dim": 4, "media_tokens": 5, "dim": 8, "tokens": 3, "output_scale": 0.1})


def test_no_checkpoint_is_an_error(tmp_path):
    with pytest.raises(BundleError, match="one LLM"):
        load_anymal(tmp_path, [])
