"""Audio classifiers of the Hugging Face hub, through `transformers` (extra `hf`).

The configuration names the classes, and the feature extractor what the network takes: AST takes
Kaldi's log-mels, Wav2Vec2, HuBERT, WavLM and their kin take audio.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from frami_edge.errors import CheckpointError, ConfigError, TeacherError
from frami_edge.teachers.calling import in_words

PREFIX = "hf:"
FACTORY = f"{__name__}:audio_classifier"
_USE = "Use a checkpoint for audio classification: its config.json names ...ForAudioClassification "
_USE += "or ...ForSequenceClassification."
_DTYPE_EPS = 1e-7
"""What the feature extractor of Wav2Vec2 adds to the variance."""


class AudioClassifier(nn.Module):
    """Features or audio to logits.

    Args:
        model: A classifier of `transformers`.
        normalise: Give every clip mean 0 and variance 1, as the feature extractor of Wav2Vec2 does.
    """

    def __init__(self, model: nn.Module, *, normalise: bool) -> None:
        super().__init__()
        self.model, self.normalise = model, normalise

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, M) log-mels or (B, N) samples to (B, K) logits."""
        if self.normalise:
            mean, var = x.mean(1, keepdim=True), x.var(1, correction=0, keepdim=True)
            x = (x - mean) / (var + _DTYPE_EPS).sqrt()
        logits: Tensor = self.model(x).logits
        return logits


def facts_of(source: str) -> dict[str, Any]:
    """What a teacher's description needs, from a folder or the name of a repository.

    Raises:
        CheckpointError: There is nothing of that name, or its files are damaged.
        ConfigError: transformers is not installed.
        TeacherError: It is no audio classifier, or its features cannot be computed here.
    """
    transformers = _transformers()
    name = _name(source)
    with _in_words(source):
        config = transformers.AutoConfig.from_pretrained(name)
    heads = tuple(config.architectures or ())
    if heads and not any(h.endswith(("Classification", "XVector")) for h in heads):
        raise TeacherError(f"{source} has no classification head: it is {heads[0]}.", fix=_USE)
    if config.model_type == "whisper":
        raise TeacherError(
            f"{source} is a Whisper encoder, which answers windows of 30 s scaled by their loudest "
            "moment: no small student can follow that on a stream.",
            fix="Use an AST, Wav2Vec2, HuBERT or WavLM classifier.",
        )
    with _in_words(source):
        extractor = transformers.AutoFeatureExtractor.from_pretrained(name)
    labels = tuple(str(config.id2label[i]) for i in sorted(config.id2label))
    output = {"multi_label_classification": "sigmoid", "single_label_classification": "softmax"}
    facts: dict[str, Any] = {
        "arguments": {"source": name},
        "labels": labels,
        "output": output.get(config.problem_type),
    }
    kind = type(extractor).__name__
    if kind == "ASTFeatureExtractor":
        return facts | {"mel": _ast_mel(extractor), "layout": "BTM"}
    if kind == "Wav2Vec2FeatureExtractor":
        facts["arguments"]["normalise"] = bool(extractor.do_normalize)
        return facts | {"sample_rate": int(extractor.sampling_rate), "layout": "BN"}
    raise TeacherError(
        f"{source} uses {kind}, whose features are not known here.",
        fix="Wrap the network and its features in a module that takes audio, and give "
        "--sample-rate: docs/MY_TEACHER.md shows how.",
    )


def _ast_mel(extractor: Any) -> dict[str, Any]:
    """Keys of the MelSpec: Kaldi's filter bank features, (x - mean) / (2 std)."""
    rate = int(extractor.sampling_rate)
    window = rate // 40
    normalises = bool(extractor.do_normalize)
    return {
        "sample_rate": rate,
        "n_fft": 1 << (window - 1).bit_length(),
        "win_length": window,
        "hop_length": rate // 100,
        "n_mels": int(extractor.num_mel_bins),
        "f_min": 20.0,
        "mel_scale": "kaldi",
        "log_eps": 1.1920928955078125e-07,
        "log_floor": "clamp",
        "window": "hann_symmetric",
        "framing": "window",
        "remove_dc": True,
        "pre_emphasis": 0.97,
        "mean": float(extractor.mean) if normalises else 0.0,
        "std": 2 * float(extractor.std) if normalises else 1.0,
    }


def audio_classifier(source: str, normalise: bool = False) -> AudioClassifier:
    """The network with its weights; safetensors, or a torch file of tensors.

    Raises:
        CheckpointError: There are no weights.
        TeacherError: The weights have no classification head.
    """
    transformers = _transformers()
    with _in_words(source):
        model, found = transformers.AutoModelForAudioClassification.from_pretrained(
            source, output_loading_info=True
        )
    if missing := sorted(found["missing_keys"]):
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if missing[3:] else "")
        raise TeacherError(f"The weights of {source} lack {shown}.", fix=_USE)
    return AudioClassifier(model, normalise=normalise)


def _name(source: str) -> str:
    """The folder as a whole path, or the name of a repository."""
    name = source.removeprefix(PREFIX)
    folder = Path(os.path.expanduser(name))
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise CheckpointError(
                f"The folder {folder} has no config.json.",
                fix="Give a folder that save_pretrained wrote, or the name of a repository.",
            )
        return str(folder.resolve())
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise CheckpointError(f"There is no folder {folder}.", fix="Check the path.")
    return name


@contextmanager
def _in_words(source: str) -> Iterator[None]:
    """Errors of transformers as one sentence, and its notes off the terminal."""
    noisy = logging.getLogger("transformers")
    level = noisy.level
    noisy.setLevel(logging.ERROR)
    try:
        yield
    except Exception as error:  # a library with many
        text = in_words(error)
        if "no file named" in text or "safetensors" in text or "pytorch_model" in text:
            text = "it has no weights (model.safetensors)"
        raise CheckpointError(
            f"{source} cannot be opened: {text}.".replace("..", "."),
            fix="Give hf:FOLDER that save_pretrained wrote with its feature extractor, or "
            "hf:OWNER/NAME with a network connection.",
        ) from None
    finally:
        noisy.setLevel(level)


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise ConfigError(
            "Teachers of Hugging Face need transformers, which is not installed.",
            fix="pip install 'frami-edge[hf]'",
        ) from None
    return transformers
