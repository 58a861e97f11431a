"""A vision-language model on this machine, through transformers and accelerate.

Any model of transformers' image-text-to-text classes that comes with a chat template will do (Qwen2.5-VL, Qwen3-VL,
LLaVA, LLaVA-OneVision, InternVL, SmolVLM ...). Nothing is sampled. A choice is read from the logits of the next token,
never from text: the options are lettered, asked in their order and in the reverse one, and the two softmaxes are
averaged, which cancels the habit of preferring a place in a list.
"""

import inspect
import os
import time
from typing import Any

import numpy as np
from PIL import Image

from vlad.explain.reasoners.parsing import LETTERS, how_to_answer, neutralise, read_answer
from vlad.explain.reasoners.protocol import Answer, Ask, Caps, Choice, Finish, ReasonerError, Usage


class LocalReasoner:
    """Asks a model in this process; pictures stay on the machine.

    Args:
        model: a folder, or the id of a repository of the Hugging Face hub.
        revision: branch, tag or commit of the repository.
        device_map: where accelerate puts the weights: "auto", "cpu", "cuda:0" ...
        timeout_s: for one answer; looked at between two tokens.
        offline: True never asks the hub, also without `HF_HUB_OFFLINE`; a repository must then be in its cache.

    Raises:
        ReasonerError: the model does not load, or takes no chat.
    """

    tier = "local"

    def __init__(
        self,
        model: str,
        *,
        revision: str | None = None,
        device_map: str = "auto",
        timeout_s: float = 120.0,
        offline: bool = False,
    ) -> None:
        self.name, self.timeout_s = f"hf:{model}", timeout_s
        self.processor, self.model = _load(model, revision, device_map, offline)
        self.labels = _label_tokens(self.processor.tokenizer)
        self.control = _control_tokens(self.processor)
        self.caps = Caps(option_probs=True, pixels_per_token=_pixels_per_token(self.processor))
        self._system_turn = _has_system_turn(self.processor)

    def ask(self, question: Ask) -> Answer:
        """The answer to one question; the time limit stops it between two tokens, never inside the first pass."""
        start = time.monotonic()
        try:
            if isinstance(question.answer, Choice):
                return self._choose(question, question.answer, start)
            return self._write(question, start)
        except Exception as error:  # a foreign model may raise anything: out of memory, a broken template
            usage = Usage(calls=1, seconds=time.monotonic() - start)
            return Answer(finish="error", usage=usage, error=_sentence(error), code="reasoner_failed")

    def _choose(self, question: Ask, choice: Choice, start: float) -> Answer:
        import torch

        orders = [choice.options, choice.options[::-1]]
        inputs = self._inputs(question, [how_to_answer(Choice(order)) for order in orders], new_tokens=1)
        logits = self._generate(inputs, max_new_tokens=1, output_logits=True).logits[0].float()  # [2, vocabulary]
        tokens = [self.labels[letter] for letter in LETTERS[: len(choice.options)]]
        letters = torch.stack([logits[:, ids].logsumexp(1) for ids in tokens], dim=1)  # [2, options]
        softmax = letters.softmax(1).cpu().numpy()
        probs = (softmax[0] + softmax[1][::-1]) / 2
        if not np.isfinite(probs).all():
            raise ValueError("its logits are not finite numbers")
        best = choice.options[int(probs.argmax())]
        return Answer(best, best, tuple(map(float, probs)), usage=_usage(question, inputs, 2, start))

    def _write(self, question: Ask, start: float) -> Answer:
        inputs = self._inputs(question, [how_to_answer(question.answer)], question.max_tokens)
        left = min(question.timeout_s, self.timeout_s) - (time.monotonic() - start)
        tokens = self._generate(inputs, max_new_tokens=question.max_tokens, max_time=max(left, 1e-3)).sequences
        new = tokens[0, inputs["input_ids"].shape[1] :]
        ends = np.atleast_1d(self.model.generation_config.eos_token_id)
        finish: Finish = "stop" if len(new) and int(new[-1]) in ends else "length"
        text = self.processor.tokenizer.decode(new, skip_special_tokens=True)
        return read_answer(text, question.answer, finish, _usage(question, inputs, len(new), start))

    def _inputs(self, question: Ask, endings: list[str], new_tokens: int) -> Any:
        """One conversation for each ending as a batch, padded on the left, on the model's device."""
        chats = [self._chat(question, ending) for ending in endings]
        inputs = self.processor.apply_chat_template(
            chats,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
            **_template_options(self.processor),
        )
        longest = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        length = inputs["input_ids"].shape[1] + new_tokens
        if longest and length > longest:
            raise ValueError(f"the question and its answer take {length} tokens, the model reads {longest}")
        return inputs.to(self.model.device, dtype=self.model.dtype)

    def _chat(self, question: Ask, ending: str) -> list[dict[str, Any]]:
        content: list[dict[str, Any]] = []
        for part in (*question.parts, ending):
            if isinstance(part, np.ndarray):
                content.append({"type": "image", "image": Image.fromarray(part)})
            else:
                content.append({"type": "text", "text": neutralise(part, self.control) + "\n"})
        system = {"type": "text", "text": neutralise(question.system, self.control)}
        if not self._system_turn:
            return [{"role": "user", "content": [system, *content]}]
        return [{"role": "system", "content": [system]}, {"role": "user", "content": content}]

    def _generate(self, inputs: Any, **options: Any) -> Any:
        import torch

        with torch.inference_mode():
            return self.model.generate(**inputs, **options, return_dict_in_generate=True)


