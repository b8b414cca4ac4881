"""The checks of videos and packed tiles can fail: planted bugs turn them red."""

from dataclasses import replace

import test_families_video
import test_families_video_tokens
import torch
from mutants import planted

from prunetune.families import video_llava
from prunetune.families.bases import anyres
from prunetune.families.llava_next_video import LlavaNextVideo
from prunetune.families.llava_onevision import LlavaOnevision
from prunetune.runtime import handle, inputs
from prunetune.runtime.vision import captures, views
from prunetune.tokens import frames_geometry


def mixture():
    test_families_video.test_every_mixture_equals_masking("llava_onevision", slice(0, 4))


def beside():
    test_families_video.test_an_item_keeps_the_same_tokens_beside_others("video_llava")


def text():
    test_families_video.test_video_placeholders_without_a_video_are_text("video_llava")


def attention():
    test_families_video_tokens.test_attention_of_a_video_is_pooled_as_its_features_are(
        "llava_next_video"
    )


def image():
    test_families_video_tokens.test_every_token_of_an_image_is_the_patch_it_says(
        "llava_onevision", (200, 201)
    )


def video():
    test_families_video_tokens.test_every_token_of_a_video_is_the_patches_it_says("video_llava")


CHECKS = (mixture, beside, text, attention, image, video)


def videos_before_images(patch):
    """Items stand in the order of their encoders, not of their slots."""
    assign = views.assign_images

    def assigned(mask, videos, found):
        rows = assign(mask, videos, found)
        return rows if videos is None else [row[::-1] for row in rows]

    patch.setattr(views, "assign_images", assigned)


def a_capture_lost(patch):
    """A forward's second encoder call takes the place of its first."""
    note = handle.Handle._noting_captures

    def noting(self, modality):
        inner = note(self, modality)

        def noted(capture, output):
            if self.frames:
                self.frames[-1].call.captures.clear()
            inner(capture, output)

        return noted

    patch.setattr(handle.Handle, "_noting_captures", noting)


def placeholders_always_prunable(patch):
    given = captures.given_to

    def always(family, bound):
        encoded, pixels = given(family, bound)
        return encoded, {"image": None, "video": None} if pixels or encoded else pixels

    patch.setattr(inputs, "given_to", always)


def attention_of_unpooled_patches(patch):
    patch.setattr(LlavaNextVideo, "pooling", lambda self, call: torch.eye(16)[:4])


def one_patch_off(patch):
    """Interpolated tokens are given the patch above them."""
    pack = LlavaOnevision.pack
    patch.setattr(
        LlavaOnevision, "pack",
        lambda self, *args: (p := pack(self, *args)) - (p[:, :1] > 0) * torch.tensor([0, 1, 0]),
    )  # fmt: skip


def no_limit(patch):
    pack = LlavaOnevision.pack
    patch.setattr(LlavaOnevision, "pack", lambda self, c, size, call: pack(self, c, size, None))


def frames_backwards(patch):
    def backwards(frames, rows, cols):
        right = frames_geometry(frames, rows, cols)
        return replace(right, frame=right.frame.flip(0), tile=right.tile.flip(0))

    for module in (video_llava, anyres):
        patch.setattr(module, "frames_geometry", backwards)


def cls_tokens_as_patches(patch):
    patch.setattr(
        video_llava, "with_separators", lambda geometry, source, _: geometry.select(source)
    )


MUTANTS = {
    videos_before_images: (mixture, beside),
    a_capture_lost: (mixture, beside),
    placeholders_always_prunable: (text,),
    attention_of_unpooled_patches: (attention,),
    one_patch_off: (image,),
    no_limit: (image,),
    frames_backwards: (video,),
    cls_tokens_as_patches: (video,),
}


test_green_without_a_bug, test_red_with_a_bug = planted(CHECKS, MUTANTS)
