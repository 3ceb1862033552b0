"""Teachers that are not ours: any log-mel `nn.Module`, opened up so that it can be inverted.

`load_teacher` opens them and our own checkpoints. `tracing` finds in one forward pass where time
disappears, `foreign` wraps the module so that it shows its hidden states.
"""

from frami_edge.teachers.opening import TeacherDescription, load_teacher

__all__ = ["TeacherDescription", "load_teacher"]
