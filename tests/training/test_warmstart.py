import pytest
import torch

from anymal.data.features import FeatureStore
from anymal.model.anymal import AnyMAL
from anymal.model.llm import load_llm
from anymal.model.projectors import build_projector
from anymal.training.warmstart import warm_start
from tests.tiny import make_features, make_llm

ARGUMENTS = {"media_dim": 16, "media_tokens": 5, "dim": 32, "tokens": 3, "layers": 1, "heads": 4, "pooled_latents": True, "layout_rank": 0,
             "media_positions": True, "media_frames": 1, "output_scale": 0.1}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    root = tmp_path_factory.mktemp("warm")
    store = FeatureStore(make_features(root / "features", {"train": 30}), "train")
    llm, tokenizer = load_llm(make_llm(root / "llm"), dtype="float32", quantization="none", attention="eager")
    return store, llm, tokenizer


def started(parts, steps, seed=0):
    store, llm, tokenizer = parts
    torch.manual_seed(0)
    projector = build_projector("resampler", ARGUMENTS)
    model = AnyMAL(llm, tokenizer, {"image": projector}, templates={}, metadata={}, encoder_folders={})
    warm_start(model, projector, store, list(range(len(store))), steps=steps, batch_size=8, learning_rate=0.01, seed=seed)
    return model, projector


def test_the_word_of_a_picture_becomes_the_nearest_embedding(parts):
    store, llm, _ = parts
    model, projector = started(parts, 80)
    words = {colour: model.target_ids(f" a {colour} picture .")[:-1] for colour in ("red", "green", "blue")}
    own = {colour: next(t for t in ids if all(t not in words[o] for o in words if o != colour)) for colour, ids in words.items()}
    table = llm.get_input_embeddings().weight
    picked = torch.nn.functional.normalize(table[list(own.values())] - table.mean(0), dim=-1)
    with torch.no_grad():
        tokens = torch.nn.functional.normalize(projector(store.features(list(range(6))).float()), dim=-1)
    nearest = (tokens @ picked.T).amax(1).argmax(1).tolist()
    assert [list(own)[i] for i in nearest] == ["red", "green", "blue"] * 2


def test_no_steps_leave_the_projector_alone(parts):
    torch.manual_seed(0)
    fresh = build_projector("resampler", ARGUMENTS).state_dict()
    _, projector = started(parts, 0)
    assert all(torch.equal(value, fresh[name]) for name, value in projector.state_dict().items())


def test_it_is_the_same_twice_and_moves_no_llm_weight(parts):
    _, llm, _ = parts
    before = llm.get_input_embeddings().weight.clone()
    first, second = started(parts, 5)[1].state_dict(), started(parts, 5)[1].state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(before, llm.get_input_embeddings().weight)
