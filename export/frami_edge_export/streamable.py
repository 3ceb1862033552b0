"""Is the trunk what it says it is? A frame may depend on its own receptive field only.

Shape legend: B batch, M mel bands, T mel frames, C channels, T' trunk frames.
"""

from __future__ import annotations

import numpy as np
import torch

from frami_edge_export.errors import ExportError
from frami_edge_export.graphs import frozen_trunk
from frami_edge_export.options import ExportOptions
from frami_edge_export.parity import parity_inputs
from frami_edge_export.protocol import ExportableStudent
from frami_edge_runtime.melspec import MelSpec

_FRAMES = 9
_TOLERANCE = 1e-4
"""Per unit of the largest value: torch may sum in another order for other lengths."""


def check_streamable(student: ExportableStudent, mel: MelSpec, options: ExportOptions) -> None:
    """Compare the trunk on a clip with the trunk on each receptive field of it.

    Raises:
        ExportError: Receptive field, stride or channels are not as declared, or the trunk pads
            along time or mixes the whole clip: a stream would be answered otherwise.
    """
    field, stride = student.receptive_field, student.stride
    trunk = frozen_trunk(student)
    clip = torch.from_numpy(parity_inputs([field + (_FRAMES - 1) * stride], mel, options.seed)[0])
    with torch.inference_mode():
        try:
            offline_BCT = trunk(clip)
            windows = [trunk(clip[..., i * stride : i * stride + field]) for i in range(_FRAMES)]
        except RuntimeError as error:
            raise ExportError(
                f"The trunk cannot compute {mel.n_mels} mel bands of {field} frames: {error}.",
                fix="Check n_mels of the MelSpec and the student's receptive_field.",
            ) from None
    expected = (1, student.channels, _FRAMES)
    if tuple(offline_BCT.shape) != expected or windows[0].shape[-1] != 1:
        raise ExportError(
            f"{clip.shape[-1]} mel frames give {tuple(offline_BCT.shape)}, not {expected}: "
            f"receptive_field {field}, stride {stride} or channels {student.channels} is wrong, or "
            f"the trunk pads along time.",
            fix="Use convolutions without padding along time and declare their true field.",
        )
    difference = (offline_BCT - torch.cat(windows, dim=2)).abs().max()
    if not bool(difference <= _TOLERANCE * max(1.0, float(np.abs(offline_BCT.numpy()).max()))):
        raise ExportError(
            f"A frame depends on more than its {field} mel frames: streaming would differ from "
            f"offline by {float(difference):.2g}.",
            fix="Remove what mixes time before pooling: attention, squeeze-excite, instance norm.",
        )
