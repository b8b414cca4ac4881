"""Lets PyPI's torchvision be imported beside torch for CPUs; for environments of tests only.

    python tools/torchvision_on_cpu.py .venv-vllm

PyPI has torchvision for CUDA alone. Beside torch for CPUs its compiled part does not load, and its
import ends at ``operator torchvision::nms does not exist``. A file in site-packages, which every
process of that environment reads, defines the two operators before: nothing here uses them.
"""

import shutil
import subprocess
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path

_LIBRARIES: list = []


class BeforeTorchvision(MetaPathFinder):
    """Defines the two operators when torchvision is first imported."""

    def find_spec(self, name, path, target=None):  # noqa: ANN001, ANN201
        """Never finds anything."""
        if name == "torchvision":
            # Files of site-packages may be read twice in a process.
            sys.meta_path[:] = [f for f in sys.meta_path if not isinstance(f, BeforeTorchvision)]
            import torch

            if _LIBRARIES:
                return
            library = torch.library.Library("torchvision", "DEF")
            for operator in ("nms", "qnms"):
                library.define(f"{operator}(Tensor dets, Tensor scores, float iou) -> Tensor")
            # Operators go with the library that defined them.
            _LIBRARIES.append(library)


def main(folder: str) -> None:
    """Put this file, and a line that starts it, into an environment."""
    asked = [f"{folder}/bin/python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    told = subprocess.run(asked, check=True, capture_output=True, text=True).stdout
    site = Path(told.strip())
    shutil.copy(__file__, site / "_torchvision_on_cpu.py")
    line = "import sys, _torchvision_on_cpu as t; sys.meta_path.insert(0, t.BeforeTorchvision())\n"
    (site / "_torchvision_on_cpu.pth").write_text(line, "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
