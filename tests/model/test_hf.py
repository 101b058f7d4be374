"""The Hugging Face side of a bundle: the same answers as AnyMAL, generation options, losses, saving, and loading elsewhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anymal.errors import AnymalError, BundleError, DataError
from anymal.model.bundle import bundle_sha256, read_bundle
from anymal.model.hf import AnyMALForConditionalGeneration, AnyMALProcessor
from anymal.model.loading import load_bundle
from anymal.model.prompt import Prompt
from anymal.serving.answer import Request, answer, encoded, messages_of
from tests import tiny
from tests.model.test_bundle import contents, make

MODALITIES = ("image", "audio", "imu")
QUESTIONS = [("what is red ?", ["image"]), ("is <audio> the sound of <image> ?", ["audio", "image"]), ("what is it to the left of ?", []),
             ("yes or no ?", ["imu", "image", "audio"])]


@pytest.fixture(scope="module")
def files(tiny_model, tmp_path_factory):
    """A bundle of three modalities, and a file of each."""
    folder = tmp_path_factory.mktemp("files")
    for name, content in tiny.MEDIA.values():
        (folder / name).write_bytes(content())
    make(tiny_model, str(folder / "bundle"), MODALITIES)
    return folder


@pytest.fixture(scope="module")
def bundle(files, tiny_model):
    """Loaded in the folder with the assets."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tiny_model)
        yield files / "bundle", AnyMALProcessor.from_pretrained(files / "bundle"), AnyMALForConditionalGeneration.from_pretrained(files / "bundle")


def path(files, modality):
    return files / tiny.MEDIA[modality][0]


def conversation(files, question, modalities):
    """As align's template of questions has it: media on lines, then the question; a question can place them itself."""
    if "<" in question:
        first, between, last = question.replace("<audio>", "|").replace("<image>", "|").split("|")
        texts, parts = [first, between, last], []
        for text, modality in zip(texts, [*modalities, None], strict=True):
            parts += [{"type": "text", "text": text}, *([{"type": modality, "path": str(path(files, modality))}] if modality else [])]
    else:
        parts = [*({"type": m, "path": path(files, m)} for m in modalities), {"type": "text", "text": question}]
    return [{"role": "user", "content": parts}]


@pytest.fixture(scope="module")
def inputs(files, bundle):
    conversations = [conversation(files, question, modalities) for question, modalities in QUESTIONS]
    return bundle[1].apply_chat_template(conversations, tokenize=True, return_dict=True, add_generation_prompt=True)


def texts(processor, ids):
    return [text.strip() for text in processor.batch_decode(ids, skip_special_tokens=True)]


def test_answers_token_for_token_as_anymal(files, bundle, inputs):
    _, processor, model = bundle
    requests = [Request(question, [(m, path(files, m)) for m in modalities]) for question, modalities in QUESTIONS]
    expected = answer(model.anymal, requests, max_new_tokens=9, batch_size=4)
    ids = model.generate(**inputs, max_new_tokens=9)
    assert texts(processor, ids) == expected
    assert len(set(expected)) == len(expected)
    assert texts(processor, model.generate(**inputs)) == answer(model.anymal, requests, max_new_tokens=5, batch_size=1), "as long as the bundle says"


def test_inputs_are_padded_on_the_left_with_a_run_of_one_id_per_medium(files, bundle, inputs):
    _, processor, _ = bundle
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    assert ids.shape == mask.shape and (mask.diff(dim=1) >= 0).all() and mask[:, -1].all() and not mask[2, 0]
    assert {modality: token - len(processor.tokenizer) for modality, token in processor.placeholder_ids.items()} == {"audio": 0, "image": 1, "imu": 2}
    runs = [[m for m, token in processor.placeholder_ids.items() if token in row] for row in ids.tolist()]
    assert [set(run) for run in runs] == [set(modalities) for _, modalities in QUESTIONS]
    assert (ids == processor.placeholder_ids["image"]).sum(1).tolist() == [3, 3, 0, 3]
    assert inputs["image_values"].shape == (3, 3, 224, 224) and inputs["audio_values"].shape[0] == 2 and inputs["imu_values"].shape == (1, 6, 200)
    assert "is the sound of ?" in " ".join(processor.decode(ids[1], skip_special_tokens=True).split())


