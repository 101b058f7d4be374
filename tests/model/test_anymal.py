"""AnyMAL over several modalities: losses, gradients, batching and limits, on random parts; and batching once more on a real LLM."""

from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML

from anymal.errors import BundleError, ConfigError, DataError
from anymal.model.anymal import AnyMAL, load_anymal
from anymal.model.llm import load_llm
from anymal.model.projectors import build_projector
from anymal.model.prompt import Medium, Prompt, Template
from anymal.model.resampler import PerceiverResampler
from tests.tiny import make_llm

ROOT = Path(__file__).parent.parent.parent
TOKENS, DIM = 6, 16
RESAMPLER = {"media_dim": DIM, "media_tokens": TOKENS, "dim": 32, "tokens": 3, "layers": 2, "heads": 4, "pooled_latents": True,
             "layout_rank": 0, "media_positions": True, "media_frames": 1, "output_scale": 0.5}
LINEAR = {"media_dim": DIM, "media_tokens": TOKENS, "dim": 32, "tokens": 2, "output_scale": 0.5}
PROJECTORS = {"image": ("resampler", RESAMPLER), "video": ("resampler", {**RESAMPLER, "media_frames": 2, "tokens": 4}),
              "audio": ("linear", LINEAR), "imu": ("linear", LINEAR)}
TEMPLATES = {"caption": Template(None, "describe : {media}"), "question": Template("look at {media}", "{question}")}


def assemble(llm, tokenizer, dim=32):
    torch.manual_seed(0)
    arguments = {modality: {**given, "dim": dim} for modality, (_, given) in PROJECTORS.items()}
    return AnyMAL(llm, tokenizer, {modality: build_projector(kind, arguments[modality]) for modality, (kind, _) in PROJECTORS.items()},
                  templates=dict.fromkeys(PROJECTORS, TEMPLATES), encoder_folders={},
                  metadata={modality: {"projector": {"kind": kind, "arguments": arguments[modality]}} for modality, (kind, _) in PROJECTORS.items()})


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    llm, tokenizer = load_llm(make_llm(tmp_path_factory.mktemp("llm") / "tiny-llm"), dtype="float32", quantization="none", attention="eager")
    return assemble(llm, tokenizer)


def medium(seed=0, modality="image"):
    return Medium(modality, torch.randn(TOKENS, DIM, generator=torch.Generator().manual_seed(seed)).half())


def prompt(model, *modalities, question=None, seed=0):
    template = model.templates["image"]["caption" if question is None else "question"]
    return Prompt(template.messages(modalities, question), [medium(seed + i, modality) for i, modality in enumerate(modalities)])


def mixed(model):
    """Prompts of every modality, of several media at once, of two pictures, with text between media, and of text alone."""
    return [
        *(prompt(model, modality, seed=i) for i, modality in enumerate(PROJECTORS)),
        prompt(model, "image", "audio", "imu", "video", question="what is the sound of the picture ?", seed=10),
        prompt(model, "image", "image", question="what is to the left , and why so very much of it ?", seed=20),
        prompt(model, "audio", "image", question="is <audio> the sound of <image> or is there another one ?", seed=30),
        Prompt([{"role": "user", "content": "what is red ?"}]),
        prompt(model, "imu", question="yes ?", seed=40),
    ]


TARGETS = ["a", "a red apple is to the left of a green dog .", "two", "yes no yes no", "blue", "a drum", "the motion of a wave", "no", "cat dog cat"]


def test_token_losses_equal_the_llms_own(model):
    """Against a plain forward of the whole sequence with the LLM's own labels, two media and text between them."""
    asked, target = prompt(model, "audio", "image", question="is <audio> or <image> red ?"), "a red apple ."
    pieces, ids = model.tokenize(asked), model.target_ids(target)
    embed = model.llm.get_input_embeddings()
    parts = [embed(torch.tensor([pieces.texts[0]]))]
    for found, text in zip(asked.media, pieces.texts[1:], strict=True):
        parts += [model.projectors[found.modality](found.features.float()[None]), embed(torch.tensor([text]))]
    whole = torch.cat([*parts, embed(torch.tensor([ids]))], dim=1)
    labels = torch.full((1, whole.shape[1]), -100)
    labels[0, -len(ids):] = torch.tensor(ids)
    expected = model.llm(inputs_embeds=whole, labels=labels).loss
    assert model.token_losses([pieces], [ids]).values.mean().item() == pytest.approx(expected.item(), abs=1e-5)
    assert model.length(pieces) == whole.shape[1] - len(ids)


