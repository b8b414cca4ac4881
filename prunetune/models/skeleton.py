"""The file of a family that is not there yet, with what was found of its model filled in."""

from dataclasses import dataclass

from prunetune.models.anatomy import Anatomy

_TODO = "    # TODO: "


@dataclass(frozen=True)
class Lineage:
    """A base class that a family may have.

    Attributes:
        module: Under ``prunetune.families``.
        name: Of the class.
        why: What in the model speaks for it.
        known: Whether it says where tokens come from.
    """

    module: str
    name: str
    why: str
    known: bool = True


def lineage(found: Anatomy) -> Lineage:
    """Return the base class that fits a model best, by what its encoder takes."""
    if "image_grid_thw" in found.inputs:
        why = "its encoder takes image_grid_thw: patches of pictures of any size"
        return Lineage("bases.qwen", "QwenVL", why)
    if found.packs:
        why = "it has pack_image_features: any-resolution tiles"
        return Lineage("bases.anyres", "AnyResolution", why)
    if "image_sizes" in found.inputs and found.tower_layers == "transformer.layers":
        why = "its encoder takes image_sizes, for a Pixtral tower"
        return Lineage("bases.packed", "PixtralLike", why)
    if {"pixel_attention_mask", "spatial_shapes"} & set(found.inputs):
        why = "its encoder takes padded pictures of any size: no base says how"
        return Lineage("base", "Family", why, known=False)
    why = "its encoder takes pixel_values: views of one size"
    return Lineage("bases.views", "FixedViews", why)


def class_name(found: Anatomy) -> str:
    """Return a name for the family's class."""
    return "".join(part.capitalize() for part in found.model_type.split("_"))


def family_file(found: Anatomy) -> str:
    """Return the text of ``prunetune/families/MODEL_TYPE.py``; what is left to do says TODO."""
    base = lineage(found)
    parts = [part for part in (_places(found), _unknown(base)) if part]
    typed = "from typing import Any, ClassVar" if parts else "from typing import ClassVar"
    modules = "\nfrom torch import nn\n" if "nn." in "".join(parts) else ""
    imports = f"from prunetune.families.{base.module} import {base.name}"
    if not base.known:
        imports = "from prunetune.families.base import Family, VisionCall"
        imports += "\nfrom prunetune.tokens import ImageGeometry, grid_geometry"
    body = "\n".join(parts)
    return (
        f'''"""{found.architecture.removesuffix("ForConditionalGeneration")}: TODO in a line."""

{typed}
{modules}
{imports}


class {class_name(found)}({base.name}):
    """``{found.architecture}``."""

    model_type: ClassVar[str] = "{found.model_type}"
{body}'''.replace("\n\n\n\n", "\n\n\n").rstrip()
        + "\n"
    )


def table_line(found: Anatomy) -> str:
    """Return the line for the table in ``prunetune/families/__init__.py``."""
    name = found.model_type
    return f'        "{name}": "prunetune.families.{name}:{class_name(found)}",'


def test_file(found: Anatomy) -> str:
    """Return the text of ``tests/family_models/MODEL_TYPE.py``; what is left to do says TODO."""
    config = found.architecture.replace("ForConditionalGeneration", "Config")
    names = ", ".join(f'"{name}"' for name in found.inputs if name != "vision_feature_layer")
    return f'''"""{class_name(found)}: TODO in a line."""

from typing import Any

import torch
from transformers import {config}, {found.architecture}

from family_models._base import IMAGE, Piece, TinyFamily, text_settings, widen


class {class_name(found)}(TinyFamily):
    model_type = "{found.model_type}"
    # TODO: pictures of several sizes, where the model sees them at their own.
    rows = ((3, (24, 32), 4), (1, (32, 24), 2, (16, 40), 3), ((24, 24), 5))
    image = other = (24, 32)
    visual_inputs = ({names},)

    def build(self, attention: str, **text: Any) -> Any:
        # TODO: a tower of three layers; fields of {config}'s vision_config.
        config = {config}(
            text_config=text_settings(**text), vision_config={{}}, {found.image_token}=IMAGE
        )
        model = {found.architecture}(config)
        widen(model, "model.{(found.projectors or ("TODO",))[0]}")
        return model

    def piece(self, model: Any, item: tuple[int, ...], seed: int) -> Piece:
        # TODO: the inputs that the processor makes of a picture, and how many tokens it takes.
        pixels = torch.randn(1, 3, *item, generator=torch.Generator().manual_seed(seed))
        count = 1
        return Piece([IMAGE] * count, count, {{"pixel_values": pixels}})


FAMILY = {class_name(found)}()
'''


def _places(found: Anatomy) -> str:
    """Return what overrides where parts are, of those that are elsewhere than ``Family`` says."""
    made = []
    if found.decoder != "language_model":
        made.append(_property("text_model", "The decoder stack.", f"self.base.{found.decoder}"))
    if found.image_token not in ("image_token_id", ""):
        made.append(_property("image_token_id", "Id of the placeholder.",
                              f"int(self.config.{found.image_token})", "int"))  # fmt: skip
    if found.final_norm not in ("norm", ""):
        text = f"self.text_model.{found.final_norm}"
        made.append(_property("final_norm", "The norm behind the last layer.", text, "nn.Module"))
    known = {"post_attention_layernorm", "pre_feedforward_layernorm"}
    if len(found.norms) > 1 and not known & set(found.norms):
        last = found.norms[-1]
        made.append(
            "\n    def second_norm(self, layer: int) -> nn.Module:\n"
            '        """The norm before the MLP."""\n'
            f"        block: Any = self.layers[layer]\n        norm: nn.Module = block.{last}\n"
            "        return norm\n"
        )
    if found.tower not in ("vision_tower", "visual", ""):
        made.append(_property("tower", "The vision tower.", f"self.base.{found.tower}"))
    standard = ("encoder.layers", "vision_model.encoder.layers", "blocks", "transformer.layers")
    if found.tower and found.tower_layers not in standard:
        made.append(
            "\n    def tower_layers(self) -> Any:\n"
            '        """Return the layers of the vision tower."""\n'
            f"        return self.tower.{found.tower_layers}\n"
        )
    if found.projectors not in (("multi_modal_projector",), ()):
        listed = ", ".join(f"base.{name}" for name in found.projectors)
        made.append(
            "\n    def projectors(self) -> list[nn.Module]:\n"
            '        """Return what turns the tower\'s rows into tokens."""\n'
            f"        base: Any = self.base\n        return [{listed}]\n"
        )
    return "".join(made)


def _property(name: str, doc: str, value: str, kind: str = "Any") -> str:
    return (
        f"\n    @property\n    def {name}(self) -> {kind}:\n"
        f'        """{doc}"""\n        found: {kind} = {value}\n        return found\n'
    )


def _unknown(base: Lineage) -> str:
    """Return what nobody can read off a class: where tokens come from."""
    if base.known:
        return ""
    return f'''
{_TODO}how the tokens of a picture lie, in sequence order.
    def geometries(self, call: VisionCall) -> list[ImageGeometry]:
        """One grid a picture."""
        return [grid_geometry(1, length) for length in call.lengths]

{_TODO}how many views the tower saw of each picture.
    def views(self, call: VisionCall) -> list[int]:
        """One view a picture."""
        return [1] * len(call.lengths)

{_TODO}each picture as the tower got it, [views, 3, height, width].
    def pixels(self, call: VisionCall) -> list[Any]:
        """The one view."""
        return list(call.arguments["pixel_values"][:, None])
'''
