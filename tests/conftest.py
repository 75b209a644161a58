"""Shared fixtures: one untrained model of the smallest size, and small random studies."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from medm2g_core.codecs.tokenizer import train_tokenizer
from medm2g_core.data.reports import write_report
from medm2g_core.model import MedM2G
from medm2g_core.profiles import Profile, profile
from medm2g_core.streams import Finding
from medm2g_core.training.corpus import Corpus, descriptions, random_prompts
from medm2g_core.training.latents import LatentCorpus
from medm2g_core.training.reader import Reader

EFFUSION = Finding("pleural_effusion", "left", "", "small")
NODULE = Finding("nodule", "right", "upper", "small", 14)
EDEMA = Finding("pulmonary_edema", "", "", "moderate")
VENTRICLES = Finding("ventriculomegaly", "", "", "large")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if "cuda" in item.keywords:
                item.add_marker(
                    pytest.mark.skip(
                        reason="needs an NVIDIA GPU: torch.cuda.is_available() is False"
                    )
                )


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Networks this small run faster on one thread, and bit for bit alike."""
    torch.set_num_threads(1)


POOL = {"chest": [(), (EFFUSION,), (NODULE,), (EDEMA, EFFUSION)], "brain": [(), (VENTRICLES,)]}
"""Findings of a few made-up patients."""


def reports(n: int, region: str = "chest", seed: int = 0) -> list[str]:
    """``n`` reports of a few made-up patients."""
    pool = POOL[region]
    rngs = np.random.default_rng(seed).spawn(n)
    return [
        write_report(pool[i % len(pool)], region, 40 + i % 40, ("female", "male")[i % 2], r)
        for i, r in enumerate(rngs)
    ]


def untrained(profile: Profile, seed: int = 0) -> MedM2G:
    """A model of any profile with its own weights, in evaluation mode."""
    texts = reports(60) + reports(30, "brain") + random_prompts(90, 0)
    tokenizer = train_tokenizer(texts, profile.text_codec.vocab_size)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return MedM2G(profile, tokenizer).eval()


def speak_up(model: MedM2G) -> MedM2G:
    """Fill the output layers that start at zero, so that an untrained flow says something."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.startswith("flows.") and not p.any() and ".gate." not in name:
                p.copy_(0.2 * torch.randn(p.shape, generator=generator))
    return model


@pytest.fixture(scope="session")
def smoke() -> Profile:
    return profile("smoke")


@pytest.fixture(scope="session")
def _model(smoke: Profile) -> MedM2G:
    return speak_up(untrained(smoke))


@pytest.fixture
def model(_model: MedM2G) -> MedM2G:
    """A fresh copy for every test."""
    return copy.deepcopy(_model)


def pictures(n: int, size: int = 32, seed: int = 0) -> torch.Tensor:
    """Smooth random images (n, 1, size, size) in -1..1."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(n, 1, 6, 6, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").tanh()


CHEST = ("xray", "ct", "mri_t1", "mri_t2")
BRAIN = ("mri_t1", "mri_t2", "mri_pd", "mri_flair")


@pytest.fixture(scope="session")
def corpora(_model: MedM2G) -> list[Corpus]:
    """Four chest and four brain studies of random pictures; two reports, three prompts and three
    contradictions each."""
    out = []
    for region, names in (("chest", CHEST), ("brain", BRAIN)):
        images = {n: pictures(4, seed=10 + i).half() for i, n in enumerate(names)}
        texts = reports(8, region, seed=2)
        written = [texts[2 * i : 2 * i + 2] for i in range(4)]
        pool = POOL[region]
        said = [
            descriptions(texts[2 * i], pool[2 * i % len(pool)], region, 40, "male", i, n=3)
            for i in range(4)
        ]
        prompts, wrong = ([pair[k] for pair in said] for k in (0, 1))
        whole = Corpus(region, images, written, prompts=prompts, contradictions=wrong)
        out.append(Reader(_model).fitted_corpus(whole))
    return out


@pytest.fixture(scope="session")
def latent_corpora(_model: MedM2G, corpora: list[Corpus]) -> list[LatentCorpus]:
    return [LatentCorpus.build(_model, c) for c in corpora]
