"""A CheXpert download in small: verbatim header, rows written by us, one-byte images."""

from pathlib import Path

import openpyxl

HEADER = (
    "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,"
    "Lung Opacity,Lung Lesion,Edema,Consolidation,Pneumonia,Atelectasis,Pneumothorax,"
    "Pleural Effusion,Pleural Other,Fracture,Support Devices"
)
LABELS = HEADER.split(",")[5:]
ALWAYS = dict.fromkeys(LABELS, "1.0")
NEVER = dict.fromkeys(LABELS, "0.0") | {"No Finding": ""}
RACES = (
    "White", "Black or African American", "Asian", "Other", "White, non-Hispanic",
    "Black, non-Hispanic", "Asian, non-Hispanic", "Native Hawaiian or Other Pacific Islander",
    "Unknown", "Race and Ethnicity Unknown", "Patient Refused", None,
)  # fmt: skip


def row(patient, study=1, part="train", sex=None, age=None, view="frontal", ap=None, **cells):
    """One line of the table. Patients alternate in sex, and every second pair is old and ill."""
    number = int(patient)
    ill = number % 4 < 2
    values = {**(ALWAYS if ill else NEVER), **{k.replace("_", " "): v for k, v in cells.items()}}
    return {
        "Path": f"CheXpert-v1.0-small/{part}/patient{number:05d}/study{study}/view1_{view}.jpg",
        "Sex": sex or ("Male", "Female")[number % 2],
        "Age": age or ("70" if number // 4 % 2 else "40"),
        "Frontal/Lateral": view.capitalize(),
        "AP/PA": ("AP" if view == "frontal" else "") if ap is None else ap,
        **{name: values[name] for name in LABELS},
    }


def many(n=160, start=1, **changes):
    """``n`` patients with one image each."""
    return [row(p, **changes) for p in range(start, start + n)]


def write(folder: Path, rows, name="train.csv", images=True, header=HEADER):
    """Writes a table of the download and the images that it names; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    names = header.split(",")
    lines = [",".join(r.get(column, "") for column in names) for r in rows]
    (folder / name).write_text("\n".join([header, *lines]) + "\n")
    for r in rows if images else ():
        place = r["Path"]
        for part in ("train/", "valid/", "test/"):
            if part in place:
                file = folder / place[place.index(part) :]
                file.parent.mkdir(parents=True, exist_ok=True)
                file.touch()
    return folder


def write_sheet(path: Path, patients, races=RACES, extra=()):
    """The demographics spreadsheet; races go round."""
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.title = "CheXpert Demo 11-13"
    sheet.append(["PATIENT", "GENDER", "AGE_AT_CXR", "PRIMARY_RACE", "ETHNICITY"])
    for i, number in enumerate(patients):
        race = races[i % len(races)]
        sheet.append([f"patient{number:05d}", "Female", 33, race, "Unknown"])
    for line in extra:
        sheet.append(line)
    book.save(path)
    return path