def _load(model: str, revision: str | None, device_map: str, offline: bool) -> tuple[Any, Any]:
    from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig

    if _names_a_folder(model) and not os.path.isdir(model):
        raise ReasonerError(
            f"the model {model!r} does not load: there is no such folder; fetch it first (hf download ID)"
        )
    where: dict[str, Any] = {"revision": revision or "main", "local_files_only": offline, "trust_remote_code": False}
    try:
        processor = AutoProcessor.from_pretrained(model, **where)
        weights = AutoModelForImageTextToText.from_pretrained(model, device_map=device_map, dtype="auto", **where)
    except Exception as error:  # files missing, packages missing, shapes wrong: the user mends it the same way
        raise ReasonerError(
            f"the model {model!r} does not load ({_sentence(error)}); give a folder with an image-text-to-text model "
            f"of transformers, or fetch one first: hf download {model}"
        ) from error
    if not getattr(processor, "chat_template", None) or getattr(processor, "tokenizer", None) is None:
        raise ReasonerError(
            f"the model {model!r} has no chat template and cannot be asked; take an instruction-tuned one"
        )
    processor.tokenizer.padding_side = "left"  # else the next token of a short question follows padding
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    ends = weights.generation_config.eos_token_id
    # its own sampling and repetition settings would make the answers wander
    weights.generation_config = GenerationConfig(
        do_sample=False,
        eos_token_id=processor.tokenizer.eos_token_id if ends is None else ends,
        pad_token_id=processor.tokenizer.pad_token_id,
    )
    return processor, weights.eval()


def _names_a_folder(model: str) -> bool:
    """Whether a name cannot be a repository's, which is NAME or OWNER/NAME."""
    return os.path.isabs(model) or model.startswith((".", "~")) or model.count("/") > 1


def _label_tokens(tokenizer: Any) -> dict[str, list[int]]:
    """Token ids of each letter, alone and after a space."""
    labels = {}
    for letter in LETTERS:
        coded = [tokenizer.encode(text, add_special_tokens=False) for text in (letter, f" {letter}")]
        labels[letter] = sorted({ids[0] for ids in coded if len(ids) == 1})
    if not all(labels.values()):
        raise ReasonerError("the model's tokenizer has no single token for the letters A to Z; take another model")
    return labels


def _control_tokens(processor: Any) -> list[str]:
    """Every piece of text that the tokenizer reads as a mark of its own and that no plain sentence holds."""
    named = [getattr(processor, name, None) for name in ("image_token", "video_token", "audio_token")]
    added = [str(token) for token in processor.tokenizer.get_added_vocab()]
    tokens = {*added, *processor.tokenizer.all_special_tokens, *(name for name in named if isinstance(name, str))}
    return [token for token in tokens if token.strip() and not token.strip().isalnum()]


def _pixels_per_token(processor: Any) -> int:
    patch, merge = (getattr(processor.image_processor, name, None) for name in ("patch_size", "merge_size"))
    return patch * (merge or 1) if isinstance(patch, int) else 32


def _has_system_turn(processor: Any) -> bool:
    """Whether the chat template keeps a system turn; some leave it out, some refuse it."""
    words = {"system": "KEEP-THIS", "user": "and this"}
    chat = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in words.items()]
    try:
        return words["system"] in processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    except Exception:  # templates raise errors of their own
        return False


def _template_options(processor: Any) -> dict[str, Any]:
    """Keywords of `apply_chat_template` that came with newer transformers, where they are there."""
    known = inspect.signature(processor.apply_chat_template).parameters
    options: dict[str, Any] = (
        {"processor_kwargs": {"padding": True}} if "processor_kwargs" in known else {"padding": True}
    )
    if "sanitize_control_tokens" in known:
        options["sanitize_control_tokens"] = True
    if "enable_thinking" in str(processor.chat_template):  # models that may think aloud first
        options["enable_thinking"] = False
    return options


def _usage(question: Ask, inputs: Any, new_tokens: int, start: float) -> Usage:
    pictures = question.pictures
    return Usage(
        calls=1,
        images_sent=len(pictures),
        pixels_sent=sum(picture.shape[0] * picture.shape[1] for picture in pictures),
        prompt_tokens=int(inputs["attention_mask"].sum()),
        completion_tokens=new_tokens,
        seconds=time.monotonic() - start,
    )


def _sentence(error: Exception) -> str:
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
    return f"{type(error).__name__}: {first[:300]}"
