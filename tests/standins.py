"""Made-up data roots in the exact on-disk formats of the published sets; no patient's data."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import numpy as np
from PIL import Image

MS_CXR_HEADER = (
    "dicom_id,category_name,label_text,path,x,y,w,h,image_width,image_height,split".split(",")
)
METADATA_HEADER = (
    "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,"
    "StudyDate,StudyTime,ProcedureCodeSequence_CodeMeaning,ViewCodeSequence_CodeMeaning,"
    "PatientOrientationCodeSequence_CodeMeaning"
).split(",")
REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___F with cough  // eval for pneumonia

 COMPARISON:  None.

 FINDINGS:

 {findings}

 IMPRESSION:

 {impression}
"""


def film(path: Path, width: int = 40, height: int = 32, value: int = 90) -> Path:
    """A small grey image with a gradient."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ramp = np.linspace(0, value, width).astype(np.uint8)
    Image.fromarray(np.broadcast_to(ramp, (height, width)).copy()).save(path)
    return path


def table(path: Path, header, rows, compress: bool = False) -> Path:
    """A CSV, gzipped on request."""
    path.parent.mkdir(parents=True, exist_ok=True)
    opened = gzip.open(path, "wt", newline="") if compress else path.open("w", newline="")
    with opened as file:
        csv.writer(file).writerows([header, *rows])
    return path


# (subject, study, dicom, view, split); 10000003 is a patient of MS-CXR in MIMIC's train split
MIMIC = [
    ("10000001", "50000001", "aaaa0001", "PA", "train"),
    ("10000001", "50000001", "aaaa0002", "LATERAL", "train"),
    ("10000001", "50000002", "aaaa0003", "AP", "train"),
    ("10000002", "50000003", "aaaa0004", "AP", "validate"),
    ("10000003", "50000004", "aaaa0005", "PA", "train"),
    ("10000003", "50000005", "aaaa0006", "AP", "train"),
    ("10000004", "50000006", "aaaa0007", "AP", "test"),
    ("11000005", "50000007", "aaaa0008", "", "train"),
    ("11000006", "50000008", "aaaa0009", "AP", "train"),
    ("11000007", "50000009", "aaaa0010", "AP", "train"),
    ("11000008", "50000010", "aaaa0011", "AP", "train"),
]
NO_REPORT, EMPTY_REPORT, NO_SECTIONS = "50000008", "50000009", "50000010"


def mimic_cxr(root: Path) -> Path:
    """MIMIC-CXR-JPG 2.x with reports beside the studies."""
    metadata = [[d, p, s, "", v, 32, 40, "", "", "", "", ""] for p, s, d, v, _ in MIMIC]
    split = [[d, s, p, part] for p, s, d, _, part in MIMIC]
    table(root / "mimic-cxr-2.0.0-metadata.csv.gz", METADATA_HEADER, metadata, compress=True)
    header = ["dicom_id", "study_id", "subject_id", "split"]
    table(root / "mimic-cxr-2.0.0-split.csv.gz", header, split, compress=True)
    for subject, study, dicom, _, _ in MIMIC:
        folder = root / "files" / f"p{subject[:2]}" / f"p{subject}"
        film(folder / f"s{study}" / f"{dicom}.jpg")
        report = REPORT.format(findings="Low volumes.", impression=f"Edema of study {study}.")
        report = {
            EMPTY_REPORT: " \n",
            NO_SECTIONS: "FINAL REPORT\n\n Moderate left effusion.\n",
        }.get(study, report)
        if study != NO_REPORT:
            (folder / f"s{study}.txt").write_text(report)
    return root


def ms_cxr_row(**changes) -> list[str]:
    """One row of MS-CXR 1.1 on the image of subject 10000003."""
    row = {
        "dicom_id": "aaaa0005",
        "category_name": "Edema",
        "label_text": "mild edema",
        "path": "files/p10/p10000003/s50000004/aaaa0005.jpg",
        "x": 2, "y": 3, "w": 10, "h": 12, "image_width": 40, "image_height": 32,
        "split": "val",
    }  # fmt: skip
    return list((row | changes).values())


SECOND = {"dicom_id": "aaaa0006", "path": "files/p10/p10000003/s50000005/aaaa0006.jpg"}
MS_CXR_ROWS = [
    ms_cxr_row(),
    ms_cxr_row(x=20),
    ms_cxr_row(label_text="left effusion", category_name="Pleural Effusion", x=5),
    ms_cxr_row(**SECOND, split="test"),
]


def ms_cxr(root: Path, rows=None, version: str = "1.1.0") -> Path:
    """MS-CXR as CSV; version 1.0 has no split column."""
    n = len(MS_CXR_HEADER) - (version < "1.1")
    rows = [row[:n] for row in (MS_CXR_ROWS if rows is None else rows)]
    table(root / f"MS_CXR_Local_Alignment_v{version}.csv", MS_CXR_HEADER[:n], rows)
    return root


def ms_cxr_coco(root: Path) -> Path:
    """The same rows as the published COCO file."""
    rows = [dict(zip(MS_CXR_HEADER, row, strict=True)) for row in MS_CXR_ROWS]
    names = sorted({row["category_name"] for row in rows})
    paths = sorted({row["path"] for row in rows})
    tree = {
        "info": {}, "licenses": [],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(names)],
        "images": [
            {"id": i, "file_name": Path(p).name, "path": p, "width": 40, "height": 32}
            for i, p in enumerate(paths)
        ],
        "annotations": [
            {"id": i, "image_id": paths.index(row["path"]), "iscrowd": 0,
             "category_id": names.index(row["category_name"]) + 1,
             "bbox": [row[c] for c in "xywh"], "area": row["w"] * row["h"],
             "label_text": row["label_text"], "width": 40, "height": 32, "split": row["split"]}
            for i, row in enumerate(rows)
        ],
    }  # fmt: skip
    root.mkdir(parents=True, exist_ok=True)
    (root / "MS_CXR_Local_Alignment_v1.1.0.json").write_text(json.dumps(tree))
    return root


def chestxray14(root: Path, side: int = 64) -> Path:
    """Boxes and entries of ChestX-ray14 with the published, unquoted headers."""
    boxes = [
        "00000001_000.png,Cardiomegaly,256.5,512,512,256",
        "00000001_000.png,Effusion,64,640.25,128,256",
        "00000002_003.png,Infiltrate,100,100,300,300",
        "00030805_001.png,Mass,700,100,60,50",
    ]
    root.mkdir(parents=True, exist_ok=True)
    header = "Image Index,Finding Label,Bbox [x,y,w,h],,,"
    (root / "BBox_List_2017.csv").write_text("\n".join([header, *boxes]) + "\n")
    entries = [
        "00000001_000.png,Cardiomegaly|Effusion,0,1,58,M,PA,2682,2749,0.143,0.143,",
        "00000002_003.png,Infiltration,0,2,81,M,AP,2500,2048,0.168,0.168,",
        "00000003_000.png,No Finding,0,3,81,F,PA,2582,2991,0.143,0.143,",
        "00030805_001.png,Mass|Pleural_Thickening,1,30805,60,F,PA,2048,2500,0.168,0.168,",
    ]
    header = (
        "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,"
        "View Position,OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
    )
    (root / "Data_Entry_2017.csv").write_text("\n".join([header, *entries]) + "\n")
    for name in ("00000001_000.png", "00000002_003.png"):
        film(root / "images_001" / "images" / name, side, side)
    film(root / "images_012" / "images" / "00030805_001.png", side, side)
    return root


def radiographs(root: Path, side: int = 32) -> Path:
    """A pack of small films: two boxed patients, one normal one."""
    films = [
        ["a_0.png", "nih:1", "PA", "Effusion|Mass"],
        ["a_1.png", "nih:1", "AP", "Cardiomegaly"],
        ["b_0.png", "nih:2", "PA", "Infiltration"],
        ["c_0.png", "nih:3", "PA", "No Finding"],
    ]
    table(root / "images.csv", ["image", "subject_id", "view", "labels"], films)
    boxes = [
        ["a_0.png", "Effusion", 2, 20, 8, 8],
        ["a_0.png", "Effusion", 22, 20, 8, 8],
        ["a_0.png", "Mass", 22, 4, 6, 6],
        ["a_0.png", "Fracture", 2, 4, 4, 4],
        ["a_1.png", "Cardiomegaly", 18, 14, 12, 12],
        ["b_0.png", "Infiltration", 2, 4, 8, 8],
        ["b_0.png", "Lung Opacity", 3, 6, 8, 8],
    ]
    table(root / "boxes.csv", ["image", "label", "x", "y", "w", "h"], boxes)
    for name, *_ in films:
        film(root / "images" / name, side, side)
    return root


def dicom(path: Path, side: int = 32, **header) -> Path:
    """A small uncompressed DICOM with a patient's name in its header."""
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    data.PatientName, data.PatientID = "Doe^Jane", "secret"
    data.Rows = data.Columns = side
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 8, 8, 7, 0
    data.PixelData = np.arange(side * side, dtype=np.uint32).astype(np.uint8).tobytes()
    for name, value in header.items():
        if value is None:
            delattr(data, name)
        else:
            setattr(data, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(path, data)
    return path


def rsna(root: Path) -> Path:
    """The challenge's labels with DICOM files of 32² pixels for its 1024²."""
    rows = [
        ["p-1", "", "", "", "", 0],
        ["p-2", 256.0, 128.0, 256.0, 512.0, 1],
        ["p-2", 640.0, 128.0, 192.0, 320.0, 1],
    ]
    header = ["patientId", "x", "y", "width", "height", "Target"]
    table(root / "stage_2_train_labels.csv", header, rows)
    for name in ("p-1", "p-2"):
        dicom(root / "stage_2_train_images" / f"{name}.dcm")
    return root


def siim(root: Path) -> Path:
    """The challenge's table with its blank before a column, and DICOM files of 1024² pixels."""
    rows = [["s-1", " -1"], ["s-2", " 1034 3 1021 2"], ["s-3", " -1"], ["s-2", " 5 4"]]
    table(root / "train-rle.csv", ["ImageId", " EncodedPixels"], rows)
    for name in ("s-1", "s-2", "s-3"):
        dicom(root / "dicom-images-train" / name / "series" / f"{name}.dcm", side=1024)
    return root


def openi(root: Path) -> Path:
    """The Kaggle edition of OpenI."""
    header = "uid,MeSH,Problems,image,indication,comparison,findings,impression".split(",")
    reports = [
        [1, "normal", "normal", "Chest", "", "None.", "Heart is normal.", "Normal chest x-XXXX."],
        [2, "", "", "", "", "", "Left XXXX effusion.\nHeart normal.", ""],
        [3, "", "", "", "", "", "", "XXXX XXXX."],
        [4, "", "", "", "", "", "", "Edema."],
    ]
    table(root / "indiana_reports.csv", header, reports)
    names = [
        (1, "1_IM-0001-4001.dcm.png", "Frontal"),
        (1, "1_IM-0001-3001.dcm.png", "Lateral"),
        (2, "2_IM-0652-1001.dcm.png", "Frontal"),
        (3, "3_IM-1384-1001.dcm.png", "Frontal"),
        (4, "4_IM-2050-1001.dcm.png", "Frontal"),
        (5, "5_IM-2117-1003002.dcm.png", "Frontal"),
    ]
    table(root / "indiana_projections.csv", ["uid", "filename", "projection"], names)
    for _, name, _ in names[:4]:
        film(root / "images" / "images_normalized" / name)
    return root


def folder(root: Path) -> Path:
    """Any folder with a CSV."""
    film(root / "a.png", 100, 80)
    rows = [
        ["a.png", "edema", "Edema", 10, 20, 30, 40],
        ["a.png", "clear lungs", "", "", "", "", ""],
    ]
    table(root / "pairs.csv", ["image", "phrase", "finding", "x", "y", "w", "h"], rows)
    return root


# ---------------------------------------------------------------- models, with the real key names

WORDS = "a the of in no is there mild small large left right lower upper lobe lung effusion".split()
WORDS += "pleural edema opacity opacities pneumonia pneumothorax cardiomegaly film mass".split()
CXR_BERT_AUTO = {  # as published: asks for remote code, which must not run
    "AutoConfig": "configuration_cxrbert.CXRBertConfig",
    "AutoTokenizer": "configuration_cxrbert.CXRBertTokenizer",
    "AutoModel": "modeling_cxrbert.CXRBertModel",
}


def bert(root: Path, width: int = 32, positions: int = 77) -> Path:
    """A BERT folder: config.json, model.safetensors, vocab.txt."""
    from transformers import BertConfig, BertModel

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    pieces += [c for c in "abcdefghijklmnopqrstuvwxyz"]
    pieces += [f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"]
    sizes = {"vocab_size": len(pieces), "hidden_size": width, "intermediate_size": 64}
    sizes |= {"num_hidden_layers": 1, "num_attention_heads": 2}
    model = BertModel(
        BertConfig(**sizes, max_position_embeddings=positions), add_pooling_layer=False
    )
    root.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(root)
    (root / "vocab.txt").write_text("\n".join(pieces) + "\n")
    tokens = {"do_lower_case": True, "tokenizer_class": "BertTokenizer", "model_max_length": 512}
    (root / "tokenizer_config.json").write_text(json.dumps(tokens))
    return root


def cxr_bert(root: Path, width: int = 32) -> Path:
    """CXR-BERT as published: model type of its own, `bert.*` keys, masked-word and BioViL heads."""
    import torch
    from safetensors.torch import load_file, save_file

    weights = bert(root, width) / "model.safetensors"
    state = {f"bert.{name}": value for name, value in load_file(weights).items()}
    state["bert.embeddings.position_ids"] = torch.arange(77)[None]
    state["cls.predictions.bias"] = torch.zeros(
        len(state["bert.embeddings.word_embeddings.weight"])
    )
    head = "cls_projection_head"
    generator = torch.Generator().manual_seed(0)
    for name, columns in (("dense_to_hidden", width), ("dense_to_output", 128)):
        state[f"{head}.{name}.weight"] = torch.randn((128, columns), generator=generator) * 0.1
        state[f"{head}.{name}.bias"] = torch.randn(128, generator=generator) * 0.1
    state[f"{head}.LayerNorm.weight"] = torch.ones(128)
    state[f"{head}.LayerNorm.bias"] = torch.zeros(128)
    save_file(state, weights, metadata={"format": "pt"})
    for file, changes in (
        ("config.json", {"model_type": "cxr-bert", "projection_size": 128,
                         "architectures": ["CXRBertModel"], "auto_map": CXR_BERT_AUTO}),
        ("tokenizer_config.json", {"tokenizer_class": "CXRBertTokenizer", "auto_map": {
            "AutoTokenizer": ["configuration_cxrbert.CXRBertTokenizer", None]}}),
    ):  # fmt: skip
        tree = json.loads((root / file).read_text())
        (root / file).write_text(json.dumps(tree | changes))
    return root


def clip(root: Path, width: int = 32) -> Path:
    """A CLIP text model with a byte-pair tokenizer, as in Stable Diffusion."""
    from transformers import CLIPTextConfig, CLIPTextModel

    from g2g_utils.training import pretrain

    tokens = pretrain.byte_tokenizer([" ".join(WORDS)], root, 77)
    sizes = {"hidden_size": width, "intermediate_size": 64, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "vocab_size": len(tokens), "max_position_embeddings": 77}
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    CLIPTextModel(CLIPTextConfig(**sizes, **ends)).save_pretrained(root)
    return root


def stable_diffusion(root: Path, width: int = 32) -> Path:
    """Folders of Stable Diffusion: vae/, unet/ (four levels, the last without text), scheduler/."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

    from g2g_utils import models

    with models.initialised(0):
        AutoencoderKL(
            block_out_channels=(8, 8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=1, norm_num_groups=4,
            latent_channels=4, scaling_factor=0.18215,
        ).save_pretrained(root / "vae")  # fmt: skip
        UNet2DConditionModel(
            sample_size=8, block_out_channels=(8, 16, 16, 16), layers_per_block=2,
            down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
            norm_num_groups=4, cross_attention_dim=width, attention_head_dim=2,
        ).save_pretrained(root / "unet")  # fmt: skip
    DDIMScheduler(**models.SD_SCHEDULE).save_pretrained(root / "scheduler")
    return root


PHRASES = [("left effusion", "Pleural Effusion"), ("mild edema", "Edema")]
PHRASES += [("right opacity", "Lung Opacity")]


def folder_of_films(root: Path, count: int, patient: str = "p") -> dict:
    """A folder of made-up films with one boxed phrase each, as a source of a profile."""
    rng = np.random.default_rng(count)
    rows = []
    for k in range(count):
        phrase, finding = PHRASES[k % len(PHRASES)]
        path = root / f"{patient}{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (72, 64), np.uint8)).save(path)
        rows.append([path.name, phrase, finding, 8, 16, 30, 24, f"{patient}{k}"])
    columns = ["image", "phrase", "finding", "x", "y", "w", "h", "subject"]
    table(root / "pairs.csv", columns, rows)
    return {"source": "folder", "root": str(root)}


def real_profile(root: Path, films: int = 40, width: int = 32, text_width: int = 32) -> dict:
    """Overrides of `open` that make it run on this machine: made-up films, tiny real folders."""
    sd = str(stable_diffusion(root / "sd", width))
    held = folder_of_films(root / "held", 4, "h")
    data = {**folder_of_films(root / "films", films), "train": films, "validation": 4, "test": 4}
    data |= {"validation_from": held, "test_from": held}
    return {
        "image_size": 64,
        "data": data,
        "vae.pretrained": sd, "unet.pretrained": sd, "unet.scheduler": sd,
        "encoders.domain.pretrained": str(cxr_bert(root / "cxr_bert", text_width)),
        "encoders.generic.pretrained": str(clip(root / "clip", text_width)),
        "adaptation.gradient_checkpointing": False,
        "training.steps": 2, "training.batch_size": 2, "training.accumulate": 1,
        "training.warmup": 1, "training.mixed_precision": "no", "training.learning_rate": 1.0e-2,
        "training.ema": 0.0, "training.live_steps": 2,
        "grounding.timesteps": 3, "grounding.keep_last": 2,
        "evaluation": {"pairs": 4, "validation_pairs": 4, "bias_pairs": 2, "bootstrap": 20},
        "fidelity": {"samples": 34, "steps": 1, "batch_size": 34, "classifier_steps": 2},
    }  # fmt: skip


def biovil_image(path: Path) -> Path:
    """BioViL's image checkpoint: real key names and sizes, weights made up, an unused layer."""
    import torch

    from g2g_utils import models
    from g2g_utils.methods.biovil import ImageModel

    with models.initialised(0):
        state = ImageModel().state_dict()
    state["encoder.encoder.fc.weight"] = torch.zeros(10, 2048)
    state["encoder.encoder.fc.bias"] = torch.zeros(10)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)
    return path
