"""Batches of instructions: prompts as they are asked, mixing, and conversations of several turns."""

import pytest
import torch

from anymal.data.features import FeatureStore
from anymal.data.instructions import Instruction, MediumName, read_instructions
from anymal.errors import DataError
from anymal.model.anymal import load_anymal
from anymal.model.prompt import Medium, Prompt
from anymal.training.instructions import InstructionControls, InstructionData, MediaFeatures, instruction_prompt
from tests.tiny import make_assets, make_checkpoint, make_features, make_instructions

TOY = {"asset": "tiny-encoder", "kind": "efficientnet_lite", "settings": {}, "tokens": 5, "dim": 16}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("instructions")
    make_assets(folder / "assets")
    for modality in ("image", "imu"):
        make_checkpoint(folder / "checkpoints" / modality, modality, encoder=TOY)
        make_features(folder / "features" / modality, {"train": 30, "val": 9}, modality=modality)
    return folder


@pytest.fixture(scope="module")
def model(root):
    return load_anymal(root / "assets", [root / "checkpoints" / name for name in ("image", "imu")], dtype="float32")


@pytest.fixture(scope="module")
def media(root):
    return MediaFeatures({modality: FeatureStore(root / "features" / modality, "train") for modality in ("image", "imu")})


def instruction(*turns, media=(), origin="human", name="x"):
    return Instruction(name, tuple(MediumName(m, k) for m, k in media), turns, origin, "k", "s", "l")


IMAGE, IMU = ("image", "train-0000.png"), ("imu", "train-0001.npy")


def test_a_question_is_trained_exactly_as_it_is_asked(model, media):
    told = instruction(("<image>\nwhat is it ?", "red"), media=[IMAGE])
    shown = [media.get("image", "train-0000")]
    (exchange,) = model.tokenize_dialogue(instruction_prompt(model, told, shown))
    asked = model.tokenize(Prompt(model.templates["image"]["question"].messages(["image"], "what is it ?"), shown))
    assert exchange.prompt.texts == asked.texts
    assert list(exchange.answer) == model.target_ids("red")
    behind = instruction(("what is it ?\n<image>", "red"), media=[IMAGE])
    assert instruction_prompt(model, behind, shown).messages[0] == instruction_prompt(model, told, shown).messages[0]


def test_placeholders_inside_a_sentence_stay_there(model, media):
    told = instruction(("is <imu> in <image> ?", "no"), media=[IMU, IMAGE])
    prompt = instruction_prompt(model, told, [media.get("imu", "train-0001"), media.get("image", "train-0000")])
    assert "is <imu> in <image> ?" in prompt.messages[0]["content"]
    assert instruction_prompt(model, instruction(("why ?", "yes")), []).messages[0]["content"] == "why ?"


def test_each_turn_is_scored_given_all_before_it(model, media):
    """Against the LLM's own loss over the whole conversation, whose labels are the answers only."""
    told = instruction(("<image>\nwhat is it ?", "a red apple"), ("and is there <imu> ?", "yes ."), media=[IMAGE, IMU])
    shown = [media.get("image", "train-0000"), media.get("imu", "train-0001")]
    prompt = instruction_prompt(model, told, shown)
    dialogue = model.tokenize_dialogue(prompt)
    text = model.tokenizer.apply_chat_template([dict(m) for m in prompt.messages], tokenize=False)
    assert text.removesuffix("\n") == "".join(
        "<x>".join(model.tokenizer.decode(t) for t in turn.prompt.texts) + model.tokenizer.decode(turn.answer) for turn in dialogue
    ).replace("<x>", "<image>", 1).replace("<x>", "<imu>").removesuffix("\n")
    embed = model.llm.get_input_embeddings()
    parts, labels, waiting = [], [], iter(shown)
    for turn in dialogue:
        for place, piece in enumerate(turn.prompt.texts):
            parts.append(embed(torch.tensor(piece, dtype=torch.long)))
            if place < len(turn.prompt.media):
                medium = next(waiting)
                parts.append(model.projectors[medium.modality](medium.features.float()[None])[0])
        labels += [-100] * (sum(map(len, parts)) - len(labels))
        parts.append(embed(torch.tensor(turn.answer)))
        labels += turn.answer
    expected = model.llm(inputs_embeds=torch.cat(parts)[None], labels=torch.tensor([labels])).loss
    found = model.dialogue_losses([dialogue]).values
    assert len(found) == sum(len(turn.answer) for turn in dialogue)
    assert found.mean().item() == pytest.approx(expected.item(), abs=1e-5)


def test_losses_do_not_depend_on_company(model, media):
    told = [instruction(("<image>\nwhat ?", "red"), ("why so ?", "a green dog"), media=[IMAGE]), instruction(("yes ?", "no")),
            instruction(("<imu>\nand <image> ?", "a motion of a wave"), media=[IMU, IMAGE])]
    shown = [[media.get(m.modality, m.key) for m in entry.media] for entry in told]
    dialogues = [model.tokenize_dialogue(instruction_prompt(model, entry, found)) for entry, found in zip(told, shown, strict=True)]
    together = model.dialogue_losses(dialogues).values
    alone = torch.cat([model.dialogue_losses([dialogue]).values for dialogue in dialogues])
    assert torch.allclose(together, alone, atol=1e-5)
    model.shares_prefixes = False
    assert torch.allclose(model.dialogue_losses(dialogues).values, together, atol=1e-5)
    model.shares_prefixes = True


def test_origins_are_mixed_by_weight_and_batches_depend_on_seed_and_step_only(root, model, media, tmp_path):
    told = [entry for origin in ("human", "template") for entry in read_instructions(make_instructions(tmp_path / origin, origin=origin), "train")]

    def batches(seed, steps):
        data = InstructionData(model, media, told, weights={"human": 3, "template": 1, "synthetic": 0}, batch_size=4, seed=seed)
        return [[(turn.answer, float(turn.prompt.media[0].features.sum())) for dialogue in data.batch(step).dialogues for turn in dialogue]
                for step in steps]

    assert batches(1, range(30))[17:] == batches(1, range(17, 30))
    assert batches(1, range(5)) != batches(2, range(5))
    data = InstructionData(model, media, told, weights={"human": 3, "template": 1}, batch_size=4, seed=0)
    assert data._counts == {"human": 24, "template": 8}


def test_every_shuffled_medium_is_another_one(root, model, tmp_path):
    media = MediaFeatures({modality: FeatureStore(root / "features" / modality, "val") for modality in ("image", "imu")})
    told = read_instructions(make_instructions(tmp_path / "pairs", modalities=("image", "imu")), "val")
    controls = InstructionControls(model, media, told, samples=6, batch_size=4, seed=0)
    for entry, others in zip(controls._instructions, controls._others, strict=True):
        assert all(medium.key != other for medium, other in zip(entry.media, others, strict=True))
    losses = controls.losses()
    assert set(losses) == {"right", "shuffled", "blank"}
    with pytest.raises(DataError, match="placeholders"):
        model.tokenize_dialogue(Prompt([{"role": "user", "content": "why ?"}, {"role": "assistant", "content": "no"}],
                                       [Medium("image", media.get("image", "val-0000").features)]))
