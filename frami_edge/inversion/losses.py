"""The other terms of the inversion.

Shape legend: B batch, K classes.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def class_loss(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    """Cross entropy towards the requested class: ``-mean log softmax(z)_y``.

    Source: H. Chen et al., *DAFL*, ICCV 2019 (one-hot loss), with labels asked for instead of
    guessed.
    """
    return F.cross_entropy(logits_BK.float(), labels_B)


def adversarial_loss(teacher_BK: Tensor, student_BK: Tensor) -> Tensor:
    """``-mean_i 1[argmax z_s = argmax z_t] KL(softmax z_t ‖ softmax z_s)``.

    Clips on which both agree on the class are pushed to where the student is least sure; the
    others are left alone, for the student has yet to learn them.
    Source: G. Fang et al., *Contrastive Model Inversion*, IJCAI 2021.
    """
    t, s = teacher_BK.float(), student_BK.float()
    kl_B = F.kl_div(s.log_softmax(1), t.log_softmax(1), log_target=True, reduction="none").sum(1)
    agree_B = (t.argmax(1) == s.argmax(1)).float()
    return -(agree_B * kl_B).mean()
