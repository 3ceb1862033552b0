"""Folders of Hugging Face as teachers: tiny random networks, saved as their library saves them."""

from pathlib import Path

import pytest
import torch

from frami_edge.errors import CheckpointError, ConfigError, TeacherError
from frami_edge.opening import open_model
from frami_edge.teachers import load_teacher

transformers = pytest.importorskip("transformers", reason="needs `pip install frami-edge[hf]`")

LABELS = {0: "dog", 1: "cat", 2: "rain"}
SPEECH = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "conv_dim": (8, 8, 8), "conv_stride": (5, 4, 4), "conv_kernel": (10, 8, 4),
    "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 12,
}  # fmt: skip


def saved(folder, kind, **more):
    """A classifier of this kind with its feature extractor."""
    torch.manual_seed(0)
    if kind == "AST":
        config = transformers.ASTConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
            max_length=128, num_mel_bins=32, patch_size=8, frequency_stride=8, time_stride=8,
            id2label=LABELS, **more,
        )  # fmt: skip
        model = transformers.ASTForAudioClassification(config)
        extractor = transformers.ASTFeatureExtractor(num_mel_bins=32, max_length=128)
    else:
        config = getattr(transformers, f"{kind}Config")(**SPEECH, id2label=LABELS, **more)
        model = getattr(transformers, f"{kind}ForSequenceClassification")(config)
        extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=True)
    for norm in (m for m in model.modules() if isinstance(m, torch.nn.Linear)):
        torch.nn.init.normal_(norm.weight, std=0.3)
    model.eval().save_pretrained(folder)
    extractor.save_pretrained(folder)
    return folder


def test_ast_takes_the_log_mels_of_its_extractor(tmp_path):
    folder = saved(tmp_path, "AST", problem_type="multi_label_classification")
    teacher = load_teacher(f"hf:{folder}")
    anatomy = teacher.model.anatomy
    assert (teacher.labels, teacher.output, teacher.takes) == (
        ("dog", "cat", "rain"),
        "sigmoid",
        "mel",
    )
    assert (anatomy.clip_length, anatomy.stride, anatomy.patch_bands) == (128, 8, 4)
    audio = 0.1 * torch.randn(2, 128 * 160 + 240, generator=torch.Generator().manual_seed(0))
    extractor = transformers.ASTFeatureExtractor.from_pretrained(folder)
    theirs = extractor(list(audio.numpy()), sampling_rate=16_000, return_tensors="pt").input_values
    ours = teacher.listen(audio)
    assert torch.allclose(ours[:, 0].transpose(1, 2), theirs, atol=1e-3)
    model = transformers.ASTForAudioClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        assert torch.allclose(teacher(ours), model(theirs).logits, atol=1e-3)
    hidden = teacher.hidden(ours)
    assert hidden.frames_BCT.shape == (2, 16, 16)


@pytest.mark.parametrize("kind", ["Wav2Vec2", "Hubert", "WavLM"])
def test_speech_encoders_take_audio(tmp_path, kind):
    folder = saved(tmp_path, kind)
    teacher = load_teacher(f"hf:{folder}")
    assert (teacher.takes, teacher.sample_rate) == ("audio", 16_000)
    assert teacher.model.frame_stride == 80
    assert teacher.model.head is not None
    audio = 0.1 * torch.randn(2, 9000, generator=torch.Generator().manual_seed(0)) + 0.02
    extractor = transformers.Wav2Vec2FeatureExtractor.from_pretrained(folder)
    theirs = extractor(list(audio.numpy()), sampling_rate=16_000, return_tensors="pt").input_values
    model = transformers.AutoModelForAudioClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        assert torch.allclose(teacher(audio), model(theirs).logits, atol=1e-3)
    assert open_model(Path(f"hf:{folder}")).sha256 == teacher.sha256  # as `evaluate` opens it
    again = load_teacher_from_its_description(teacher, tmp_path)
    assert again.sha256 == teacher.sha256


def load_teacher_from_its_description(teacher, folder):
    from frami_edge.teachers.opening import write_description

    write_description(folder / "teacher.yaml", teacher.description)
    return load_teacher(folder / "teacher.yaml")


def test_what_cannot_be_used_is_refused(tmp_path):
    def refused(name, kind, said):
        with pytest.raises(kind, match=said) as caught:
            load_teacher(f"hf:{tmp_path / name}")
        assert caught.value.fix

    refused("nowhere", CheckpointError, "There is no folder")
    (tmp_path / "empty").mkdir()
    refused("empty", CheckpointError, "has no config.json")
    saved(tmp_path / "bare", "AST")
    (tmp_path / "bare" / "model.safetensors").unlink()
    refused("bare", CheckpointError, "has no weights")
    config = transformers.ASTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24
    )
    transformers.ASTModel(config).save_pretrained(tmp_path / "body")
    refused("body", TeacherError, "no classification head: it is ASTModel")
    whisper = transformers.WhisperConfig(
        d_model=16, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=16,
        decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=16, vocab_size=60_000,
    )  # fmt: skip
    whisper.architectures = ["WhisperForAudioClassification"]
    whisper.save_pretrained(tmp_path / "whisper")
    refused("whisper", TeacherError, "windows of 30 s")
    with pytest.raises(ConfigError, match="was passed with labels"):
        load_teacher(f"hf:{tmp_path}", labels=["a", "b"])
