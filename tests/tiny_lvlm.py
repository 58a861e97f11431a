"""Tiny vision-language models of real architectures with random weights, saved as folders that the Auto classes load.

They talk nonsense: `say` makes one write a text, `prefer` makes it choose a letter, both at the level of its logits, so
that chat template, picture path, generation, decoding and parsing are the real ones.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.pre_tokenizers import ByteLevel

QWEN_SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]


def _chat(picture: str) -> str:
    return (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
        "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
        "{% for c in m['content'] %}{% if c['type'] == 'image' %}" + picture + "{% elif c['type'] == 'text' %}"
        "{{ c['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


def _save(out: Path, model: Any, processor: Any, eos: int, pad: int) -> None:
    from transformers import GenerationConfig

    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():  # as initialised, a model hardly feels its picture
        for parameter in model.parameters():
            parameter += 0.15 * torch.randn(parameter.shape, generator=noise)
    # what real folders hold: sampling and penalties that a reading of probabilities must not use
    model.generation_config = GenerationConfig(
        eos_token_id=eos, pad_token_id=pad, do_sample=True, temperature=0.7, repetition_penalty=1.05
    )
    model.save_pretrained(out)
    processor.save_pretrained(out)


def _qwen_tokenizer() -> Any:
    from transformers import Qwen2Tokenizer

    vocab = {character: index for index, character in enumerate(sorted(ByteLevel.alphabet()))}  # any text encodes
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=[], eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.add_tokens(QWEN_SPECIAL, special_tokens=True)
    return tokenizer


def _text_sizes(tokenizer: Any, eos: str, pad: str) -> dict[str, Any]:
    return dict(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=16384,
        bos_token_id=tokenizer.convert_tokens_to_ids(pad),
        eos_token_id=tokenizer.convert_tokens_to_ids(eos),
        pad_token_id=tokenizer.convert_tokens_to_ids(pad),
    )


def build_qwen2_5_vl(out: Path) -> None:
    """Qwen2.5-VL of 0.1 M parameters."""
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    tokenizer = _qwen_tokenizer()
    number = tokenizer.convert_tokens_to_ids
    text = _text_sizes(tokenizer, "<|im_end|>", "<|endoftext|>")
    text["rope_parameters"] = dict(rope_type="default", rope_theta=1e4, mrope_section=[1, 1, 2])  # sums to head_dim / 2
    vision = dict(
        depth=2, hidden_size=32, intermediate_size=64, num_heads=4, out_hidden_size=32, fullatt_block_indexes=[1]
    )
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=number("<|image_pad|>"),
        video_token_id=number("<|video_pad|>"),
        vision_start_token_id=number("<|vision_start|>"),
        vision_end_token_id=number("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(config).eval()
    pixels = dict(min_pixels=56 * 56, max_pixels=112 * 112)
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**pixels),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**pixels),
        chat_template=_chat("<|vision_start|><|image_pad|><|vision_end|>"),
    )
    _save(out, model, processor, number("<|im_end|>"), number("<|endoftext|>"))


def build_llava(out: Path) -> None:
    """LLaVA with a CLIP tower, of 0.1 M parameters; its tokenizer knows bytes, its pictures are always 56 px."""
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    raw = Tokenizer(models.BPE({character: i for i, character in enumerate(sorted(ByteLevel.alphabet()))}, []))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>", bos_token="<s>", pad_token="<pad>")
    tokenizer.add_tokens(["<image>", "<|im_start|>", "<|im_end|>"], special_tokens=True)
    number = tokenizer.convert_tokens_to_ids
    config = LlavaConfig(
        text_config=LlamaConfig(**_text_sizes(tokenizer, "</s>", "<pad>")),
        vision_config=CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=56,
            patch_size=14,
        ),
        image_token_index=number("<image>"),
        vision_feature_layer=-1,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config).eval()
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=_chat("<image>"),
    )
    _save(out, model, processor, number("</s>"), number("<pad>"))


def build_internvl(out: Path) -> None:
    """InternVL of 0.1 M parameters; it cuts a picture into tiles of 56 px and shows each as four tokens."""
    from transformers import (
        GotOcr2ImageProcessor,
        InternVLConfig,
        InternVLForConditionalGeneration,
        InternVLProcessor,
        InternVLVideoProcessor,
        InternVLVisionConfig,
        Qwen2Config,
        Qwen2Tokenizer,
    )

    pieces = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    vocab = {character: index for index, character in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = Qwen2Tokenizer(
        vocab=vocab,
        merges=[],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens={**pieces, "video_token": "<video>"},
    )
    tokenizer.add_tokens([*QWEN_SPECIAL[:3], *pieces.values(), "<video>"], special_tokens=True)
    number = tokenizer.convert_tokens_to_ids
    config = InternVLConfig(
        text_config=Qwen2Config(**_text_sizes(tokenizer, "<|im_end|>", "<|endoftext|>")),
        vision_config=InternVLVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=(56, 56),
            patch_size=(14, 14),
        ),
        image_token_id=number("<IMG_CONTEXT>"),
        image_seq_length=4,
    )
    torch.manual_seed(0)
    model = InternVLForConditionalGeneration(config).eval()
    processor = InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(size={"height": 56, "width": 56}, max_patches=3),
        tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(size={"height": 56, "width": 56}),
        image_seq_length=4,
        chat_template=_chat("<IMG_CONTEXT>\n"),
    )
    _save(out, model, processor, number("<|im_end|>"), number("<|endoftext|>"))


FAMILIES: dict[str, Callable[[Path], None]] = {
    "qwen2_5_vl": build_qwen2_5_vl,
    "llava": build_llava,
    "internvl": build_internvl,
}


def build(family: str, out: Path) -> Path:
    """A folder with a tiny model of a family."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    FAMILIES[family](out)
    return out


def say(reasoner: Any, text: str, *, stops: bool = True) -> Any:
    """A handle: until its `.remove()` the model writes `text` and then ends, or repeats the last byte for ever."""
    tokens = reasoner.processor.tokenizer.encode(text, add_special_tokens=False)
    ends = reasoner.model.generation_config.eos_token_id
    script = iter([*tokens, *([ends] if stops else [])])
    last = [tokens[-1] if tokens else ends]

    def force(module: Any, args: Any, logits: torch.Tensor) -> torch.Tensor:
        last[0] = next(script, last[0])
        forced = torch.full_like(logits, float("-inf"))
        forced[..., last[0]] = 0.0
        return forced

    return reasoner.model.lm_head.register_forward_hook(force)


def prefer(reasoner: Any, letter: str, strength: float) -> Any:
    """A handle: until its `.remove()` the next token leans to a letter, whatever is asked."""
    ids = reasoner.labels[letter]

    def lean(module: Any, args: Any, logits: torch.Tensor) -> torch.Tensor:
        logits = logits.clone()
        logits[..., ids] += strength
        return logits

    return reasoner.model.lm_head.register_forward_hook(lean)
