"""The model `tiny`: configuration, tokenizer, processor and the heads that only training uses."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)

from training.tiny.painting import COLORS, GROUND_COLORS, PATTERNS, SHAPES, TONES
from training.tiny.questions import PLURALS

WIDTH = 128
HEADS = 4
TOWER_LAYERS = 5
LAYERS = 16
VIEW = 64  # side of a tile and of the thumbnail, in pixels
PATCH = 8
PINPOINTS = [[64, 128], [128, 64], [128, 128]]
VOCABULARY_SIZE = 96

# fmt: off
FIXED_WORDS = [
    "<pad>", "<s>", "</s>", "<unk>", "<image>", "USER:", "ASSISTANT:", "what", "color", "shape",
    "digit", "is", "on", "the", "object", "objects", "with", "how", "many", "where", "a", "there",
    "left", "right", "above", "below", "of", "?", "yes", "no",
    "topleft", "topright", "bottomleft", "bottomright",
]
# fmt: on
# these took the first rows that the starting weights kept in reserve
LIST_WORDS = ["list", "colors", "shapes", "digits", "from", "to", "top", "bottom"]
# and these the next ones: busy pictures are asked about in them
BUSY_WORDS = ["background", "pattern", "describe", *TONES[1:], GROUND_COLORS[-1], *PATTERNS]
NUMBERS = [str(number) for number in range(10)]
GROUND_PARTS = (len(PATTERNS), len(GROUND_COLORS), len(TONES))
THING_PARTS = (len(COLORS), len(TONES), len(SHAPES), len(NUMBERS))

# as the originals do: the image first, then the question
CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m['role']=='user' %}USER: {% for c in m['content'] %}"
    "{% if c['type']=='image' %}<image> {% endif %}{% endfor %}{% for c in m['content'] %}"
    "{% if c['type']=='text' %}{{ c['text'] }} {% endif %}{% endfor %}{% else %}ASSISTANT: "
    "{% for c in m['content'] %}{{ c['text'] }}</s>{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def vocabulary() -> dict[str, int]:
    """Word -> id, 96 entries, the last ones in reserve."""
    words = [*FIXED_WORDS, *COLORS, *SHAPES, *PLURALS, *NUMBERS, *LIST_WORDS, *BUSY_WORDS]
    words += [f"<r{n}>" for n in range(VOCABULARY_SIZE - len(words))]
    return {word: index for index, word in enumerate(words)}


def build() -> LlavaNextForConditionalGeneration:
    """The model with random weights."""
    ids = vocabulary()
    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=TOWER_LAYERS,
        num_attention_heads=HEADS,
        image_size=VIEW,
        patch_size=PATCH,
        projection_dim=WIDTH,
    )
    text = LlamaConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=WIDTH,
        intermediate_size=352,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=2048,
        bos_token_id=ids["<s>"],
        eos_token_id=ids["</s>"],
        pad_token_id=ids["<pad>"],
        rms_norm_eps=1e-6,
        initializer_range=0.04,
    )
    config = LlavaNextConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=ids["<image>"],
        image_grid_pinpoints=PINPOINTS,
        vision_feature_layer=-2,
        image_seq_length=(VIEW // PATCH) ** 2,
        tie_word_embeddings=False,
    )
    model = LlavaNextForConditionalGeneration(config)
    generation = model.generation_config
    generation.bos_token_id, generation.eos_token_id = ids["<s>"], ids["</s>"]
    generation.pad_token_id = ids["<pad>"]
    return model


def tokenizer() -> PreTrainedTokenizerFast:
    """Word level: words are what stands between spaces."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    ids = vocabulary()
    base = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    base.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    base.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", ids["<s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=base,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
        model_max_length=2048,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def processor() -> LlavaNextProcessor:
    """Any-resolution tiles of 64 x 64, thumbnail first, CLS dropped from the features."""
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": VIEW},
        crop_size={"height": VIEW, "width": VIEW},
        image_grid_pinpoints=PINPOINTS,
        resample=3,
    )
    return LlavaNextProcessor(
        image_processor=images,
        tokenizer=tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        num_additional_image_tokens=1,
    )


def prompt(question: str) -> str:
    """What the chat template makes of one image with one question."""
    return f"USER: <image> {question} ASSISTANT:"


class Heads(nn.Module):
    """Linear read-outs that only supervise training; they are not exported.

    Attributes:
        dense: tower patch -> shape (7, the first is none), color (8), digit (11).
        cls: tower CLS -> what its view shows: color (7), shape (6), digit (10), pair (42).
        tone: tower patch -> tone of its object's color (3).
        ground: tower patch without an object -> background: pattern (6), color (8), tone (3).
        offset: tower patch -> from the patch to its object's centre, in view sides.
        patch_place: visual token in the LLM -> its object's centre, as a share of the picture.
        word_place: text token that settles which object is meant -> that object's centre.
        apart: text token of a relation, from the second object's name on -> how to get there
            from the first.
        token: visual token in the LLM -> tone of its object (3); where it shows none, the
            background's pattern (6), color (8) and tone (3).
        meant: text token that has settled on an object -> that one's color (7), tone (3),
            shape (6) and digit (10).
        about: text token about to describe the background -> its pattern, color and tone.
    """

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(WIDTH, 7 + 8 + 11)
        self.cls = nn.Linear(WIDTH, 7 + 6 + 10 + 42)
        self.tone = nn.Linear(WIDTH, len(TONES))
        self.ground = nn.Linear(WIDTH, sum(GROUND_PARTS))
        self.offset = nn.Linear(WIDTH, 2)
        self.patch_place = nn.Linear(WIDTH, 2)
        self.word_place = nn.Linear(WIDTH, 2)
        self.apart = nn.Linear(WIDTH, 2)
        self.token = nn.Linear(WIDTH, len(TONES) + sum(GROUND_PARTS))
        self.meant = nn.Linear(WIDTH, sum(THING_PARTS))
        self.about = nn.Linear(WIDTH, sum(GROUND_PARTS))


def load_start(path: Path, model: nn.Module, heads: nn.Module) -> list[str]:
    """Loads fp32 weights with "aux." heads in place; returns the names it lacks."""
    stored: dict[str, Tensor] = load_file(path)
    missing = []
    with torch.no_grad():
        for name, weight in parameters(model, heads):
            if name in stored:
                weight.copy_(stored[name])
            else:
                missing.append(name)
    return missing


def parameters(model: nn.Module, heads: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """All trained weights by name, in a fixed order."""
    extra = [(f"aux.{name}", weight) for name, weight in heads.named_parameters()]
    return [*model.named_parameters(), *extra]
