"""What training needs on this machine; what a device needs is looked at by the runtime's doctor."""

from frami_edge.doctor.probes import trainer_probes

__all__ = ["trainer_probes"]
