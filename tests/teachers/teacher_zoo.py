"""Small foreign teachers, each with another habit of the field; untrained, with live statistics."""

import torch
import torchaudio
from torch import nn
from torch.nn import functional as F

from frami_edge_runtime.melspec import MelSpec

M, K = 16, 5


def conv(c_in, c_out, stride=1):
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU(True)
    )


class KeywordNet(nn.Module):
    """(B, T, M) in, mean over time inline, logits out: a common keyword spotter."""

    def __init__(self, width=12):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv1d(M, width, 5, 2, 2), nn.BatchNorm1d(width, affine=False)
        self.conv2, self.bn2 = nn.Conv1d(width, width, 3, padding=1), nn.BatchNorm1d(width)
        self.classify = nn.Linear(width, K)

    def forward(self, x):
        assert x.shape[2] == M
        x = torch.relu(self.bn1(self.conv1(x.transpose(1, 2))))
        x = torch.relu(self.bn2(self.conv2(x)))
        return self.classify(x.mean(-1))


class XVector(nn.Module):
    """(B, M, T), statistics pooling inline, two affine layers with a BatchNorm between."""

    def __init__(self):
        super().__init__()
        self.tdnn = nn.Sequential(
            nn.Conv1d(M, 16, 5), nn.ReLU(), nn.BatchNorm1d(16),
            nn.Conv1d(16, 12, 3, dilation=2), nn.ReLU(), nn.BatchNorm1d(12),
        )  # fmt: skip
        self.segment = nn.Linear(24, 10)
        self.norm = nn.BatchNorm1d(10)
        self.out = nn.Linear(10, K)

    def forward(self, x):
        assert x.ndim == 3
        assert x.shape[1] == M
        h = self.tdnn(x)
        pooled = torch.cat([h.mean(2), h.std(2, unbiased=False)], 1)
        return self.out(torch.relu(self.norm(self.segment(pooled))))


class Attention(nn.Module):
    """Attention pooling in a module of its own, log-softmax at the end."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(conv(1, 8, 2), conv(8, 12, 2))
        self.pool = AttentivePool(12)
        self.fc = nn.Linear(12, K)

    def forward(self, x):
        return self.fc(self.pool(self.trunk(x).mean(2))).log_softmax(1)


class AttentivePool(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.score = nn.Sequential(nn.Conv1d(c, 8, 1), nn.Tanh(), nn.Conv1d(8, 1, 1))

    def forward(self, h):
        return (h * self.score(h).softmax(2)).sum(2)


class InlineAttention(nn.Module):
    """Attention pooling inside `forward`: the last module with time gives a score a frame."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv1d(M, 12, 5), nn.BatchNorm1d(12), nn.ReLU())
        self.score = nn.Linear(12, 1)
        self.fc = nn.Linear(12, K)
        nn.init.normal_(self.score.weight, std=3.0)  # scores of all sizes

    def forward(self, x):
        h = self.trunk(x.transpose(1, 2)).transpose(1, 2)
        return self.fc((h * self.score(h).softmax(1)).sum(1))


class SqueezeExcite(nn.Module):
    """Time is lost and comes back inside; global average pooling, dropout, softmax at the end."""

    def __init__(self):
        super().__init__()
        self.stem, self.more = conv(1, 8, 2), conv(8, 16, 2)
        self.squeeze, self.excite = nn.Linear(8, 4), nn.Linear(4, 8)
        self.pool, self.drop = nn.AdaptiveAvgPool2d(1), nn.Dropout(0.5)
        self.fc = nn.Conv2d(16, K, 1)

    def forward(self, x):
        h = self.stem(x)
        gate = torch.sigmoid(self.excite(torch.relu(self.squeeze(h.mean((2, 3))))))
        h = self.more(h * gate[:, :, None, None])
        return {"logits": self.fc(self.drop(self.pool(h))).flatten(1).softmax(1)}


