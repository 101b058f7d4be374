import pytest
import torch

from anymal.errors import ConfigError
from anymal.model.projectors import build_projector

LINEAR = {"media_dim": 6, "media_tokens": 8, "dim": 12, "tokens": 4, "output_scale": 0.1}
RESAMPLER = LINEAR | {"layers": 1, "heads": 3, "pooled_latents": True, "layout_rank": 0, "media_positions": True, "media_frames": 1}


def media(count=2, seed=0):
    return torch.randn(count, 8, 6, generator=torch.Generator().manual_seed(seed))


def resampler(**arguments):
    torch.manual_seed(0)
    return build_projector("resampler", RESAMPLER | arguments)


def test_linear_tokens_are_averages_over_time():
    """Neighbours are averaged and then projected; projecting first gives the same, for the layer is linear."""
    projector, features = build_projector("linear", LINEAR), media()
    out = projector(features)
    assert out.shape == (2, 4, 12)
    assert torch.allclose(out, projector.linear(features.unflatten(1, (4, 2)).mean(2)), atol=1e-6)
    swapped = features[:, [1, 0, *range(2, 8)]]  # within one average
    assert torch.allclose(projector(swapped), out, atol=1e-6)
    moved = projector(features.flip(1))
    assert torch.allclose(moved, out.flip(1), atol=1e-6)
    assert not torch.allclose(moved, out, atol=1e-3)


def test_linear_keeps_tokens_that_are_as_many_as_asked_for():
    projector, features = build_projector("linear", LINEAR | {"tokens": 8}), media()
    assert torch.equal(projector(features), projector.linear(features))
    with pytest.raises(ConfigError, match="projector tokens = 9: a linear projector can give at most the encoder's 8 tokens"):
        build_projector("linear", LINEAR | {"tokens": 9})


def test_output_scale_is_that_of_the_llm():
    features = torch.nn.functional.layer_norm(torch.randn(64, 8, 6), (6,))
    for projector in (build_projector("linear", LINEAR | {"tokens": 8}), resampler()):
        with torch.no_grad():
            assert projector(features).square().mean().sqrt() == pytest.approx(0.1, rel=0.5)


def swap_frames(features):
    return features.unflatten(1, (2, 4)).flip(1).flatten(1, 2)


def test_the_order_of_frames_matters_only_with_their_times():
    """Two frames of four tokens: without times the resampler sees a bag of frames."""
    features = media()
    timeless, timed = resampler(pooled_latents=False, media_positions=False), resampler(pooled_latents=False, media_frames=2)
    assert torch.allclose(timeless(features), timeless(swap_frames(features)), atol=1e-5)
    assert timed.times.shape == (2, 1, 12)
    with torch.no_grad():
        timed.times.normal_()
    assert not torch.allclose(timed(features), timed(swap_frames(features)), atol=1e-3)
    assert timed.positions.shape == (4, 12)  # of a frame's tokens, the same in each frame
    with torch.no_grad():
        timed.times.zero_()
    assert torch.allclose(timed(features), timed(swap_frames(features)), atol=1e-5)


def test_a_resampler_may_be_narrower_than_the_llm():
    narrow, wide = resampler(width=6), resampler()
    assert narrow(media()).shape == wide(media()).shape == (2, 4, 12)
    assert {tuple(layer.to_q.weight.shape) for layer in narrow.attention} == {(6, 6)}
    with pytest.raises(ConfigError, match="projector heads = 3: projector width = 8 is no multiple of it; choose a divisor"):
        resampler(width=8)


def only_the_latents(**arguments):
    """A resampler whose attention and feed-forward add nothing."""
    projector = resampler(media_positions=False, **arguments)
    with torch.no_grad():
        for weight in (*projector.attention.parameters(), *projector.feed_forward.parameters()):
            weight.zero_()
    return projector


def test_pooled_latents_carry_the_mean_and_the_layout_carries_places():
    features, other = media(), media(seed=1)
    bare, pooled, layout = only_the_latents(pooled_latents=False), only_the_latents(), only_the_latents(pooled_latents=False, layout_rank=2)
    assert torch.equal(bare(features), bare(other))
    assert not torch.allclose(pooled(features), pooled(other), atol=1e-3)
    assert torch.allclose(pooled(features), pooled(features.flip(1)), atol=1e-5)
    assert not torch.allclose(layout(features), layout(features.flip(1)), atol=1e-3)
