"""Teachers that are not ours: any log-mel `nn.Module`, opened up so that it can be inverted.

`opening.open_teacher` is the front door. `tracing` watches one forward pass, `finding` reads from
it where time disappears, `foreign` wraps the module so that it shows its hidden states.
"""

from __future__ import annotations
