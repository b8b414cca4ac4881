"""What pictures become."""

from PIL import Image
from sets import everything


def test_every_kind_of_picture_becomes_rgb(tmp_path):
    red = Image.new("RGB", (8, 4), (255, 0, 0))
    clear = Image.new("RGBA", (8, 4), (255, 0, 0, 0))
    grey16 = Image.new("I;16", (8, 4), 65535 // 2)
    red.save(tmp_path / "gif.gif", save_all=True, append_images=[Image.new("RGB", (8, 4))])
    red.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    red.convert("P").save(tmp_path / "palette.png")
    clear.save(tmp_path / "clear.png")
    grey16.save(tmp_path / "grey16.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    red.save(tmp_path / "turned.png", exif=turned)
    by_id = {s.image_id: s.images[0] for s in everything(tmp_path)}
    assert {image.mode for image in by_id.values()} == {"RGB"}
    assert by_id["gif.gif"].getpixel((0, 0)) == (255, 0, 0)
    assert by_id["palette.png"].getpixel((0, 0)) == (255, 0, 0)
    assert by_id["cmyk.jpg"].getpixel((0, 0))[0] > 240
    assert by_id["clear.png"].getpixel((0, 0)) == (255, 255, 255)
    assert by_id["grey16.png"].getpixel((0, 0)) == (127, 127, 127)
    assert by_id["turned.png"].size == (4, 8)
