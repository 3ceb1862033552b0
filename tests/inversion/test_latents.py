from __future__ import annotations

import copy

import torch

from frami_edge.config import InversionConfig
from frami_edge.device import generator
from frami_edge.sources.generator import Latents


def made(**settings: float) -> Latents:
    config = InversionConfig.model_validate({"batch_size": 4, "latent": 3, **settings})
    return Latents(config, torch.device("cpu"))


def learn(latents: Latents) -> None:
    assert latents.optimizer is not None
    latents.optimizer.zero_grad()
    latents.z_BZ.square().sum().backward()
    latents.optimizer.step()


def test_a_batch_keeps_its_noise_and_the_next_one_draws_its_own() -> None:
    latents = made(batch_steps=2, latent_rate=0)
    z = [latents.at(i, generator(0, str(i))).clone() for i in range(4)]
    assert torch.equal(z[0], z[1])
    assert torch.equal(z[2], z[3])
    assert not torch.equal(z[0], z[2])
    assert [latents.batch(i) for i in range(4)] == [0, 0, 1, 1]
    assert [latents.ends(i) for i in range(4)] == [False, True, False, True]
    assert not latents.z_BZ.requires_grad


def test_with_one_step_a_batch_nothing_learns() -> None:
    latents = made(batch_steps=1)
    z = [latents.at(i, generator(0, str(i))) for i in range(2)]
    assert not torch.equal(*z)
    assert latents.optimizer is None
    assert latents.state() == {}


def test_the_noise_learns_and_goes_on_from_its_state() -> None:
    one, other = made(batch_steps=3), made(batch_steps=3)
    start = one.at(0, generator(0, "0")).detach().clone()
    learn(one)
    assert not torch.equal(one.z_BZ, start)
    other.load_state(copy.deepcopy(one.state()))
    for latents in (one, other):
        latents.at(1, generator(0, "1"))
        learn(latents)
    assert torch.equal(one.z_BZ, other.z_BZ)