class SubSpectral(nn.Module):
    """BatchNorm over groups of bands, (B, 1, T, M) in, maximum plus mean over time."""

    def __init__(self):
        super().__init__()
        self.band_norm = nn.BatchNorm2d(M)
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.sub = nn.BatchNorm2d(8 * 4)
        self.last = conv(8, 12, 2)
        self.fc1, self.fc2 = nn.Linear(12, 12), nn.Linear(12, K)

    def forward(self, x):
        assert x.shape[3] == M
        x = self.band_norm(x.transpose(1, 3)).transpose(1, 3)
        h = self.conv(x)
        b, c, t, m = h.shape
        split = h.transpose(2, 3).reshape(b, c * 4, m // 4, t)
        h = torch.relu(self.sub(split)).reshape(b, c, m, t).transpose(2, 3)
        h = self.last(h).mean(3)
        return self.fc2(F.relu(self.fc1(h.amax(2) + h.mean(2))))


class Recurrent(nn.Module):
    """Every frame sees the whole clip; (B, T, M)."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(M)
        self.gru = nn.GRU(M, 6, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(12, K)

    def forward(self, x):
        assert x.shape[2] == M
        h, _ = self.gru(self.norm(x.transpose(1, 2)).transpose(1, 2))
        return self.fc(h.mean(1))


class ScoresOverTime(nn.Module):
    """Averages class scores over time: nothing runs behind the pooling."""

    def __init__(self):
        super().__init__()
        self.net = nn.Conv1d(M, K, 3)

    def forward(self, x):
        assert x.shape[2] == M
        return self.net(x.transpose(1, 2)).mean(2)


class Shared(nn.Module):
    """One ReLU and one dropout before and after the pooling, and one head for both."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv1d(M, 12, 5), nn.BatchNorm1d(12)
        self.relu, self.drop = nn.ReLU(), nn.Dropout(0.2)
        self.mix, self.fc = nn.Linear(12, 12), nn.Linear(12, K)

    def forward(self, x):
        assert x.shape[1] == M
        h = self.drop(self.relu(self.norm(self.conv(x)))).transpose(1, 2)
        self.fc(self.relu(self.mix(h)))  # an answer per frame, unused here
        return self.fc(self.drop(self.relu(self.mix(h.mean(1)))))


class Sigmoid(KeywordNet):
    """Several labels at once."""

    def forward(self, x):
        return torch.sigmoid(super().forward(x))


def lively(model, layout="B1MT", frames=64):
    """BatchNorm statistics of some data, not the initial ones."""
    from frami_edge.teachers.calling import arrange, probe_mels

    model.train()
    with torch.no_grad():
        for _ in range(10):
            model(arrange(probe_mels(M, frames, batch=8), layout))
    return model.eval()


class SelfAttention(nn.Module):
    """As timm writes it: a module, the dropout, sees the matrix (batch, heads, tokens, tokens)."""

    def __init__(self, width, heads=2):
        super().__init__()
        self.qkv, self.out, self.drop = (
            nn.Linear(width, 3 * width),
            nn.Linear(width, width),
            nn.Dropout(),
        )
        self.heads = heads

    def forward(self, h):
        q, k, v = self.qkv(h).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        weights = self.drop((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1))
        return h + self.out((weights @ v).transpose(1, 2).flatten(2))


class Patches(nn.Module):
    """A patch transformer, (B, T, M) in: frequency x time flattened into tokens.

    With ``frames`` it has learned places, as AST, and so one clip length.
    """

    def __init__(self, frames=None, patch=8, width=12):
        super().__init__()
        self.embed = nn.Conv2d(1, width, patch, patch)
        self.start = nn.Parameter(torch.randn(1, 1, width))
        tokens = 1 + (frames or 0) // patch * (M // patch)
        self.places = nn.Parameter(0.1 * torch.randn(1, tokens, width)) if frames else None
        layer = nn.TransformerEncoderLayer(width, 2, 24, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.mix, self.norm, self.head = (
            SelfAttention(width),
            nn.LayerNorm(width),
            nn.Linear(width, K),
        )

    def forward(self, x):
        assert x.ndim == 3
        assert x.shape[2] == M
        h = self.embed(x[:, None].transpose(2, 3)).flatten(2).transpose(1, 2)
        h = torch.cat([self.start.expand(len(h), 1, -1), h], 1)
        h = self.mix(h if self.places is None else h + self.places)
        h = self.norm(self.encoder(h))
        return self.head(h[:, 0])


class Vggish(nn.Module):
    """96 frames, flattened: (B, 1, T, M)."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(conv(1, 6), nn.MaxPool2d(2), conv(6, 8), nn.MaxPool2d(2))
        self.embed = nn.Sequential(nn.Linear(8 * 24 * 4, 20), nn.ReLU())
        self.fc = nn.Linear(20, K)

    def forward(self, x):
        h = self.features(x).permute(0, 2, 3, 1)
        return self.fc(self.embed(h.reshape(len(h), -1)))


class Crnn(nn.Module):
    """Sound event detection: a sigmoid per frame, (B, 1, T, M) in."""

    def __init__(self, clip="none"):
        super().__init__()
        self.trunk = nn.Sequential(conv(1, 6), nn.MaxPool2d((2, 4)), conv(6, 8))
        self.gru = nn.GRU(32, 6, batch_first=True, bidirectional=True)
        self.strong, self.soft, self.clip = nn.Linear(12, K), nn.Linear(12, K), clip

    def forward(self, x):
        assert x.shape[3] == M
        h, _ = self.gru(self.trunk(x).transpose(1, 2).flatten(2))
        strong = torch.sigmoid(self.strong(h))
        if self.clip == "none":
            return strong
        if self.clip == "maximum":
            return strong.amax(1)
        weights = self.soft(h).softmax(-1)
        return strong, (strong * weights).sum(1) / weights.sum(1)


class Cnn14(nn.Module):
    """PANNs: BatchNorm over bands, functional pooling, maximum plus mean over time, sigmoid."""

    def __init__(self):
        super().__init__()
        self.bn0 = nn.BatchNorm2d(M)
        self.conv1, self.bn1 = nn.Conv2d(1, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 12, 3, 1, 1, bias=False), nn.BatchNorm2d(12)
        self.fc1, self.fc_audioset = nn.Linear(12, 12), nn.Linear(12, K)

    def body(self, x):
        x = self.bn0(x.transpose(1, 3)).transpose(1, 3)
        x = F.avg_pool2d(F.relu_(self.bn1(self.conv1(x))), 2)
        x = F.dropout(x, 0.2, training=self.training)
        x = F.avg_pool2d(F.relu_(self.bn2(self.conv2(x))), 2).mean(3)
        x = F.dropout(x.amax(2) + x.mean(2), 0.5, training=self.training)
        x = F.relu_(self.fc1(x))
        embedding = F.dropout(x, 0.5, training=self.training)
        return {"clipwise_output": torch.sigmoid(self.fc_audioset(x)), "embedding": embedding}

    def forward(self, x):
        assert x.shape[3] == M
        return self.body(x)


# --- Networks that take audio

RATE = 16_000


class Panns(Cnn14):
    """Audio in, (B, N): a transform of convolutions, as torchlibrosa's, decibels, then Cnn14."""

    def __init__(self, rate=RATE):
        super().__init__()
        n, bins = 256, 129
        window = torch.hann_window(n)
        angle = 2 * torch.pi * torch.arange(bins)[:, None] * torch.arange(n)[None] / n
        self.n, self.hop = n, 80
        self.real = nn.Conv1d(1, bins, n, self.hop, bias=False)
        self.imag = nn.Conv1d(1, bins, n, self.hop, bias=False)
        with torch.no_grad():
            self.real.weight.copy_((angle.cos() * window)[:, None])
            self.imag.weight.copy_((-angle.sin() * window)[:, None])
        spec = MelSpec(
            sample_rate=rate, n_fft=n, win_length=n, hop_length=self.hop, n_mels=M, f_min=50.0,
            mel_scale="slaney", norm="slaney",
        )  # fmt: skip
        self.melW = nn.Parameter(torch.from_numpy(spec.filterbank))
        self.extract = LogmelExtractor(self)

    def forward(self, audio):
        assert audio.ndim == 2
        x = F.pad(audio[:, None], (self.n // 2, self.n // 2), mode="reflect")
        energies = self.real(x).square() + self.imag(x).square()
        return self.body(self.extract(energies.transpose(1, 2)[:, None]))


class LogmelExtractor(nn.Module):
    def __init__(self, owner):
        super().__init__()
        self.owner = [owner]

    def forward(self, energies):
        return 10 * (energies @ self.owner[0].melW).clamp_min(1e-10).log10()


class Inline(nn.Module):
    """torchaudio's transform, logarithm and normalisation inside `forward`."""

    def __init__(self, how="log"):
        super().__init__()
        self.mel = torchaudio.transforms.MelSpectrogram(RATE, 512, 400, 160, n_mels=M)
        self.how = how
        self.net = KeywordNet()

    def forward(self, audio):
        assert audio.ndim == 3
        y = torch.log(self.mel(audio[:, 0]) + 1e-6)
        if self.how == "clip":
            y = y - y.mean((1, 2), keepdim=True)
        return self.net(((y + 7) / 3.5).transpose(1, 2))


class Kaldi(nn.Module):
    """Frames as Kaldi makes them, inside a method."""

    def __init__(self):
        super().__init__()
        self.net = KeywordNet()

    def fbank(self, audio):
        fbank = torchaudio.compliance.kaldi.fbank
        return torch.stack(
            [
                fbank(x[None], num_mel_bins=M, window_type="povey", sample_frequency=RATE)
                for x in audio
            ]
        )

    def forward(self, audio):
        assert audio.ndim == 2
        return self.net((self.fbank(audio) + 4) / 4)


class M5(nn.Module):
    """Audio in, (B, 1, N): learned filters."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(1, 8, 80, 16), nn.BatchNorm1d(8), nn.ReLU(), nn.MaxPool1d(4),
            nn.Conv1d(8, 12, 3), nn.BatchNorm1d(12), nn.ReLU(), nn.MaxPool1d(4),
        )  # fmt: skip
        self.fc = nn.Linear(12, K)

    def forward(self, audio):
        assert audio.shape[1] == 1
        return self.fc(self.layers(audio).mean(2))


class SampleNet(M5):
    """One clip length: 1 s."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(12 * 61, K)

    def forward(self, audio):
        return self.fc(self.layers(audio).flatten(1))
