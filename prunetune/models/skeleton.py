"""The file of a family that is not there yet, with what was found of its model filled in."""

import re
from dataclasses import dataclass

from prunetune.families.bases.layers import CARRYING
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
    if "image_grid_thw" in found.inputs and not found.fused:
        why = "its encoder takes image_grid_thw, and projects queries apart: patches row by row"
        return Lineage("bases.raster", "RasterPatches", why)
    if "image_grid_thw" in found.inputs and found.tower_layers == "blocks":
        why = "its encoder takes image_grid_thw: patches of pictures of any size"
        return Lineage("bases.qwen", "QwenVL", why)
    if found.packs:
        why = "it has pack_image_features: any-resolution tiles"
        return Lineage("bases.anyres", "AnyResolution", why)
    if "image_sizes" in found.inputs and found.tower_layers == "transformer.layers":
        why = "its encoder takes image_sizes, for a Pixtral tower"
        return Lineage("bases.packed", "PixtralLike", why)
    if others := _others(found):
        why = f"its encoder takes {', '.join(others)}: no base says how pictures lie in it"
        return Lineage("base", "Family", why, known=False)
    why = "its encoder takes pixel_values: views of one size"
    return Lineage("bases.views", "FixedViews", why)


def _others(found: Anatomy) -> list[str]:
    """Return what the encoder takes beside the pictures; what a config says already left out."""
    own = ("pixel_values", "vision_feature_layer", "vision_feature_select_strategy")
    return [name for name in found.inputs if name not in own]


def class_name(found: Anatomy) -> str:
    """Return a name for the family's class: as transformers writes it."""
    return found.architecture.removesuffix("ForConditionalGeneration").replace("_", "")


def family_file(found: Anatomy) -> str:
    """Return the text of ``prunetune/families/MODEL_TYPE.py``; what is left to do says TODO."""
    base = lineage(found)
    parts = [p for p in (_places(found), _unknown(base), _reading(found, base)) if p]
    used = "Any" in "".join(parts)
    typed = "from typing import Any, ClassVar" if used else "from typing import ClassVar"
    modules = "\nfrom torch import nn\n" if "nn." in "".join(parts) else ""
    imports = f"from prunetune.families.{base.module} import {base.name}"
    if not base.known:
        imports = "from prunetune.families.base import Family, VisionCall"
        imports += "\nfrom prunetune.tokens import ImageGeometry, grid_geometry"
    body = re.sub(r"\n{3,}", "\n\n", "\n".join(parts))
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
    others = _others(found)
    names = ", ".join(f'"{name}"' for name in ("pixel_values", *others)) + "," * (not others)
    widened = "\n".join(
        f'        widen(model, "model.{name}")' for name in found.projectors or ("TODO",)
    )
    carried = ""
    if CARRYING & set(found.kinds):
        carried = (
            f"    hybrid = True\n    # TODO: of six layers.\n    kinds = {found.kinds[:6]!r}\n"
        )
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
    visual_inputs = ({names})
{carried}
    def build(self, attention: str, **text: Any) -> Any:
        # TODO: a tower of three layers; fields of {config}'s vision_config.
        config = {config}(
            text_config={{"model_type": "{found.text_type}", **text_settings(**text)}},
            vision_config={{}}, {found.image_token or "image_token_id"}=IMAGE,
        )  # fmt: skip
        model = {found.architecture}(config)
{widened}
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
    made, apart = [], lineage(found).name == "RasterPatches"
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
    if found.tower not in ("vision_tower", "visual", "") or (found.tower == "visual" and apart):
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


def _reading(found: Anatomy, base: Lineage) -> str:
    """Return how what the tower and the masks do is read, where the base does not know."""
    made = ""
    own = not base.known or base.name == "RasterPatches"
    own |= base.name == "FixedViews" and found.tower_attention != "self_attn"
    if own and found.tower_attention:
        fused = f"{_TODO}vision_heads: its queries and keys are projected in one piece.\n"
        made += (
            "\n    def vision_attention_module(self) -> nn.Module | None:\n"
            '        """Attention of the last layer, if its output are the features."""\n'
            "        module: nn.Module = self.tower_layers()[-1]"
            f".{found.tower_attention}\n        return module\n"
        )
        made = f"\n{fused}{made}" if found.fused else made
    if not found.pooled:
        made += (
            f"\n{_TODO}its encoder returns no pooler_output: the features of each picture.\n"
            "    def features(self, output: Any) -> Any:\n"
            '        """Of each picture."""\n        return output.pooler_output\n'
        )
    if found.blocks:
        made += (
            f"\n{_TODO}blocks(arguments): which tokens attend both ways, by {found.blocks}; and\n"
            "    # `allowed` in the test.\n"
        )
    return made + (
        f"\n{_TODO}pixel_statistics(), if the processor normalises neither as CLIP's (towers with\n"
        "    # a CLS token) nor as SigLIP's (others) does.\n"
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
