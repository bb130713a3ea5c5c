"""Turns trained weights into a file that torch alone can run, without this package."""

from __future__ import annotations

import io
import logging
import warnings

import torch
from torch.export import Dim

from tune_mnist.mnist.model import Network


def export_network(network: Network) -> bytes:
    """Export a network on the CPU with `torch.export`, in evaluation mode, for any number of images.

    ``torch.export.load(file).module()`` is a function of images, uint8 [n, 28, 28] with 0 as background and
    255 as ink, which returns log-probabilities, float32 [n, 10].
    """
    network.eval()  # then Dropout is torch's own, and does nothing
    file = io.BytesIO()
    with warnings.catch_warnings():
        # About weights that share memory, which these do not.
        warnings.filterwarnings("ignore", "No complete tensor found in the group", UserWarning)
        program = torch.export.export(
            network, (torch.zeros((2, 28, 28), dtype=torch.uint8),), dynamic_shapes=({0: Dim("n")},)
        )
        torch.export.save(program, file)
    return file.getvalue()


def quiet_load(content: bytes) -> torch.nn.Module:
    """Load what `export_network` wrote, without what torch prints about a file that it cannot read.

    Raises:
        ValueError: if it is not such a file, or its network is not for 28x28 images and ten digits.
    """
    logging.disable(logging.CRITICAL)
    try:
        module = torch.export.load(io.BytesIO(content)).module()
        with torch.inference_mode():
            shape = tuple(module(torch.zeros((3, 28, 28), dtype=torch.uint8)).shape)
    except Exception as error:  # torch raises errors of any kind
        raise ValueError(
            "it is not a torch.export file like best/model.pt2, or is from another version of torch"
        ) from error
    finally:
        logging.disable(logging.NOTSET)
    if shape != (3, 10):
        raise ValueError(f"for 3 images it returns {shape}, but must return (3, 10)")
    return module
