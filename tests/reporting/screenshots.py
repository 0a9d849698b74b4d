"""Take pictures of the report pages of each family's small run, for the documentation.

make nano
… and the commands of the README for RoFormerV2 and Llama
python -m tests.reporting.screenshots        # writes docs/pictures/
"""

import io
from pathlib import Path
from tempfile import TemporaryDirectory

import PIL.Image

from rotary_foundry.reporting.report_page import write_report
from tests.reporting.browser import Browser

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "docs/pictures"
SIZES = {  # run: width and height in CSS pixels, pixels for each of them, and whether the page is dark
    "nano": (1280, 1180, 1, False),
    "roformer_v2_nano_multi_task": (1280, 1180, 1, True),
    "llama_nano_long": (412, 900, 2, False),  # a telephone
}


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    with TemporaryDirectory() as profile:
        browser = Browser(Path(profile))
        for run, (width, height, scale, dark) in SIZES.items():
            page, _ = write_report([ROOT / "runs" / run])
            browser.open(page.as_uri(), width, height, dark)
            picture = PICTURES / f"{run}.png"
            with PIL.Image.open(io.BytesIO(browser.picture(scale))) as image:
                image.convert("RGB").quantize(128).save(picture, optimize=True)
            print(f"{picture}: {picture.stat().st_size >> 10} kB")
        browser.close()


if __name__ == "__main__":
    main()
