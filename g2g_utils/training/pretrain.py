"""Pre-training of the miniature's components: VAE, CXR-BERT-like and CLIP-like text encoders.

`paper` and `open` load published weights instead. Components trained here are saved in the same
folder format.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    BatchEncoding,
    BertConfig,
    BertModel,
    BertTokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from g2g_utils import models, runs
from g2g_utils.config import Encoder, Vae
from g2g_utils.data.phantoms import glyphs
from g2g_utils.models.image_text import Heads, ImageBranch
from g2g_utils.training.fit import Modules, Options, StepLoss, fit, seeded

LOCAL_BATCH = 16  # pairs of a batch in the local contrast, whose cost grows with their square


def train_vae(images: Tensor, config: Vae, folder: Path, seed: int) -> dict[str, Any]:
    """Train a small AutoencoderKL on images [n, 1, S, S] in [0, 1]; save it and its latent scale.

    Returns:
        Its metrics: the peak signal-to-noise ratio in dB on 64 of the training images (notebook 01
        measures it on test images).
    """
    with models.initialised(seed):
        vae = models.build_vae(config).train()

    def loss(step: int, modules: Modules, accelerator: Accelerator) -> Tensor:
        generator = seeded(seed, 10, step)
        ids = torch.randint(len(images), (config.batch_size,), generator=generator)
        target = models.vae_input(vae, images[ids])
        posterior = modules["vae"].encode(target).latent_dist
        eps = torch.randn(posterior.mean.shape, generator=generator)
        output = modules["vae"].decode(posterior.mean + posterior.std * eps).sample.float()
        error: Tensor = F.mse_loss(output, target) + 0.3 * F.l1_loss(output, target)
        divergence: Tensor = posterior.kl().mean()
        return error + config.kl_weight * divergence

    options = Options(
        config.steps,
        warmup=config.steps // 20,
        ema=0.99,
        checkpoint_every=250,
        mixed_precision=config.mixed_precision,
        cpu=True,
    )
    groups = [{"params": list(vae.parameters()), "lr": config.learning_rate}]
    ema = fit("VAE", {"vae": vae}, groups, loss, folder, options, averaged="vae")
    if ema is not None:
        ema.copy_to(vae.parameters())
    vae.eval()
    with torch.no_grad():
        latents = vae.encode(models.vae_input(vae, images[:256])).latent_dist.mean
        seen = images[-64:]
        mse = F.mse_loss(models.vae_output(vae, vae(models.vae_input(vae, seen)).sample), seen)
    vae.register_to_config(scaling_factor=round(1 / float(latents.std()), 5))
    vae.save_pretrained(folder)
    psnr = float(-10 * torch.log10(mse))
    return {"metrics": {"psnr_db": round(psnr, 2)}}


def contrast(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    """Symmetric InfoNCE of matching rows of a and b [b, d]."""
    logits = scale.exp().clamp(max=100) * F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T
    target = torch.arange(len(a), device=a.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def local_contrast(words: Tensor, mask: Tensor, patches: Tensor, sharp: float = 5.0) -> Tensor:
    """Local image-text contrast as in GLoRIA: every word attends over patches.

    The score of text i and image j is the log-mean-exp over words of the cosine between the word
    and its attended patches.

    Args:
        words: [b, n, d].
        mask: [b, n], true for real words.
        patches: [b, d, h, w].
    """
    w = F.normalize(words, dim=-1)
    p = F.normalize(patches.flatten(2), dim=1)  # b d hw
    similarity = torch.einsum("ind,jdp->ijnp", w, p)  # texts images words patches
    attention = (similarity * 10).softmax(-1)
    context = F.normalize(torch.einsum("ijnp,jdp->ijnd", attention, p), dim=-1)
    cosine = torch.einsum("ijnd,ind->ijn", context, w)
    cosine = (cosine * sharp).masked_fill(~mask[:, None], -1e4)
    score = (cosine.logsumexp(-1) - mask.sum(-1, keepdim=True).float().log()) * 2.0
    target = torch.arange(len(w), device=w.device)
    return (F.cross_entropy(score, target) + F.cross_entropy(score.T, target)) / 2


def masked_language_loss(
    bert: PreTrainedModel,
    heads: Heads,
    ids: Tensor,
    mask: Tensor,
    mask_id: int,
    special: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """Cross-entropy of recovering 20 % masked tokens. Output embeddings are tied to the input."""
    chosen = (torch.rand(ids.shape, generator=generator) < 0.2) & ~special & mask.bool()
    hidden = bert(input_ids=ids.masked_fill(chosen, mask_id), attention_mask=mask).last_hidden_state
    embeddings = bert.get_input_embeddings().weight
    logits: Tensor = heads.masked(hidden[chosen]) @ embeddings.T + heads.bias
    if not chosen.any():
        return logits.sum() * 0
    return F.cross_entropy(logits, ids[chosen])


def word_tokenizer(texts: list[str], folder: Path, max_length: int) -> PreTrainedTokenizerBase:
    """A BERT word-piece tokenizer: the corpus' words, and letters for all others."""
    counts = Counter(w for text in texts for w in re.findall(r"[a-z]+|\d|[^\w\s]", text.lower()))
    letters = [c for c in "abcdefghijklmnopqrstuvwxyz0123456789"]
    words = [w for w, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = dict.fromkeys([*specials, *words, *letters, *(f"##{c}" for c in letters), *".,-/()"])
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = BertTokenizer(vocab=vocabulary, do_lower_case=True, model_max_length=max_length)
    tokenizer.save_pretrained(folder)
    return tokenizer


def byte_tokenizer(texts: list[str], folder: Path, max_length: int) -> PreTrainedTokenizerBase:
    """A CLIP byte-pair tokenizer trained on `texts` and everyday words; others fall into pieces."""
    specials = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    base = CLIPTokenizer(vocab=specials, merges=[], model_max_length=max_length)
    alphabet = sorted(ByteLevel.alphabet())
    ends = [f"{letter}</w>" for letter in alphabet]  # named, for the trainer numbers them at random
    characters = " ".join(chr(c) for c in range(33, 127))  # each also as a word of its own
    trained = base.train_new_from_iterator(
        [text.lower() for text in texts] + [*glyphs.vocabulary(), characters] * 2,
        vocab_size=2000 + len(ends),
        new_special_tokens=ends,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    model = json.loads(trained.backend_tokenizer.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer = CLIPTokenizer(vocab=model["vocab"], merges=merges, model_max_length=max_length)
    tokenizer.save_pretrained(folder)
    return tokenizer


def build_text_encoder(
    config: Encoder, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> PreTrainedModel:
    """Build an untrained BERT or CLIP text model of the configured sizes, without dropout."""
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": 4 * config.width,
        "max_position_embeddings": max_length,
    }
    if config.kind == "clip":
        ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
        return CLIPTextModel(CLIPTextConfig(**sizes, **ends))
    free = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertModel(BertConfig(**sizes, **free, pad_token_id=0), add_pooling_layer=False)


def pretrain_encoder(
    config: Encoder,
    images: Tensor,
    captions: list[str],
    folder: Path,
    *,
    max_length: int,
    seed: int,
) -> None:
    """Pre-train a text encoder on images [n, c, H, W] in [0, 1] and captions; save it in `folder`.

    `mlm_steps` of masked-language modelling alone come first (without them the joint objective
    hardly learns), then `steps` of the encoder's objective: "domain" = masked-language + global +
    local, "global" = masked-language + global, "mlm" = masked-language only, "generic" = global
    only, "random" = nothing. A trained image branch goes to biovil.safetensors, with the heads.
    """
    make = byte_tokenizer if config.kind == "clip" else word_tokenizer
    tokenizer = make(captions, folder, max_length)
    with models.initialised(seed):
        encoder = build_text_encoder(config, tokenizer, max_length)
        image = ImageBranch(images.shape[1], config.width)
        heads = Heads(config.width, len(tokenizer))
    modules = nn.ModuleDict({"text": encoder, "image": image, "heads": heads})
    total = 0 if config.objective == "random" else config.mlm_steps + config.steps
    if total:
        batch = models.tokenize(tokenizer, captions, max_length)
        loss = _encoder_loss(config, images, batch, tokenizer, seed)
        groups = [{"params": list(modules.parameters()), "lr": config.learning_rate}]
        options = Options(total, warmup=max(1, total // 20), checkpoint_every=200, cpu=True)
        fit(f"text encoder ({config.objective})", {"all": modules}, groups, loss, folder, options)
    modules.eval()
    encoder.save_pretrained(folder)
    if config.objective in ("random", "mlm"):
        return
    extra = {f"image.{k}": v for k, v in modules["image"].state_dict().items()}
    extra |= {f"heads.{k}": v for k, v in modules["heads"].state_dict().items()}
    with runs.atomic(folder / "biovil.safetensors") as temporary:
        save_file(extra, temporary)


def _encoder_loss(
    config: Encoder,
    images: Tensor,
    tokens: BatchEncoding,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
) -> StepLoss:
    """Loss of one pre-training step, by the encoder's objective."""
    ids, mask = tokens["input_ids"], tokens["attention_mask"]
    marks = torch.tensor(sorted(set(tokenizer.all_special_ids)))
    mask_id = tokenizer.mask_token_id

    def loss(step: int, modules: Modules, accelerator: Accelerator) -> Tensor:
        text, image, heads = (modules["all"][k] for k in ("text", "image", "heads"))
        generator = seeded(seed, 11, step)
        rows = torch.randint(len(ids), (config.batch_size,), generator=generator)
        longest = int(mask[rows].sum(1).max())
        x, m = ids[rows, :longest], mask[rows, :longest]
        special = torch.isin(x, marks)
        value = torch.zeros(())
        if config.objective != "generic":
            value = masked_language_loss(text, heads, x, m, mask_id, special, generator)
        if config.objective == "mlm" or step < config.mlm_steps:
            return value
        states = text(input_ids=x, attention_mask=m).last_hidden_state
        patches, pooled = image(augment(images[rows], generator))
        sentence = heads.sentence(sentence_state(states, x, m, config.kind))
        value = value + contrast(sentence, pooled, heads.log_scale)
        if config.objective == "domain":
            real, part = m.bool() & ~special, slice(LOCAL_BATCH)
            value = value + local_contrast(heads.word(states[part]), real[part], patches[part])
        return value

    return loss


def sentence_state(states: Tensor, ids: Tensor, mask: Tensor, kind: str) -> Tensor:
    """State [b, d] of the whole text: the start token of a BERT, the end token of a CLIP."""
    if kind == "bert":
        return states[:, 0]
    return states[torch.arange(len(states)), mask.sum(1) - 1]


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Vary brightness and contrast of images in [0, 1] at random; no flips (sides matter)."""
    gain, shift = torch.rand((2, len(images), 1, 1, 1), generator=generator).unbind()
    return ((images - 0.5) * (0.8 + 0.4 * gain) + 0.5 + 0.2 * (shift - 0.5)).clamp(0, 1)