def test_losses_do_not_depend_on_padding_or_company(model):
    prompts = mixed(model)
    together = model.score(prompts, TARGETS, batch_size=len(prompts))
    alone = [model.score([p], [t], batch_size=1)[0] for p, t in zip(prompts, TARGETS, strict=True)]
    for (a, n), (b, m) in zip(together, alone, strict=True):
        assert n == m
        assert a / n == pytest.approx(b / n, abs=1e-5)


def test_the_training_loss_of_a_mixed_batch_is_the_mean_of_its_tokens_whatever_the_padding(model):
    pieces, targets = [model.tokenize(p) for p in mixed(model)], [model.target_ids(t) for t in TARGETS]
    together = model.token_losses(pieces, targets).values
    alone = torch.cat([model.token_losses([p], [t]).values for p, t in zip(pieces, targets, strict=True)])
    assert torch.allclose(together, alone, atol=1e-5)
    assert together.mean().item() == pytest.approx(alone.mean().item(), abs=1e-5)


def test_gradients_reach_the_projectors_and_nothing_else(model):
    pieces = [model.tokenize(p) for p in mixed(model)]
    model.token_losses(pieces, [model.target_ids(t) for t in TARGETS]).values.mean().backward()
    for modality, projector in model.projectors.items():
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in projector.parameters()), modality
    assert all(p.grad is None for p in model.llm.parameters())
    model.projectors.zero_grad(set_to_none=True)


def test_batched_mixed_generation_equals_one_by_one(model):
    prompts = mixed(model)
    together = model.generate(prompts, max_new_tokens=12, batch_size=len(prompts))
    assert together == [model.generate([p], max_new_tokens=12, batch_size=1)[0] for p in prompts]
    assert len(set(together)) > len(prompts) // 2


@pytest.mark.slow
def test_batched_mixed_generation_equals_one_by_one_on_the_real_llm():
    from anymal.data.assets import asset_document, parse_entry, resolve

    lock = YAML(typ="safe").load(ROOT / "assets.lock.yaml")
    name = "smollm2-135m-instruct"
    folder = resolve(asset_document(name, parse_entry(name, lock[name], "assets.lock.yaml")))
    llm, tokenizer = load_llm(folder, dtype="float32", quantization="none", attention="eager")
    model = assemble(llm, tokenizer, dim=llm.config.hidden_size)
    prompts = mixed(model)
    together = model.generate(prompts, max_new_tokens=12, batch_size=len(prompts))
    assert together == [model.generate([p], max_new_tokens=12, batch_size=1)[0] for p in prompts]
    assert len(set(together)) > len(prompts) // 2


def test_generation_takes_the_likeliest_token(model):
    asked = prompt(model, "image", "imu", question="what is red ?", seed=3)
    answer = model.generate([asked], max_new_tokens=1, batch_size=1)[0]
    pieces = model.tokenize(asked)
    everything = range(len(model.tokenizer))
    with torch.no_grad():
        losses = model.token_losses([pieces] * len(everything), [[token] for token in everything]).values.tolist()
    assert model.tokenizer.decode([losses.index(min(losses))], skip_special_tokens=True).strip() == answer


def test_the_order_of_media_and_each_of_several_pictures_count(model):
    first, second = medium(1), medium(2)
    messages = TEMPLATES["question"].messages(["image", "image"], "what is to the left ?")
    losses = [model.score([Prompt(messages, media)], ["a red apple"], batch_size=1)[0][0]
              for media in ([first, second], [second, first], [first, first])]
    assert len({round(loss, 4) for loss in losses}) == 3


def test_placeholders_and_inputs_must_match(model):
    for content, modalities, said in [
        ("hello", ["image"], r"placeholders are none but the inputs given are \['image'\]"), ("<image> hello", [], "the inputs given are none"),
        ("<image>", ["image", "image"], r"are \['image'\] but the inputs given are \['image', 'image'\]"),
        ("<image> <audio>", ["audio", "image"], r"are \['image', 'audio'\] but the inputs given are \['audio', 'image'\]"),
    ]:  # fmt: skip
        with pytest.raises(DataError, match=said):
            model.tokenize(Prompt([{"role": "user", "content": content}], [medium(0, modality) for modality in modalities]))


