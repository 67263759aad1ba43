"""Tiny networks with random weights in the layouts of the real ones."""

import string
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from generation.quiet import quiet_libraries

_SEED = 17


@contextmanager
def _seeded() -> Iterator[None]:
    """Draws torch's random numbers from our seed without changing anybody else's."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        yield


def write_flux(folder: Path) -> None:
    """Writes a `FluxPipeline` folder: transformer, autoencoder, CLIP, T5, both tokenizers."""
    with quiet_libraries(), _seeded(), torch.no_grad():
        pipeline = _flux_pipeline()
        # Otherwise random text encoders would hardly move the picture.
        pipeline.transformer.time_text_embed.text_embedder.linear_1.weight *= 8
        pipeline.transformer.norm_out.linear.weight *= 8
        pipeline.save_pretrained(folder)


def _flux_pipeline() -> Any:
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        FluxPipeline,
        FluxTransformer2DModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    clip_tokenizer, t5_tokenizer = _clip_tokenizer(), _t5_tokenizer()
    width = 32
    clip = CLIPTextConfig(
        vocab_size=len(clip_tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=clip_tokenizer.bos_token_id,
        eos_token_id=clip_tokenizer.eos_token_id,
        pad_token_id=clip_tokenizer.pad_token_id,
    )
    t5 = T5Config(
        vocab_size=len(t5_tokenizer),
        d_model=width,
        d_kv=16,
        d_ff=2 * width,
        num_layers=1,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        # Four blocks, because the pipeline derives the factor 8 from their number.
        vae=AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(8, 16, 16, 16),
            layers_per_block=1,
            latent_channels=16,
            norm_num_groups=8,
            scaling_factor=0.3611,
            shift_factor=0.1159,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
        text_encoder=CLIPTextModel(clip),
        tokenizer=clip_tokenizer,
        text_encoder_2=T5EncoderModel(t5),
        tokenizer_2=t5_tokenizer,
        transformer=FluxTransformer2DModel(
            in_channels=64,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=32,
            num_attention_heads=2,
            joint_attention_dim=width,
            pooled_projection_dim=width,
            # Must sum to the head's width.
            axes_dims_rope=(8, 12, 12),
            guidance_embeds=False,
        ),
    )


def _clip_tokenizer() -> Any:
    """One token per byte, inside a word and at its end; unknown text cannot occur."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    entries = [*letters, *(f"{letter}</w>" for letter in letters)]
    entries += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={entry: index for index, entry in enumerate(entries)}, merges=[], model_max_length=77
    )


def _t5_tokenizer() -> Any:
    """A Unigram model over printable ASCII, the only kind of model that loads again."""
    from transformers import T5TokenizerFast

    entries = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    entries += [(character, -3.0) for character in string.printable.strip()]
    return T5TokenizerFast(vocab=entries, extra_ids=0, model_max_length=512)


def write_background(file: Path) -> None:
    """Writes two random convolutions plus a bright centre: the mask is one blob, never empty.

    The layout is U2-Net's: input (1, 3, 320, 320), first output the mask (1, 1, 320, 320).
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(_SEED)
    axis = np.linspace(-1, 1, 320, dtype=np.float32)
    radius = np.hypot(axis[:, None], axis[None, :])
    constants = {
        "weight_1": random.normal(0, 0.2, (4, 3, 5, 5)),
        "weight_2": random.normal(0, 0.1, (1, 4, 5, 5)),
        "centre": 40 * (0.65 - radius)[None, None],
    }
    nodes = [
        helper.make_node("Conv", ["image", "weight_1"], ["wide"], pads=[2] * 4),
        helper.make_node("Tanh", ["wide"], ["bounded"]),
        helper.make_node("Conv", ["bounded", "weight_2"], ["detail"], pads=[2] * 4),
        helper.make_node("Add", ["detail", "centre"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["mask"]),
    ]
    graph = helper.make_graph(
        nodes,
        "background",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 320, 320])],
        [helper.make_tensor_value_info("mask", TensorProto.FLOAT, [1, 1, 320, 320])],
        [numpy_helper.from_array(v.astype(np.float32), name) for name, v in constants.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=9)
    onnx.checker.check_model(model)
    file.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, file)


def write_triposr(folder: Path) -> None:
    """Writes a small TripoSR whose scenes are one blob that the image shapes and colours."""
    from generation.triposr import TripoSRConfig, ViTConfig, untrained

    config = TripoSRConfig(
        image_size=64,
        plane_size=16,
        num_channels=32,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        plane_channels=8,
        decoder_neurons=32,
        decoder_hidden_layers=2,
        vit=ViTConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            image_size=64,
        ),
    )
    untrained(config, _SEED).save_pretrained(folder)
