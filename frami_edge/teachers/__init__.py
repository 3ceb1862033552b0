"""Teachers that are not ours: any `nn.Module` for log-mels or audio, opened up for inversion.

`load_teacher` opens them and our own checkpoints. `calling` finds how a module is called, `tracing`
in one forward pass where time disappears; `foreign` wraps the module so that it shows its hidden
states.
"""

from frami_edge.teachers.opening import TeacherDescription, load_teacher

__all__ = ["TeacherDescription", "load_teacher"]
