"""The Python interface: from a teacher to a bank, a student, exported files and scores.

The command line, the quickstart and the experiments call these functions and nothing below them.
Every function takes `progress=`, a callback that receives `frami_edge.progress.Progress`. Notes and
warnings go to the logger `frami_edge`. With `out=None` files are written to a temporary folder that
is deleted together with the result.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import Tensor

from frami_edge import distillation, filling, plots, training
from frami_edge.bank import Bank
from frami_edge.cards import CARD, export_readme, student_readme
from frami_edge.checkpoint import (
    Student,
    Teacher,
    load_checkpoint,
    parameters,
    save_checkpoint,
)
from frami_edge.config import JourneyConfig, TeacherConfig
from frami_edge.controls import parse_controls, plan_controls, student_recipe
from frami_edge.data.store import load_features
from frami_edge.device import Precision, choose_compute
from frami_edge.distillation import Sampler
from frami_edge.errors import ConfigError
from frami_edge.evaluation import (
    Evaluation,
    Score,
    as_selected,
    check_teacher,
    label_targets,
    labels_of,
    logits_of,
    open_fold,
    read_label_map,
    score,
    training_clips,
)
from frami_edge.io import atomic_write_text, sha256_file
from frami_edge.journey import (
    Journey,
    PathLike,
    accuracy_on,
    calibration_mels,
    changed,
    compute_for,
    draw_bank,
    draw_curves,
    facts_of,
    journey_config,
    kept,
    new_folder,
    threshold_clips,
)
from frami_edge.models import macs_per_second
from frami_edge.opening import OpenedModel, open_model
from frami_edge.plots import draw_export_report
from frami_edge.progress import ProgressCallback
from frami_edge.readiness import judge
from frami_edge.runs import RunFolder, check_folder, record_compute
from frami_edge.sizing import doubt
from frami_edge.teachers import load_teacher
from frami_edge.teachers.front_end_fit import check_front_end
from frami_edge_export.engine import EngineOptions, Seconds, TensorRTUnavailable
from frami_edge_export.exporter import export_student
from frami_edge_export.options import ExportOptions
from frami_edge_export.report import ExportReport
from frami_edge_export.tensorrt import EngineReport, rebuild
from frami_edge_export.web import onnxruntime_web, write_page
from frami_edge_runtime.state import check_place

log = logging.getLogger("frami_edge")

ENGINE_CLIPS = 256
"""Synthetic clips on which an engine is compared with its ONNX file."""

__all__ = [
    "build_engines",
    "distill",
    "evaluate",
    "export",
    "invert",
    "load_teacher",
    "train_teacher",
]


def invert(
    teacher: Teacher | PathLike,
    *,
    config: JourneyConfig | PathLike | None = None,
    seed: int | None = None,
    sources: Mapping[str, float] | Sequence[str] | None = None,
    recordings: PathLike | None = None,
    steps: int | None = None,
    overrides: Mapping[str, Any] | None = None,
    out: PathLike | None = None,
    resume: bool = False,
    device: str = "auto",
    precision: Precision = "auto",
    deterministic: bool = False,
    progress: ProgressCallback | None = None,
) -> Bank:
    """Make a bank of synthetic clips from a teacher. No audio is used, but given `recordings`.

    Args:
        teacher: A teacher, or what `load_teacher` opens.
        config: A config, a YAML file, or the name of a preset; None for sizes that fit the teacher.
        seed: Seeds everything random. Replaces the config's.
        sources: Weight of each source in the mix, such as `{"inversion": 2, "procedural": 1}`, or
            their names for equal weights. Replaces `bank.sources`.
        recordings: Folder of your own unlabelled audio, which becomes a source of that name with
            the weight 1, or its weight in `sources`. Cards and tables name it.
        steps: Steps of the inversion and of the translator. Replaces both in the config.
        overrides: Further config values by dotted key, such as `{"bank.clip_s": 0.64}`.
        out: Run folder; the bank is in `out/bank`.
        resume: Continue the run in `out`; the result is the same as without the interruption.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        precision: `auto`, `bf16` or `fp32`; `auto` takes bf16 where the hardware supports it.
        deterministic: On a GPU, use kernels that give the same bits on every run.
        progress: Called after each step.

    Returns:
        The bank; `bank.index.health` has its health figures.

    Raises:
        ConfigError: The config has mistakes.
        TeacherError: The teacher cannot be inverted with this config.
        RunError: `out` holds another run, or `resume` finds none.
    """
    teacher = load_teacher(teacher)
    settings = journey_config(
        config, teacher, seed=seed, sources=sources, recordings=recordings, steps=steps,
        overrides=overrides,
    )  # fmt: skip
    journey = Journey.prepare(teacher, settings, out, device, precision, deterministic)
    filling.check_recordings(settings.bank)
    check_front_end(journey.teacher)
    with journey.run("invert", resume=resume) as run:
        bank = filling.invert(
            journey.teacher, settings.bank, journey.folder / "bank", journey.compute, settings.seed,
            audio=journey.audio, run=run, progress=progress,
        )  # fmt: skip
        run.record(plots=draw_bank(run, bank))
    return kept(bank, journey.folder, out)


def distill(
    teacher: Teacher | PathLike,
    bank: Bank | Sampler | PathLike | None = None,
    *,
    config: JourneyConfig | PathLike | None = None,
    steps: int | None = None,
    budget: str | float | None = None,
    seed: int | None = None,
    sources: Mapping[str, float] | Sequence[str] | None = None,
    recordings: PathLike | None = None,
    overrides: Mapping[str, Any] | None = None,
    out: PathLike | None = None,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    precision: Precision = "auto",
    deterministic: bool = False,
    progress: ProgressCallback | None = None,
) -> Student:
    """Distil a teacher into a compact student on synthetic clips. The last step is the result.

    Args:
        teacher: A teacher, or what `load_teacher` opens.
        bank: A bank of this teacher or its folder; or any sampler of clips with
            `batch(n, generator)` that returns (n, 1, M, T) normalised log-mels of the teacher's
            front end, or (n, N) samples at its rate. None to make a bank in `out/bank` first.
        config: A config, a YAML file, or the name of a preset; None for the config of the bank, and
            sizes that fit the teacher for the rest.
        steps: Distillation steps. Replaces `distill.steps`.
        budget: Time for bank and student, such as `"10min"` or seconds: a few steps are timed, and
            the numbers of steps and clips are scaled to it. A resumed run keeps its numbers.
        seed: Seeds everything random. Replaces the config's.
        sources: Weights of the bank's sources, as in `invert`.
        recordings: Folder of your own audio, as in `invert`.
        overrides: Further config values by dotted key, such as `{"distill.gain": 0}`.
        out: Run folder, with the student, its model card, metrics and pictures.
        resume: Continue the run in `out`; the result is the same as without the interruption.
        overwrite: Delete an earlier run in `out`.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        precision: `auto`, `bf16` or `fp32`; `auto` takes bf16 where the hardware supports it.
        deterministic: On a GPU, use kernels that give the same bits on every run.
        progress: Called after each step.

    Returns:
        The student; `student.save(path)` writes it as one file. `student.card.metrics["readiness"]`
        is the verdict on it, from synthetic clips alone (`frami_edge.readiness.Readiness`): a weak
        student is returned too, with a warning.

    Raises:
        BankError: The bank belongs to another teacher, or lacks a source.
        ConfigError: The config has mistakes, or does not fit the bank; or the budget is too short.
        RunError: `out` holds another run, `resume` finds none, or the distillation diverged.
        TeacherError: The teacher cannot be inverted with this config.
    """
    given = Bank.open(Path(bank)) if isinstance(bank, str | os.PathLike) else bank
    own = given if isinstance(given, Bank) else None
    teacher = load_teacher(teacher)
    settings = journey_config(
        config, teacher, bank=own, seed=seed, sources=sources, recordings=recordings,
        overrides={"distill.steps": steps, **(overrides or {})},
    )  # fmt: skip
    journey = Journey.prepare(teacher, settings, out, device, precision, deterministic)
    loaded, compute = journey.teacher, journey.compute
    sampler = None if given is None else journey.sampler(given)
    distillation.check_inherited(settings, loaded, journey.student_mel)
    if sampler is None:
        filling.check_recordings(settings.bank)
        check_front_end(loaded)
    if budget is not None:
        if steps is not None:
            raise ConfigError("steps and budget both decide the steps.", fix="Give one of them.")
        journey = journey.within(budget, sampler, resume=resume)
        settings = journey.config
    elif (given is None or own) and (doubts := doubt(loaded, settings)):
        log.warning(doubts)
    hashes = {"bank": sha256_file(own.folder / "bank.json")} if own else {}
    with journey.run("distill", hashes=hashes, resume=resume, overwrite=overwrite) as run:
        pictures = {}
        if sampler is None:
            own = filling.invert(
                loaded, settings.bank, journey.folder / "bank", compute, settings.seed,
                audio=journey.audio, run=run, progress=progress,
            )  # fmt: skip
            sampler = journey.sampler(own)
            pictures = draw_bank(run, own)
        mel = distillation.normalised(loaded, journey.student_mel, sampler, settings.seed)
        model = distillation.distill(
            loaded, sampler, settings, compute, mel=mel, run=run, progress=progress
        )
        verdict = judge(loaded, model, settings, compute, mel, own)
        metrics = {
            "synthetic_agreement": verdict.agreement["procedural"],
            "steps": settings.distill.steps,
            "readiness": verdict.to_dict(),
        }
        if own and not verdict:  # the student of another sampler is a control, or an experiment
            log.warning(str(verdict))
        heard = own.index.recordings if own and settings.bank.shares.get("recordings") else 0
        card = journey.card(model, metrics, mel, heard)
        sha256 = save_checkpoint(run.path("student.safetensors"), model, card)
        student = Student(model.eval(), card, mel, sha256)
        pictures |= draw_curves(run, "distill")
        facts = {"parameters": parameters(model), "macs_per_second": macs_per_second(model, mel)}
        if own:
            text = student_readme(student, own.index.health, pictures, run.manifest)
            atomic_write_text(run.path(CARD), text)
        run.record(student={"sha256": sha256, **facts, **metrics}, plots=pictures)
    return kept(student, journey.folder, out)


def train_teacher(
    config: TeacherConfig | PathLike,
    *,
    overrides: Mapping[str, Any] | None = None,
    data_root: PathLike | None = None,
    out: PathLike | None = None,
    resume: bool = False,
    device: str = "auto",
    precision: Precision = "auto",
    deterministic: bool = False,
    progress: ProgressCallback | None = None,
) -> Teacher:
    """Train a teacher on real audio with one fold held out, and score it on that fold once.

    Args:
        config: A config, a YAML file, or the name of a preset.
        overrides: Config values by dotted key, such as `{"data.fold": 1}`.
        data_root: Folder that holds the data sets; None for $FRAMI_EDGE_DATA.
        out: Run folder, with the checkpoint, its model card, metrics and pictures.
        resume: Continue the run in `out`; the result is the same as without the interruption.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        precision: `auto`, `bf16` or `fp32`; `auto` takes bf16 where the hardware supports it.
        deterministic: On a GPU, use kernels that give the same bits on every run.
        progress: Called after each step.

    Returns:
        The teacher; `teacher.card.metrics` has its accuracy on the held-out fold.

    Raises:
        ConfigError: The config has mistakes.
        DataError: The data set or its fold is missing, or no clip can be used.
        TeacherError: The training diverged.
    """
    settings = changed(config, TeacherConfig, overrides)
    compute = compute_for(device, precision, deterministic, settings.seed)
    root = None if data_root is None else Path(data_root)
    folder = new_folder(out)
    check_folder(folder, resume=resume)
    training.choose_clips(settings, root)  # a missing set must leave no run behind
    log.info("Device: %s", compute.reason)
    with RunFolder.create(
        folder, command="train-teacher", config=settings, resume=resume,
        seeds={"seed": settings.seed}, device=compute.reason,
    ) as run:  # fmt: skip
        record_compute(run, compute, deterministic=deterministic)
        trained = training.train_teacher(run, settings, root, compute, progress)
    return kept(load_checkpoint(trained.path, "teacher"), folder, out)


def export(
    student: Student | PathLike,
    *,
    bank: Bank | PathLike | None = None,
    int8: bool = False,
    portable: bool = False,
    with_frontend: bool = False,
    web: PathLike | None = None,
    ort_web: PathLike | None = None,
    tensorrt: bool = False,
    seconds: str | None = None,
    samples: int = 1024,
    data: str | None = None,
    fold: str | int | None = None,
    data_root: PathLike | None = None,
    options: ExportOptions | None = None,
    name: str | None = None,
    out: PathLike = "export",
    progress: ProgressCallback | None = None,
) -> ExportReport:
    """Write a student as ONNX files and compare every file with the student.

    No audio is used, except that `data` measures the accuracy of each file; it chooses nothing.

    Args:
        student: A student or its checkpoint.
        bank: The student's bank or its folder: calibrates int8, and tells thresholds how many
            sounds they find. Without it int8 is calibrated on procedural clips.
        int8: Also write int8 files.
        portable: Also write one int8 file for ONNX Runtime and TensorRT alike.
        with_frontend: Also write a model that takes samples, with the log-mel in the graph.
        web: Folder for a web page that runs that model on a microphone or a file.
        ort_web: Folder with onnxruntime-web for the page; None to fetch it.
        tensorrt: Also write fp16 files, and build engines where TensorRT and a GPU are present.
        seconds: Audio in one call of an engine, `MIN:OPT:MAX`; None for what streams need.
        samples: Synthetic clips that calibrate and judge int8.
        data: Data set on which the accuracy of every file is measured.
        fold: Fold of `data`; None for the one that the teacher held out.
        data_root: Folder that holds the data sets; None for $FRAMI_EDGE_DATA.
        options: Gates, seed and time budgets.
        name: Prefix of the files; None for the name of the checkpoint, or `student`.
        out: Folder of the files; older files of the same names are replaced.
        progress: Called while log-mels of `data` are computed.

    Returns:
        The report, which is true where every gate passed; `out/README.md` is its model card.

    Raises:
        BankError: The bank belongs to another teacher.
        ConfigError: The arguments do not go together.
        DataError: The data set is missing, or the teacher was trained on that fold.
        ExportError: The student cannot be exported.
        OutputError: `out` or `web` cannot be written.
    """
    for place in (out, web):
        if place is not None:
            check_place(place, folder=True)
    options, span = options or ExportOptions(), Seconds.parse(seconds) if seconds else None
    if portable and not int8:
        raise ConfigError("portable concerns int8 files, and int8 is off.", fix="Add --int8.")
    if data is None and (fold is not None or data_root):
        raise ConfigError("fold and data_root need data.", fix="Add --data NAME.")
    if isinstance(student, Student):
        loaded, name = student, name or "student"
    else:
        loaded, name = load_checkpoint(Path(student), "student"), name or Path(student).stem
    if isinstance(bank, str | os.PathLike):  # a wrong one is found before the work
        bank = Bank.open(Path(bank))
    folder, mels, measured, accuracy = Path(out), None, None, None
    page = None if web is None else onnxruntime_web(None if ort_web is None else Path(ort_web))
    if int8:
        mels = calibration_mels(loaded, bank, count=samples, seed=options.seed)
        log.info("Calibration: %s.", mels)
    if data is not None:
        root = None if data_root is None else Path(data_root)
        known, opened = loaded.card.real_clips, _opened(loaded)
        sounds, key, clips = open_fold(known, data, fold, root, who="The student")
        targets_DK = label_targets(opened.labels, sounds, selection=opened.selection)
        features = load_features(loaded.mel, clips, progress)
        heard = training_clips(features, known, sounds, key)
        features = heard.left_out(features)
        measured = {"name": sounds.name, "fold": key, "clips": len(features)}
        accuracy = accuracy_on(features, labels_of(targets_DK[features.labels]))
    log.info("Exporting, comparing and timing; this takes seconds to minutes.")
    report = export_student(
        loaded.model.collapse(),
        facts_of(loaded),
        folder,
        name=name,
        int8=int8,
        calibration=None if mels is None else mels.mels,
        source="" if mels is None else mels.source,
        portable=portable,
        half=tensorrt,
        waveform=with_frontend or web is not None,
        options=options,
        evaluate=accuracy,
        clips=threshold_clips(loaded, bank, options.seed),
    )
    picture = "plots/export.png"
    draw_export_report(report.to_dict(), folder / picture)
    shown = {"size, latency and answers of every file": picture}
    atomic_write_text(folder / CARD, export_readme(report, loaded, measured, shown))
    if web is not None and page is not None:
        write_page(folder / f"{name}.wave.onnx", Path(web), page)
    if not tensorrt:
        return report
    try:
        few = None if mels is None else mels.mels[:ENGINE_CLIPS]
        engines = rebuild(folder, options=EngineOptions(seconds=span), mels=few)
    except TensorRTUnavailable as missing:
        log.warning("No engines were built: %s", missing)
        return dataclasses.replace(report, notes=(*report.notes, f"No engines: {missing.message}"))
    return dataclasses.replace(report, engines=engines)


def build_engines(
    folder: PathLike, *, out: PathLike | None = None, seconds: str | None = None
) -> EngineReport:
    """Build TensorRT engines from the folder of an export, on the device that runs them.

    Args:
        folder: Folder of an export with `tensorrt=True`.
        out: Folder of the engines; None for `folder`.
        seconds: Audio in one call of an engine, `MIN:OPT:MAX`; None for what streams need.

    Raises:
        ExportError: The folder is no such export, or `out` cannot be written.
        TensorRTUnavailable: There is no TensorRT, or no usable NVIDIA driver.
    """
    span = Seconds.parse(seconds) if seconds else None
    place = None if out is None else Path(out)
    return rebuild(Path(folder), out_dir=place, options=EngineOptions(seconds=span))


def evaluate(
    model: Student | Teacher | PathLike,
    *,
    data: str,
    fold: str | int | None = None,
    teacher: Teacher | PathLike | None = None,
    data_root: PathLike | None = None,
    label_map: Mapping[str, Sequence[str]] | PathLike | None = None,
    controls: Sequence[str] | None = None,
    bank: PathLike | None = None,
    out: PathLike | None = None,
    resume: bool = False,
    device: str = "auto",
    precision: Precision = "auto",
    progress: ProgressCallback | None = None,
) -> Evaluation:
    """Score a model on real clips that its teacher was not trained on.

    Args:
        model: A student or teacher, or any model file that `open_model` reads.
        data: Name of a data set, `folder:PATH`, or `NAME-part` for what is there of a known set.
        fold: Test fold, or `all` for a set that the teacher was not trained on; None for the one
            that it held out.
        teacher: Also compare with this teacher, clip by clip.
        data_root: Folder that holds the data sets; None for $FRAMI_EDGE_DATA.
        label_map: The model's labels for classes of the set, as a mapping or a csv with a class and
            a label per line; the others match by name. Classes that match none are `other`, or none
            of the detectors.
        controls: Control rows, such as `["smooth_noise", "unrelated=esc40"]`: the student's network
            is distilled again on other clips, with its own seed and steps.
        bank: Folder of the student's bank, for controls on one of its sources.
        out: Run folder for pictures and figures; None to keep nothing.
        resume: Continue the run in `out`.
        device: Where controls are distilled: `auto`, `cpu`, `cuda` or `cuda:N`.
        precision: For the controls: `auto`, `bf16` or `fp32`.
        progress: Called after each clip and each step.

    Returns:
        The scores; printing them shows tables.

    Raises:
        CheckpointError: The model is damaged, or belongs to another teacher.
        ConfigError: The arguments do not go together.
        DataError: The data set is missing, has other classes, or the teacher was trained on it.
    """
    if bank and not controls:
        raise ConfigError("bank is read by controls only.", fix="Add --controls inversion.")
    if resume and out is None:
        raise ConfigError("There is no run to resume without a folder.", fix="Add --out FOLDER.")
    if out is not None:
        check_folder(out, resume=resume)
    root = None if data_root is None else Path(data_root)
    judged = _opened(model)
    reference = None if teacher is None else _opened(teacher)
    if reference:
        reference = as_selected(judged, reference)
        check_teacher(judged, reference)
    known = judged.trained_on or (reference.trained_on if reference else None)
    sounds, key, clips = open_fold(known, data, fold, root, who=str(judged.path))
    if isinstance(label_map, str | os.PathLike):
        label_map = read_label_map(Path(label_map))
    targets_DK = label_targets(
        judged.labels, sounds, selection=judged.selection, label_map=label_map
    )
    plan = None
    if controls is not None:
        wanted, config = parse_controls(controls), student_recipe(judged, reference)
        assert reference is not None
        assert isinstance(reference.network, Teacher)
        compute = choose_compute(device, precision)
        log.info("Device: %s", compute.reason)
        plan = plan_controls(
            wanted, config, reference.network, judged.mel, compute, sounds, key, targets_DK,
            bank=None if bank is None else Path(bank), root=root, progress=progress,
        )  # fmt: skip
    with ExitStack() as stack:
        run = None
        if out is not None:
            hashes = {"teacher": reference.sha256} if reference else {}
            run = stack.enter_context(
                RunFolder.create(
                    out,
                    command="evaluate",
                    config={"data": sounds.name, "fold": key, "controls": list(controls or ())},
                    hashes={"model": judged.sha256} | hashes,
                    resume=resume,
                    device=plan.compute.reason if plan else "",
                )
            )
        features = load_features(judged.mel, clips, progress)
        heard = training_clips(features, known, sounds, key)
        features = heard.left_out(features)
        theirs: Tensor | None = None
        if reference:
            own = features
            if reference.mel != judged.mel and not reference.takes_audio:
                own = heard.left_out(load_features(reference.mel, clips, progress))
            theirs = logits_of(reference, own)
        targets_NK = targets_DK[features.labels]
        labels_N = labels_of(targets_NK)

        def scored(logits_NK: Tensor, compared: bool = True) -> Score:
            against = theirs if compared else None
            return score(logits_NK, labels_N, against, output=judged.output, targets_NK=targets_NK)

        found = Evaluation(
            model=str(judged.path),
            kind=judged.kind,
            sha256=judged.sha256,
            data=sounds.name,
            fold=key,
            labels=judged.labels,
            score=scored(logits_of(judged, features, progress)),
            teacher=None if theirs is None else scored(theirs, compared=False),
            rejected=len(features.rejected),
            heard=heard.count,
            notes=tuple(note for note in (*sounds.notes, heard.note) if note),
            controls=plan.rows(features, scored, run, progress) if plan else {},
        )
        if run:
            run.record(**found.to_dict(), plots=_draw(run, found))
    return found


def _opened(model: Student | Teacher | PathLike) -> OpenedModel:
    if not isinstance(model, Student | Teacher):
        return open_model(Path(model))
    return OpenedModel.of_network(Path(f"the {model.card.kind}"), model)


def _draw(run: RunFolder, found: Evaluation) -> dict[str, str]:
    pictures = {"confusion": "plots/confusion.png"}
    where = f"Fold {found.fold} of {found.data}"
    plots.confusion(
        run.path(pictures["confusion"]), found.score.confusion_KK, found.labels,
        f"{where}: {100 * found.accuracy:.1f} %",
    )  # fmt: skip
    if found.controls:
        pictures["controls"] = "plots/controls.png"
        scores = {"teacher": found.teacher, "student": found.score}
        scores |= {name.replace("_", " "): row.score for name, row in found.controls.items()}
        accuracies = {name: score.accuracy for name, score in scores.items() if score}
        title = f"{where}: same student, other clips"
        plots.accuracy_bars(run.path(pictures["controls"]), accuracies, title)
    return pictures