def test_the_processor_alone_gives_what_the_conversation_gives(files, bundle, inputs):
    _, processor, model = bundle
    rendered = processor.apply_chat_template([conversation(files, q, m) for q, m in QUESTIONS], add_generation_prompt=True)
    picture, tone, swing = (path(files, m) for m in MODALITIES)
    ways = [processor(rendered, images=[picture] * 3, audios=[tone] * 2, imus=swing),
            processor(text=rendered, images=[[picture], [picture], [], [picture]], audio=[[], tone.open("rb"), [], [tone.read_bytes()]], imu=[swing]),
            model.processor(rendered, images=[Image.open(picture)] * 3, audios=[str(tone)] * 2, imus=np.load(swing))]
    for way in ways:
        assert set(way) == set(inputs)
        assert all(torch.equal(way[name], inputs[name]) for name in inputs)


def test_media_are_introduced_as_in_training_unless_a_text_runs_around_them(files, bundle):
    _, processor, _ = bundle
    picture, tone, swing = ({"type": m, "path": path(files, m)} for m in MODALITIES)

    def content(*parts):
        parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
        return processor.apply_chat_template([{"role": "user", "content": parts}]).removeprefix("<s>user\n").removesuffix("</s>\n")

    assert content(picture, "what ?") == "the picture is <image> .\nwhat ?"
    assert content("what ?", tone, swing) == "what ?\nthe sound is <audio> .\n<imu>"
    assert content("is ", tone, " the sound of ", picture, " ?") == "is <audio> the sound of <image> ?"
    assert content("is this ", tone, "?") == "is this <audio>\n?"


