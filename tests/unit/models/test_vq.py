"""The film tokenizer: codes and films, and published weights by their other names."""

import pytest
import torch

from g2g_utils.config import VqSettings
from g2g_utils.models import vq

SMALL = VqSettings.model_validate({"codes": 8, "code_width": 4, "channels": [8, 16]})


def test_films_become_codes_and_codes_films():
    tokenizer = vq.build(SMALL, 0).eval()
    films = torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    codes = vq.encode(tokenizer, films, batch=2)
    assert codes.shape == (3, 16) and int(codes.max()) < 8 and SMALL.pixels == 8
    drawn = vq.decode(tokenizer, codes, batch=2)
    assert drawn.shape == films.shape and 0 <= float(drawn.min()) and float(drawn.max()) <= 1
    latents = tokenizer.encode(vq.vae_input(tokenizer, films)).latents
    torch.testing.assert_close(drawn, vq.vae_output(tokenizer, tokenizer.decode(latents).sample))


@pytest.mark.parametrize(
    ("codes", "said"),
    [([[0] * 15 + [8]], "code 8 is not in the book of 8"), ([[0] * 15], "square")],
)
def test_codes_that_make_no_film_are_one_line(codes, said):
    with pytest.raises(ValueError, match=said):
        vq.decode(vq.build(SMALL, 0), torch.tensor(codes))


def taming_name(name, levels):
    """The published name of a weight, told from diffusers' structure alone."""
    part, rest = name.split(".", 1)
    if part not in ("encoder", "decoder"):
        return name
    if rest.startswith("mid_block."):
        _, kind, number, *tail = rest.split(".")
        place = "mid.attn_1" if kind == "attentions" else f"mid.block_{int(number) + 1}"
    elif rest.startswith(("down_blocks.", "up_blocks.")):
        _, level, kind, number, *tail = rest.split(".")
        way = "down" if part == "encoder" else "up"
        at = int(level) if way == "down" else levels - 1 - int(level)
        if kind.endswith("samplers"):
            place = f"{way}.{at}.{kind.removesuffix('rs')}"
        else:
            place = f"{way}.{at}.{'attn' if kind == 'attentions' else 'block'}.{number}"
    else:
        return name.replace("conv_norm_out", "norm_out")
    names = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out": "proj_out",
             "conv_shortcut": "nin_shortcut"}  # fmt: skip
    first = names.get(tail[0], tail[0])
    tail = tail[2:] if tail[0] == "to_out" else tail[1:]
    return ".".join([part, place, first, *tail])


def test_published_weights_load_by_their_names():
    with vq.initialised(0):
        theirs = vq.build_published(8, 4, scale=16)
    with vq.initialised(1):
        own = vq.build_published(8, 4, scale=16)
    state = {taming_name(k, 5): v for k, v in theirs.state_dict().items()}
    attention = [k for k in state if ".q." in k or ".proj_out." in k]
    state |= {k: state[k][..., None, None] for k in attention if state[k].ndim == 2}  # as 1x1
    assert {"encoder.down.0.block.0.norm1.weight", "decoder.up.4.upsample.conv.weight",
            "encoder.mid.attn_1.q.weight", "decoder.norm_out.weight",
            "encoder.down.4.attn.0.norm.weight", "encoder.down.2.block.0.nin_shortcut.weight",
            "quantize.embedding.weight"} <= set(state)  # fmt: skip
    vq.from_taming(own, state | {"loss.discriminator.weight": torch.zeros(1)})
    for name, weight in own.state_dict().items():
        assert torch.equal(weight, theirs.state_dict()[name]), name


def test_a_checkpoint_of_another_shape_is_named():
    own = vq.build_published(8, 4, scale=16)
    state = {taming_name(k, 5): v for k, v in own.state_dict().items()}
    with pytest.raises(ValueError, match=r"lacks 1 weights, first quant_conv\.bias"):
        vq.from_taming(own, {k: v for k, v in state.items() if k != "quant_conv.bias"})
    with pytest.raises(ValueError, match="strange: no such weight"):
        vq.from_taming(own, state | {"strange": torch.zeros(1)})


def test_a_published_checkpoint_is_read_without_code(tmp_path):
    settings = VqSettings.model_validate({"codes": 8, "code_width": 4, "channels": [8]})
    with vq.initialised(0):
        theirs = vq.build_published(8, 4, scale=16)
    state = {taming_name(k, 5): v for k, v in theirs.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "last.ckpt")
    own = vq.read_taming(tmp_path / "last.ckpt", settings)
    film = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(vq.encode(own, film), vq.encode(theirs.eval(), film))
    torch.save({"state_dict": state, "settings": settings}, tmp_path / "odd.ckpt")
    with pytest.raises(ValueError, match="not tensors alone"):
        vq.read_taming(tmp_path / "odd.ckpt", settings)
    with pytest.raises(ValueError, match="no file"):
        vq.read_taming(tmp_path / "none.ckpt", settings)