def test_a_modality_without_projector_is_named(model):
    less = AnyMAL(model.llm, model.tokenizer, {"image": model.projectors["image"]}, templates={}, metadata={}, encoder_folders={})
    with pytest.raises(DataError, match="no projector for 'audio'; it reads image"):
        less.tokenize(Prompt([{"role": "user", "content": "<audio>"}], [medium(0, "audio")]))
    with pytest.raises(DataError, match="no projector for 'audio'"):
        less.encode("audio", [])


def test_a_prompt_longer_than_the_model_can_read_is_refused_before_it_runs(model):
    limit = model.llm.config.max_position_embeddings
    long = Prompt([{"role": "user", "content": "red " * limit}])
    for call in (lambda: model.generate([prompt(model, "image"), long], max_new_tokens=5, batch_size=2),
                 lambda: model.score([long], ["a"], batch_size=1)):
        with pytest.raises(DataError, match=f"more than the {limit} that the model can read; shorten the text, give fewer files"):
            call()


def test_the_resampler_sees_positions_only_when_told():
    torch.manual_seed(1)
    media = torch.randn(1, TOKENS, DIM)
    turned = media.flip(1)
    with_positions = PerceiverResampler(**RESAMPLER)
    without = PerceiverResampler(**{**RESAMPLER, "media_positions": False})
    assert with_positions(media).shape == (1, 3, 32)
    assert not torch.allclose(with_positions(media), with_positions(turned), atol=1e-5)
    assert torch.allclose(without(media), without(turned), atol=1e-6)
    layout = PerceiverResampler(**{**RESAMPLER, "media_positions": False, "layout_rank": 2})
    assert not torch.allclose(layout(media), layout(turned), atol=1e-4)


def test_the_resampler_sees_the_order_of_frames():
    torch.manual_seed(1)
    media = torch.randn(1, TOKENS, DIM)
    swapped = torch.cat([media[:, TOKENS // 2:], media[:, : TOKENS // 2]], dim=1)
    two = PerceiverResampler(**{**RESAMPLER, "media_frames": 2, "pooled_latents": False})
    one = PerceiverResampler(**{**RESAMPLER, "media_positions": False})
    assert not torch.allclose(two(media), two(swapped), atol=1e-4)
    assert torch.allclose(one(media), one(swapped), atol=1e-6)


def test_wrong_projectors_are_refused():
    with pytest.raises(ConfigError, match="projector kind = mlp"):
        build_projector("mlp", {})
    with pytest.raises(ConfigError, match="heads = 5"):
        build_projector("resampler", {**RESAMPLER, "heads": 5})
    with pytest.raises(ConfigError, match="tokens = 9"):
        build_projector("linear", {**LINEAR, "tokens": 9})


def test_no_checkpoint_is_an_error(tmp_path):
    with pytest.raises(BundleError, match="one LLM"):
        load_anymal(tmp_path, [])


def test_completions_say_how_they_ended(model):
    """The end of turn is generated within the limit, or not; a limit of one token less changes that and cuts the text."""
    prompts = mixed(model)
    said = model.complete(prompts, max_new_tokens=40, batch_size=4)
    assert [one.text for one in said] == model.generate(prompts, max_new_tokens=40, batch_size=4)
    assert {one.finish for one in said} <= {"stop", "length"}
    for asked, one in zip(prompts, said, strict=True):
        ids = model.llm.generate(inputs_embeds=model._embed_prompts([model.tokenize(asked)], [0])[0][None], max_new_tokens=40, do_sample=False,
                                 eos_token_id=model.end_of_turn, pad_token_id=model.end_of_turn)[0].tolist()
        assert (one.finish == "stop") == (model.end_of_turn in ids)
        if one.finish == "stop":
            exact, short = (model.complete([asked], max_new_tokens=limit, batch_size=1)[0] for limit in (len(ids), len(ids) - 1))
            assert exact == one and short.finish == "length"
    assert {"stop", "length"} == {one.finish for one in said}, "the random model does both"


def test_batches_of_what_is_left_are_those_of_the_whole(model):
    prompts = mixed(model)
    for every in (lambda asked, targets: model.completions(asked, max_new_tokens=6, batch_size=2),
                  lambda asked, targets: model.losses(asked, targets, batch_size=2)):
        batches = list(every(prompts, TARGETS))
        done = {place for batch in batches[:2] for place, _ in batch}
        left = [place for place in range(len(prompts)) if place not in done]
        again = [[(left[place], found) for place, found in batch] for batch in every([prompts[i] for i in left], [TARGETS[i] for i in left])]
        assert again == batches[2:]