@pytest.mark.parametrize("options", [
    {"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}, {"do_sample": True, "temperature": 2.0, "top_k": 9}])
def test_generation_options_are_those_of_transformers(bundle, inputs, options):
    """Against the LLM's own generate on the same embeddings."""
    _, _, model = bundle
    torch.manual_seed(5)
    ids = model.generate(**inputs, max_new_tokens=6, **options)
    embedded = model._embed(inputs["input_ids"], {m: inputs[f"{m}_values"] for m in MODALITIES})
    torch.manual_seed(5)
    expected = model.anymal.llm.generate(inputs_embeds=embedded, attention_mask=inputs["attention_mask"], max_new_tokens=6,
                                         **{"eos_token_id": model.anymal.end_of_turn, "pad_token_id": model.anymal.end_of_turn, **options})
    assert torch.equal(ids, expected)
    assert len(ids) == len(QUESTIONS) * options.get("num_return_sequences", 1)
    if options.get("do_sample"):
        torch.manual_seed(6)
        assert not torch.equal(ids, model.generate(**inputs, max_new_tokens=6, **options))


def test_a_generation_config_streamer_and_stopping_criteria_work(files, bundle, inputs):
    from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList
    from transformers.generation.streamers import BaseStreamer

    _, processor, model = bundle
    greedy = model.generate(**inputs, max_new_tokens=6)
    assert torch.equal(model.generate(**inputs, generation_config=GenerationConfig(max_new_tokens=6)), greedy)

    class Collector(BaseStreamer):
        def __init__(self):
            self.tokens, self.ended = [], False

        def put(self, value):
            self.tokens += value.flatten().tolist()

        def end(self):
            self.ended = True

    class AtThree(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return torch.full((len(input_ids),), input_ids.shape[1] >= 3)

    one = processor.apply_chat_template(conversation(files, *QUESTIONS[1]), tokenize=True, return_dict=True, add_generation_prompt=True)
    collector = Collector()
    ids = model.generate(**one, max_new_tokens=6, streamer=collector)
    assert collector.ended and collector.tokens == ids[0].tolist()
    assert model.generate(**one, max_new_tokens=6, stopping_criteria=StoppingCriteriaList([AtThree()])).shape[1] == 3


def test_the_loss_is_anymals_and_reaches_the_projectors(files, bundle):
    _, processor, model = bundle
    asked = [conversation(files, question, modalities) for question, modalities in QUESTIONS]
    targets = [model.anymal.target_ids(text) for text in ("red", "yes .", "a cat", "no no")]
    one = [processor.apply_chat_template(c, tokenize=True, return_dict=True, add_generation_prompt=True) for c in asked]
    longest = max(batch["input_ids"].shape[1] + len(target) for batch, target in zip(one, targets, strict=True))
    ids, mask, labels = (torch.full((len(one), longest), fill) for fill in (2, 0, -100))
    for row, (batch, target) in enumerate(zip(one, targets, strict=True)):
        whole = torch.cat([batch["input_ids"][0], torch.tensor(target)])
        ids[row, -len(whole):], mask[row, -len(whole):], labels[row, -len(target):] = whole, 1, torch.tensor(target)
    values = processor.apply_chat_template(asked, tokenize=True, return_dict=True)
    values = {name: value for name, value in values.items() if name.endswith("_values")}
    model.anymal.projectors.requires_grad_(True)
    out = model(input_ids=ids, attention_mask=mask, labels=labels, **values)
    prompts = [Request(question, [(m, path(files, m)) for m in modalities]) for question, modalities in QUESTIONS]
    pieces = [model.anymal.tokenize(Prompt(messages_of(model.anymal, request), encoded(model.anymal, request.media))) for request in prompts]
    expected = model.anymal.token_losses(pieces, targets).values.mean()
    assert out.loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert out.logits.shape == (*ids.shape, len(processor.tokenizer))
    out.loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.anymal.projectors.parameters())
    assert all(p.grad is None for p in model.anymal.llm.parameters())
    model.anymal.projectors.zero_grad(set_to_none=True)
    model.anymal.projectors.requires_grad_(False)
    everything = model(input_ids=ids, attention_mask=mask, labels=ids, **values).loss
    assert torch.isfinite(everything) and everything.item() != pytest.approx(out.loss.item())


def test_saving_gives_the_same_bundle_byte_for_byte(bundle, tmp_path):
    folder, processor, model = bundle
    model.save_pretrained(tmp_path / "a")
    processor.save_pretrained(tmp_path / "a")
    model.save_pretrained(tmp_path / "a")
    processor.save_pretrained(tmp_path / "deep" / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "deep" / "b") == contents(folder)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "notes.txt").write_text("mine")
    for part in (model, processor):
        with pytest.raises(BundleError, match="holds something else already"):
            part.save_pretrained(tmp_path / "c")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a", "c", "deep"] and [e.name for e in (tmp_path / "c").iterdir()] == ["notes.txt"]


def test_a_projector_that_was_trained_on_makes_another_bundle_that_says_so(files, bundle, inputs, tmp_path):
    folder, processor, _ = bundle
    model = AnyMALForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        model.anymal.projectors["audio"].linear.bias += 1.0
    model.save_pretrained(tmp_path / "changed")
    processor.save_pretrained(tmp_path / "changed")
    document = read_bundle(tmp_path / "changed")
    assert document["provenance"] == {"changed": ["audio"], "changed_from": bundle_sha256(folder)}
    assert "figures of that bundle do not hold" in (tmp_path / "changed" / "README.md").read_text()
    again = AnyMALForConditionalGeneration.from_pretrained(tmp_path / "changed")
    assert torch.equal(again.generate(**inputs, max_new_tokens=6), model.generate(**inputs, max_new_tokens=6))
    before, after = contents(folder), contents(tmp_path / "changed")
    assert {name for name in before if before[name] != after[name]} == {
        "README.md", "bundle.json", "manifest.json", "audio/manifest.json", "audio/projector.safetensors"}
    with pytest.raises(BundleError, match="holds something else already"):
        model.save_pretrained(folder)


@pytest.mark.slow
def test_another_process_needs_the_bundle_only(files, bundle, inputs, tiny_model, tmp_path):
    """The LLM and the encoder come through the asset cache; the trained encoders lie in the bundle."""
    folder, processor, model = bundle
    program = """
import json, sys
from anymal.model.hf import AnyMALForConditionalGeneration, AnyMALProcessor
processor, model = AnyMALProcessor.from_pretrained(sys.argv[1]), AnyMALForConditionalGeneration.from_pretrained(sys.argv[1])
conversation = json.loads(sys.argv[2])
inputs = processor.apply_chat_template(conversation, tokenize=True, return_dict=True, add_generation_prompt=True)
print(json.dumps(model.generate(**inputs, max_new_tokens=6)[0].tolist()))
"""
    asked = conversation(files, *QUESTIONS[1])
    environment = {**os.environ, "ANYMAL_CACHE": str(tiny_model / "cache"), "PYTHONPATH": str(Path(__file__).parent.parent.parent)}
    cache_assets(tiny_model)
    run = subprocess.run([sys.executable, "-c", program, str(folder), json.dumps(asked)], cwd=tmp_path, env=environment, capture_output=True,
                         text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
    one = processor.apply_chat_template(asked, tokenize=True, return_dict=True, add_generation_prompt=True)
    assert json.loads(run.stdout) == model.generate(**one, max_new_tokens=6)[0].tolist()


def cache_assets(root):
    """Put the tiny assets where another machine's cache would have them."""
    import hashlib
    import shutil

    from anymal.data.assets import FORMAT

    for folder in (root / "data" / "assets").iterdir():
        document = json.loads((folder / "asset.json").read_text())
        key = hashlib.sha256(json.dumps({"format": FORMAT, **document}, sort_keys=True).encode()).hexdigest()
        shutil.copytree(folder, root / "cache" / "assets" / key, dirs_exist_ok=True)


def picture_part(files, **part):
    return [{"role": "user", "content": [{"type": "image", "path": path(files, "image"), **part}, {"type": "text", "text": "what ?"}]}]


@pytest.mark.parametrize(("call", "said"), [
    (lambda p, f: p(["<s><image></s>"], images=[]), r"placeholders are \['image'\] but the inputs given are none"),
    (lambda p, f: p(["<image>", "a"], images=[path(f, "image")] * 2), r"placeholders are none but the inputs given are \['image'\]"),
    (lambda p, f: p(["<image>", "a"], images=[[], [path(f, "image")]]), r"placeholders are \['image'\] but the inputs given are none"),
    (lambda p, f: p(["<image>", "a"], images=[[path(f, "image")]]), "images: 1 lists of media for 2 texts"),
    (lambda p, f: p("<image> a", images="none.png"), r"none\.png: no such file"),
    (lambda p, f: p("<image> a", images=7), "image 0: cannot be read from a int"),
    (lambda p, f: p("<image> a", images=b"hello"), "image 0: cannot be read as a picture"),
    (lambda p, f: p("<image> a", images=np.array([None])), "image 0: cannot be read from a ndarray"),
    (lambda p, f: p("<video> a", videos=path(f, "video")), "the argument 'videos': this model takes text and audios, images, imus"),
    (lambda p, f: p(["a", "a b"], padding=False), "padding = False"),
    (lambda p, f: p("a", return_tensors="np"), "return_tensors = np"),
    (lambda p, f: p.apply_chat_template(picture_part(f, type="video")), "no projector for 'video'; it reads audio, image, imu"),
    (lambda p, f: p.apply_chat_template(picture_part(f, path=None)), "message 0, part 0: needs its image as exactly one of"),
    (lambda p, f: p.apply_chat_template(picture_part(f, base64="aaaa")), "message 0, part 0: needs its image as exactly one of"),
    (lambda p, f: p.apply_chat_template(picture_part(f, path=None, base64="?")), "message 0, part 0: its 'base64' cannot be decoded"),
    (lambda p, f: p.apply_chat_template(picture_part(f, type="text")), "message 0, part 0: must be"),
    (lambda p, f: p.apply_chat_template([{"role": "user"}]), "message 0: needs a 'role'"),
])  # fmt: skip
def test_mistakes_are_named(files, bundle, call, said):
    with pytest.raises(AnymalError, match=said) as caught:
        call(bundle[1], files)
    assert "\n" not in str(caught.value)


def test_media_that_do_not_fit_the_ids_are_refused(files, bundle, inputs):
    _, _, model = bundle
    with pytest.raises(DataError, match="hold 9 tokens of image, but 2 of image_values take 6"):
        model.generate(**{**inputs, "image_values": inputs["image_values"][:2]})
    with pytest.raises(DataError, match="video_values: this model has no projector for 'video'"):
        model(**inputs, video_values=inputs["image_values"])
    with pytest.raises(DataError, match="more than the 2048 that the model can read"):
        model.generate(**inputs, max_new_tokens=2048)


def test_a_base64_part_is_the_file(files, bundle):
    import base64

    _, processor, _ = bundle
    text = base64.b64encode(path(files, "image").read_bytes()).decode()
    options = {"tokenize": True, "return_dict": True}
    one, other = (processor.apply_chat_template(c, **options) for c in (picture_part(files), picture_part(files, path=None, base64=text)))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_damaged_and_missing_bundles_are_refused_by_both(files, tmp_path):
    for load in (AnyMALProcessor.from_pretrained, AnyMALForConditionalGeneration.from_pretrained, load_bundle):
        with pytest.raises(BundleError, match="no such bundle folder"):
            load(tmp_path / "none")
