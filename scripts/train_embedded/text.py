"""Tokenizers and text encoders of the small FLUX, in the layouts that FluxPipeline loads."""

import string
from typing import Any

from scripts.train_embedded.prompts import known_words

CLIP_LENGTH = 77
T5_LENGTH = 48
"""Tokens of T5 that the transformer is trained with; presets must ask for the same number."""

TEXT_WIDTH = 64


def clip_tokenizer() -> Any:
    """A BPE that has learnt every known word whole; others fall into shorter pieces."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    model = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    model.decoder = decoders.BPEDecoder()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        min_frequency=1,
        show_progress=False,
        initial_alphabet=list(string.ascii_lowercase + string.digits + string.punctuation),
        end_of_word_suffix="</w>",
    )
    model.train_from_iterator([" ".join(known_words())], trainer)
    learnt = _bpe(model)
    entries = list(string.ascii_lowercase + string.digits + string.punctuation)
    entries += [f"{entry}</w>" for entry in entries]
    entries += [token for token in sorted(learnt["vocab"]) if token not in set(entries)]
    entries += ["<|unk|>", "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={entry: index for index, entry in enumerate(entries)},
        merges=[tuple(merge) for merge in learnt["merges"]],
        unk_token="<|unk|>",
        model_max_length=CLIP_LENGTH,
    )


def _bpe(model: Any) -> dict[str, Any]:
    import json

    content: dict[str, Any] = json.loads(model.to_str())["model"]
    return content


def t5_tokenizer() -> Any:
    """A Unigram model of the known words, also capitalised; the rest of a word is unknown."""
    from transformers import T5TokenizerFast

    entries = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    entries += [(mark, -2.0) for mark in ".,!?-"]
    words = known_words()
    spellings = sorted({*words, *(word.capitalize() for word in words)})
    entries += [(f"▁{word}", -1.0) for word in spellings]
    return T5TokenizerFast(vocab=entries, extra_ids=0, model_max_length=512)


def clip_encoder(tokenizer: Any) -> Any:
    """A CLIPTextModel of one layer."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=CLIP_LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def t5_encoder(tokenizer: Any) -> Any:
    """A T5EncoderModel of one layer."""
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=TEXT_WIDTH,
            d_kv=32,
            d_ff=2 * TEXT_WIDTH,
            num_layers=1,
            num_heads=2,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
        )
    )
