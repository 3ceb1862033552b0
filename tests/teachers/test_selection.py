"""The classes that a student shall know, out of those of its teacher."""

import unicodedata

import pytest
import teacher_zoo as zoo
import torch
from teacher_zoo import K, M

import frami_edge as fe
from frami_edge.errors import ConfigError, TeacherError
from frami_edge.teachers.calling import as_logits
from frami_edge.teachers.opening import read_description, read_labels, write_description
from frami_edge.teachers.selection import read_keep

LABELS = ("Dog", "Baby cry, infant cry", "Smoke detector, smoke alarm", "Fire alarm", "Bark")
assert len(LABELS) == K


def load(name="KeywordNet", **how):
    torch.manual_seed(0)
    module = zoo.lively(getattr(zoo, name)(), "BTM")
    return fe.load_teacher(module, mel=fe.MelSpec(n_mels=M), labels=LABELS, **how)


@pytest.fixture(scope="module")
def x():
    return torch.randn(6, 1, M, 50, generator=torch.Generator().manual_seed(1))


def test_a_softmax_teacher_keeps_its_probabilities_and_gives_the_rest_to_other(x):
    keep = ["dog", "alarm=Smoke detector, smoke alarm,Fire alarm"]
    teacher, p = load(keep=keep), load()(x).softmax(1)
    assert teacher.labels == ("Dog", "alarm", "other")
    expected = torch.stack([p[:, 0], p[:, 2] + p[:, 3], p[:, 1] + p[:, 4]], dim=1)
    assert torch.allclose(teacher(x).softmax(1), expected, atol=1e-6)
    assert teacher.model.head is None
    assert teacher.hidden(x).frames_BCT.shape == load().hidden(x).frames_BCT.shape


def test_a_sigmoid_teacher_gives_a_detector_per_class_and_its_head(x):
    teacher = load("Sigmoid", keep={"baby": "Baby cry", "noise": ["Fire alarm"]})
    assert teacher.labels == ("baby", "noise")
    assert teacher.output == "sigmoid"
    hidden = teacher.hidden(x)
    with torch.no_grad():
        p = zoo.lively(_same(zoo.Sigmoid()), "BTM")(x[:, 0].transpose(1, 2))
    assert torch.allclose(hidden.logits_BK.sigmoid(), p[:, [1, 3]], atol=1e-5)
    assert torch.allclose(teacher.model.head(hidden.pooled_BD), hidden.logits_BK, atol=1e-4)
    grouped = load("Sigmoid", keep={"dog": [0, 4]})(x)
    assert torch.equal(grouped[:, 0], load("Sigmoid")(x)[:, [0, 4]].amax(1))


def _same(module):
    torch.manual_seed(0)
    return type(module)()


def test_labels_and_names_are_compared_in_one_form_of_unicode(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "Bébé") for form in ("NFC", "NFD"))
    (tmp_path / "labels.txt").write_text(f"{decomposed}\nDog\n", "utf-8-sig")
    labels = read_labels(str(tmp_path / "labels.txt"))
    assert labels == (composed, "Dog")
    (tmp_path / "cut.csv").write_text("index,mid,display_name\n0,/m/0,Dog\n1,/m")
    with pytest.raises(TeacherError, match="2 classes, 1 of them different"):
        read_labels(str(tmp_path / "cut.csv"))
    assert read_keep([decomposed], labels) == {composed: (0,)}
    assert read_keep([composed], (decomposed, "Dog")) == {decomposed: (0,)}


@pytest.mark.parametrize(
    ("keep", "said"),
    [
        (["Dgo"], "no class 'Dgo'. Did you mean 'Dog'?"),
        (["smoke"], "'Smoke detector, smoke alarm'"),
        (["Dog", "0"], "has 'Dog' twice"),
        (["a=Dog", "a=Bark"], "has 'a' twice"),
        (["a=Dog,Bark", "Bark"], "has 'Bark' twice"),
        ([""], "is empty"),
        (["a="], "is empty"),
        (["9"], "no class '9'"),
        (9, "no class '9'"),
        (["other=Dog"], "what is not selected"),
    ],
)
def test_a_selection_that_cannot_be_meant_is_refused(keep, said):
    with pytest.raises(ConfigError) as caught:
        load(keep=keep)
    assert said in str(caught.value)


def test_the_output_that_was_named_must_fit_the_answers():
    with pytest.raises(TeacherError, match="sigmoid probabilities, which no softmax follows"):
        load("Sigmoid", output="softmax")
    assert load(output="sigmoid").output == "sigmoid"
    assert load().output == "softmax"


def test_logits_of_a_tagger_are_recognised_and_said_to_be_a_guess():
    class Tagger(zoo.KeywordNet):
        def forward(self, x):
            return (super().forward(x) - 6).repeat(1, 4)

    torch.manual_seed(0)
    labels = [f"{i}" for i in range(4 * K)]
    mel = fe.MelSpec(n_mels=M)
    tagger = zoo.lively(Tagger(), "BTM")
    teacher = fe.load_teacher(tagger, mel=mel, labels=labels)
    assert teacher.output == "sigmoid"
    assert any("--output sigmoid" in doubt for doubt in teacher.model.doubts)
    sure = fe.load_teacher(tagger, mel=mel, labels=labels, output="softmax")
    assert sure.output == "softmax"
    assert not any("--output" in doubt for doubt in sure.model.doubts)


def test_a_description_keeps_its_selection(tmp_path, x):
    torch.save(zoo.lively(_same(zoo.KeywordNet()), "BTM").state_dict(), tmp_path / "w.pt")
    (tmp_path / "labels.csv").write_text(
        "index,mid,display_name\n" + "".join(f'{i},/m/{i},"{n}"\n' for i, n in enumerate(LABELS))
    )
    teacher = fe.load_teacher(
        "teacher_zoo:KeywordNet", weights=tmp_path / "w.pt", mel={"n_mels": M},
        labels=tmp_path / "labels.csv", keep=["2", "bark"],
    )  # fmt: skip
    assert teacher.labels == ("Smoke detector, smoke alarm", "Bark", "other")
    write_description(tmp_path / "teacher.yaml", teacher.description)
    again = fe.load_teacher(tmp_path / "teacher.yaml")
    assert read_description(tmp_path / "teacher.yaml").keep == teacher.card.keep
    assert torch.equal(again(x), teacher(x))
    with pytest.raises(ConfigError, match="already a selection"):
        fe.load_teacher(again, keep=["Bark"])


def test_probabilities_at_low_precision_become_finite_logits():
    p = torch.tensor([[1.0, 0.0, 0.5]], dtype=torch.bfloat16)
    z = as_logits(p, "sigmoid probabilities")
    assert torch.isfinite(z).all()
    assert z[0, 0] > 15
    assert z[0, 1] < -15
