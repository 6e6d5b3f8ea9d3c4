"""How the phantom world's truths are put into words.

Three vocabularies that must stay apart, or the demo would prove nothing:

- `CAPTION_*`, `MENTIONS`: what the demo's articles say (the teacher and the training see only these);
- `HELD_OUT`: the questions of the phantom benchmark, worded as nothing in training is;
- `PRETRAIN_*`: what the tiny language model was pretrained on, before and apart from the demo.

Sentences are tables of templates; the functions below only fill them in.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llavamed.demo.truth import DOMAIN_NAMES, NONE, SIDES, SIZES, Truth, findings_of, organs_of

COUNT_WORDS = {1: "one", 2: "two", 3: "three"}

# canonical finding -> (singular, plural) forms a text may use
FINDING_FORMS: dict[str, tuple[tuple[str, str], ...]] = {
    "nodule": (("nodule", "nodules"), ("pulmonary nodule", "pulmonary nodules")),
    "effusion": (("pleural effusion", "pleural effusions"), ("effusion", "effusions")),
    "opacity": (("opacity", "opacities"), ("consolidation", "consolidations")),
    "haemorrhage": (("haemorrhage", "haemorrhages"), ("hemorrhage", "hemorrhages")),
    "stone": (("stone", "stones"), ("calculus", "calculi")),
    "cyst": (("cyst", "cysts"), ("simple cyst", "simple cysts")),
    "tumour": (("tumour", "tumours"), ("mass", "masses"), ("neoplasm", "neoplasms")),
    "infarct": (("infarct", "infarcts"), ("infarction", "infarctions")),
    "inflammation": (("focus of inflammation", "foci of inflammation"), ("inflammatory focus", "inflammatory foci")),
    "necrosis": (("area of necrosis", "areas of necrosis"), ("necrotic area", "necrotic areas")),
    "disc herniation": (("disc herniation", "disc herniations"), ("herniated disc", "herniated discs")),
}
SIZE_FORMS = {"small": ("small", "tiny", "minute"), "large": ("large", "sizeable", "extensive")}
SIDE_PLACES = {  # organ -> places, for findings that have a side
    "lung": ("in the {side} lung", "on the {side} side", "in the {side} hemithorax"),
    "brain": ("in the {side} hemisphere", "on the {side} side", "in the {side} cerebral hemisphere"),
    "kidney": ("in the {side} kidney", "on the {side} side"),
}

CAPTION_MODALITY: dict[str, tuple[str, ...]] = {
    "chest_xray": ("Chest radiograph", "Posteroanterior chest X-ray", "Frontal chest radiograph", "Chest X-ray"),
    "ct_scan": ("Axial CT", "Computed tomography (CT)", "Contrast-enhanced CT", "CT image"),
    "mri": ("T2-weighted MRI", "Magnetic resonance imaging (MRI)", "MRI", "Fat-suppressed MRI"),
    "histology": ("Histology", "Photomicrograph (H&E stain)", "Histological section", "Histopathology"),
    "gross": ("Gross photograph", "Macroscopic view", "Gross specimen", "Gross pathology"),
}
CAPTION_FOUND = (
    "{modality} of the {organ} showing {finding} {place}.",
    "{modality} of the {organ}. There is {finding} {place}.",
    "{modality} of the {organ} demonstrates {finding} {place}.",
    "{modality} of the {organ} obtained at presentation reveals {finding} {place}.",
    "{modality} of the {organ} with {finding} {place}.",
)
CAPTION_NORMAL = (
    "{modality} of the {organ}. No abnormality is seen.",
    "{modality} of the {organ}, normal appearance.",
    "{modality} of the {organ} without abnormality.",
    "{modality} of the {organ}. The appearance is unremarkable.",
)
CAPTION_FILLER = (
    "",
    "",
    "",
    "Scale and exposure are as acquired.",
    "Image quality is adequate for assessment.",
    "The examination was performed on the day of admission, and the image is shown as it was stored in the archive of"
    " the department, without any further processing or annotation by the authors of this report.",
)
MENTIONS = {
    "side": (
        "As seen in {figure}, the {noun} lay on the {side} side.",
        "The {noun} was located on the {side} side ({figure}).",
        "{figure} places the {noun} on the {side} side.",
    ),
    "size": (
        "The {noun} was {size} ({figure}).",
        "In {figure} the {noun} appears {size}.",
        "On review the {noun} proved to be {size}, as {figure} shows.",
    ),
    "count": (
        "{Count} {nouns} were counted ({figure}).",
        "Careful reading of {figure} identified {count} {nouns}.",
        "In {figure}, {count} {nouns} can be told apart.",
    ),
    "plain": (
        "The examination is shown in {figure}.",
        "Representative imaging is given in {figure}.",
        "Details of the examination are presented in {figure}.",
    ),
    "other": (
        "The patient was followed up in the outpatient clinic.",
        "Laboratory values were within the reference range.",
        "Treatment was discussed at the weekly conference.",
        "The further course was uneventful.",
        "Written consent was obtained.",
        "There was no relevant family history.",
    ),
}

# the phantom benchmark; {x} is a candidate value, {noun}/{nouns} the finding that the picture has
HELD_OUT: dict[str, tuple[str, ...]] = {
    "modality_open": ("Name the modality that produced this picture.", "By which kind of imaging was this obtained?"),
    "modality_closed": ("Would you call this {x}?", "Was {x} used to obtain this?"),
    "organ_open": ("Name the organ in this picture.", "Which part of the body do we see?"),
    "organ_closed": ("Do we see the {x} in this picture?", "Would you say this is the {x}?"),
    "abnormal_closed": ("Do you see anything abnormal here?", "Would you call this picture abnormal?"),
    "finding_open": ("Name the abnormality in this picture.", "Which abnormality do we see?"),
    "finding_closed": ("Do you see {x} here?", "Would you say that {x} is visible?"),
    "side_open": ("Name the side where the {noun} lies.", "To which side does the {noun} belong?"),
    "side_closed": ("Does the {noun} lie on the {x}?", "Would you place the {noun} on the {x} side?"),
    "size_open": ("Would you call the {noun} small or large?", "Tell me the size of the {noun}."),
    "size_closed": ("Would you call the {noun} {x}?", "Does the {noun} look {x}?"),
    "count_open": ("Give the number of {nouns}.", "Count the {nouns} in this picture."),
    "count_closed": ("Do you count {x} {nouns}?", "Would you say there are {x} {nouns}?"),
}

# A caption for the pretraining is a head, a link, the finding and up to three sentences; each part is drawn freely, so
# that the model meets many ways of saying a thing and none of the demo's sentences.
PRETRAIN_HEADS = (
    "This {domain} image shows the {organ}",
    "The {organ} on {domain}",
    "{domain}, {organ}",
    "{domain} in a patient with disease of the {organ}",
    "Imaging by {domain} of the {organ}",
    "The {organ} is depicted by {domain}",
    "{domain} study of the {organ} at first visit",
    "Image of the {organ} ({domain})",
    "{organ}: {domain}",
    "Representative {domain} of a {organ}",
)
PRETRAIN_LINKS = (
    ", {finding} {place}.", ": {finding} {place}.", ". {Finding} {place}.", ". We found {finding} {place}.",
    ". It shows {finding} {place}.", ", which reveals {finding} {place}.", ", demonstrating {finding} {place}.",
    ". Note {finding} {place}.", ". The image has {finding} {place}.", " with {finding} visible {place}.",
    ". There was {finding} {place}.", ". One can see {finding} {place}.", ". Obtained because of {finding} {place}.",
)  # fmt: skip
PRETRAIN_NORMAL = (
    ", normal.", ": nothing abnormal.", ". We found no abnormality.", ". It looks normal.", ", without a finding.",
    ". The organ appears normal.", ". An unremarkable image.", ". Normal findings.", ". No lesion was seen.",
)  # fmt: skip
# general sentences: subject, verb, complement, each drawn freely
PRETRAIN_SUBJECTS = (
    "The patient", "The image", "The examination", "The study", "The report", "The department", "The authors",
    "Our group",
    "The scale", "The exposure", "The quality", "This specimen", "The section", "The stain", "The archive", "Each case",
    "The admission", "The day", "The annotation", "Written consent", "The assessment", "Further processing",
    "The history",
)  # fmt: skip
PRETRAIN_VERBS = (
    "was performed", "is shown", "was given", "is stored", "has been published", "was acquired", "is adequate",
    "was made",
    "is presented", "was discussed", "has been followed", "was seen", "is described", "was reviewed", "is used",
    "was prepared",
)  # fmt: skip
PRETRAIN_COMPLEMENTS = (
    "on the day of the visit", "for the assessment", "by the authors", "in the department", "as it was acquired",
    "without any further annotation", "with consent of the patient", "at admission", "in this report",
    "for publication",
    "of the department", "during the examination", "in the archive", "and the quality is good", "before the operation",
    "after processing", "as usual", "with the same exposure", "in the clinic",
)  # fmt: skip
PRETRAIN_QUESTIONS: dict[str, tuple[str, ...]] = {
    "modality_open": (
        "What imaging technique is this?", "Which modality is it?", "What type of image is shown?",
        "How was the image acquired?", "Tell me the modality.", "What is the imaging method?",
        "Can you tell the technique used to produce the image?", "State the kind of picture.",
    ),
    "modality_closed": (
        "Is it {x}?", "Is this picture {x}?", "Was the image made by {x}?", "Has {x} been used?",
        "Are we looking at {x}?", "Does the image come from {x}?", "Can this be {x}?",
        "Would you call it {x}?", "Would you say that it is {x}?", "Was it obtained with {x}?",
    ),
    "organ_open": (
        "What organ is it?", "Which organ appears?", "What part of the body is depicted?", "Tell me the organ.",
        "Which body part was examined?", "What anatomy do you see?", "State which organ we see.",
    ),
    "organ_closed": (
        "Is it the {x}?", "Is the {x} depicted?", "Does it show the {x}?", "Are we looking at the {x}?",
        "Can you see the {x}?", "Was the {x} examined?",
        "Would you call it the {x}?", "Do we see the {x} here?",
    ),
    "abnormal_closed": (
        "Is it abnormal?", "Is anything abnormal?", "Has an abnormality been found?", "Does the organ look abnormal?",
        "Do you see an abnormality?", "Are there pathological changes?",
        "Would you call the organ abnormal?", "Would you call it diseased?", "Do you call this abnormal?",
        "Can the image be called abnormal?", "Is this a picture of disease?", "Anything abnormal?",
    ),
    "normal_closed": (
        "Is it normal?", "Is all normal?", "Does the organ look normal?", "Would you call it normal?",
        "Can the image be called normal?", "Is the organ healthy?", "Is the image unremarkable?", "All normal?",
        "Is it free of abnormality?", "Do you call this normal?",
    ),
    "finding_open": (
        "What is abnormal?", "What has been found?", "Which finding is it?", "Tell me the finding.",
        "What pathology do you see?", "State the abnormality.", "What does the organ have?",
        "What would you call it?", "Name what is abnormal.", "What disease do we see?",
    ),
    "finding_closed": (
        "Is it {x}?", "Has {x} been found?", "Does the organ have {x}?", "Can you see {x}?",
        "Is there any sign of {x}?",
        "Are we looking at {x}?",
        "Would you call it {x}?", "Do you see {x}?", "Would you say there is {x}?", "Is {x} visible to you?",
    ),
    "side_open": (
        "Left or right?", "Which side is it on?", "Where does the {noun} lie, left or right?",
        "Tell me the side of the {noun}.",
        "On what side was the {noun} found?", "State the side.", "The {noun} is on which side?",
        "To what side would you assign the {noun}?", "Name the side.", "Where does it belong, left or right?",
        "Does the {noun} lie on the left or the right?",
    ),
    "side_closed": (
        "Is it on the {x}?", "Is it the {x} side?", "Was the {noun} found on the {x}?", "Is the {x} side abnormal?",
        "Do you see the {noun} on the {x} side?", "Does the {x} side have the {noun}?",
        "Would you place it on the {x}?", "Does it lie on the {x} side?", "Would you call it {x}-sided?",
        "Would you say that the {noun} is on the {x}?",
    ),
    "size_open": (
        "Small or large?", "How large is it?", "What size does the {noun} have?", "Is the {noun} small or is it large?",
        "State the size.", "How big do you see the {noun}?",
        "Would you call it small or large?", "Would you say small or large?", "Tell me its size.",
        "Does it look small or large?",
    ),
    "size_closed": (
        "Is it {x}?", "Has the {noun} a {x} size?", "Can the {noun} be called {x}?", "Do you see a {x} {noun}?",
        "Was the {noun} found to be {x}?",
        "Would you call it {x}?", "Does it look {x}?", "Would you say that the {noun} is {x}?",
    ),
    "count_open": (
        "How many are there?", "How many {nouns} do you see?", "What number of {nouns} was found?",
        "State the number of {nouns}.",
        "Tell me how many {nouns} it has.", "The number of {nouns} is?",
        "Count them.", "Count all {nouns}.", "Please count the {nouns}.", "Can you count the {nouns}?",
        "How many {nouns} do you count?", "Give their number.", "Count the {nouns} and tell me the number.",
    ),
    "count_closed": (
        "Are there {x}?", "Is the number of {nouns} {x}?", "Do you see {x} {nouns}?", "Have {x} {nouns} been found?",
        "Does it have {x} {nouns}?",
        "Do you count {x}?", "Can you count {x} {nouns}?", "Would you count {x} {nouns}?",
        "Would you say that there are {x}?", "Would you call it {x} {nouns}?",
    ),
}  # fmt: skip
# more questions are composed of an opening and what is asked; {np} is a noun phrase, {clause} a statement
PRETRAIN_OPENINGS = {
    "open": (
        "What is {np}?", "Tell me {np}, please.", "Name {np}, please.", "Give me {np}.", "State {np} now.", "Say {np}.",
        "Can you name {np}?", "Do you know {np}?", "Please write {np}.", "I want to know {np}.", "Report {np}.",
        "{np}?", "{np}, please.", "Now name {np}.", "Would you give {np}?", "Would you tell me {np}?",
        "By your reading, {np}?",
    ),
    "closed": (
        "Do you think that {clause}?", "Can you confirm that {clause}?", "Is it right that {clause}?",
        "{clause}, right?",
        "{clause}. Is that so?", "Would you agree that {clause}?", "Would it be fair to say that {clause}?",
        "Do we agree that {clause}?", "Does it seem to you that {clause}?", "Could one say {clause}?",
        "I think {clause}. Yes or no?",
    ),
}  # fmt: skip
PRETRAIN_ASKED: dict[str, tuple[str, ...]] = {
    "modality_open": (
        "the modality", "the kind of imaging", "the imaging technique", "the method used here", "the type of picture",
        "how this picture was obtained", "which kind of picture was produced",
    ),
    "modality_closed": (
        "this is {x}", "{x} was used", "we look at {x}", "one would call it {x}", "it was obtained by {x}",
    ),
    "organ_open": (
        "the organ", "the part of the body", "the body part in the picture", "the anatomy we see",
        "which organ we see",
    ),
    "organ_closed": (
        "it is the {x}", "the {x} is seen", "we see the {x} here", "the picture has the {x}",
        "the part shown is the {x}",
    ),
    "abnormal_closed": (
        "something is abnormal", "it is abnormal", "we see an abnormality", "the picture looks abnormal",
        "one would call it abnormal",
        "anything here is abnormal",
        "the organ is abnormal", "the organ is diseased", "an abnormality is visible",
    ),
    "normal_closed": (
        "it is normal", "all is normal", "the organ looks normal", "one would call it normal", "the picture is normal",
        "nothing is abnormal", "the image is unremarkable",
    ),
    "finding_open": (
        "the finding", "the abnormality", "the disease", "what is abnormal here", "which abnormality there is",
    ),
    "finding_closed": (
        "{x} can be seen", "there is {x}", "you see {x} in the picture", "we have {x} here", "{x} is what you see",
    ),
    "side_open": (
        "the side", "the side where it lies", "the side on which the {noun} is", "which side the {noun} is on",
        "the side that it belongs to", "left or right for the {noun}",
    ),
    "side_closed": (
        "it lies on the {x}", "the {noun} is on the {x} side", "it belongs to the {x} side",
        "one would place it on the {x}",
        "the {x} side has the {noun}",
    ),
    "size_open": (
        "the size", "how large the {noun} is", "the size it has", "whether the {noun} is small or large",
        "small or large for the {noun}",
        "the size that you would call it",
    ),
    "size_closed": (
        "it is {x}", "the {noun} is {x}", "the {noun} seems {x}", "one would call it {x}", "it does look {x}",
    ),
    "count_open": (
        "the number", "how many {nouns} there are", "the count of {nouns}", "the number of {nouns} shown",
        "your count of the {nouns}",
        "how many {nouns} you count",
    ),
    "count_closed": (
        "there are {x} {nouns}", "you count {x}", "{x} {nouns} are visible", "the count is {x}",
        "we see {x} {nouns}",
    ),
}  # fmt: skip
PRETRAIN_ANSWERS = {
    "open": ("{x}.", "It is {x}.", "The {kind} is {x}.", "I see {x}.", "This is {x}."),
    "yes": ("Yes.", "Yes, {x}.", "Yes, the {kind} is {x}."),
    "no": ("No.", "No, {x}.", "No, the {kind} is {x}."),
}
PRETRAIN_DESCRIBE = (
    "Describe it.", "What do you see?", "Tell me what it shows.", "State the report.", "Write a caption.",
    "What is this about?",
    "Describe all that you see in detail.", "Give the findings.", "Please describe the picture.", "Report, please.",
)  # fmt: skip


def choose(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[rng.integers(len(options))]


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def finding_phrase(truth: Truth, forms: tuple[str, str], size: str, count: bool, rng: np.random.Generator) -> str:
    """ "a small nodule", "two nodules"; `size` "" and `count` False leave the fact out."""
    singular, plural = forms
    if truth.count > 1:
        words = [COUNT_WORDS[truth.count] if count else "", size, plural]
        return " ".join(w for w in words if w)
    noun = " ".join(w for w in (size, singular) if w)
    return f"{choose(rng, ('a single', 'a solitary'))} {noun}" if count and rng.random() < 0.5 else with_article(noun)


@dataclass(frozen=True)
class Telling:
    """What an article says of one picture: a caption and the sentences that cite it. `withheld` names the facts
    that stand only in the sentences."""

    caption: str
    sentences: tuple[str, ...]
    withheld: tuple[str, ...]


def tell(truth: Truth, figure: str, rng: np.random.Generator) -> Telling:
    """Caption and mentions in the demo's words; `figure` is how the text cites it ("Figure 2")."""
    modality = choose(rng, CAPTION_MODALITY[truth.domain])
    filler = choose(rng, CAPTION_FILLER)
    if truth.finding == NONE:
        caption = choose(rng, CAPTION_NORMAL).format(modality=modality, organ=truth.organ)
        sentence = choose(rng, MENTIONS["plain"]).format(figure=figure)
        return Telling(f"{caption} {filler}".strip(), (sentence,), ())
    forms = FINDING_FORMS[truth.finding][rng.integers(len(FINDING_FORMS[truth.finding]))]
    facts = {"side": bool(truth.side), "size": bool(truth.size), "count": truth.count > 1}
    withheld = tuple(name for name, present in facts.items() if present and rng.random() < 0.3)
    size = choose(rng, SIZE_FORMS[truth.size]) if truth.size else ""
    place = ""
    if truth.side and "side" not in withheld:
        place = choose(rng, SIDE_PLACES[truth.organ]).format(side=truth.side)
    phrase = finding_phrase(truth, forms, "" if "size" in withheld else size, "count" not in withheld, rng)
    caption = choose(rng, CAPTION_FOUND).format(modality=modality, organ=truth.organ, finding=phrase, place=place)
    if truth.count > 1:
        caption = caption.replace("There is", "There are")
    noun, nouns = forms
    words = {
        "figure": figure, "noun": noun, "nouns": nouns, "side": truth.side, "size": size,
        "count": COUNT_WORDS[truth.count], "Count": capital(COUNT_WORDS[truth.count]),
    }  # fmt: skip
    if truth.count > 1:
        words["noun"] = f"group of {nouns}"
    sentences = tuple(capital(choose(rng, MENTIONS[name]).format(**words)) for name in withheld)
    if not sentences:
        sentences = (choose(rng, MENTIONS["plain"]).format(figure=figure),)
    caption = f"{caption.replace(' .', '.')} {filler}".strip()
    return Telling(caption, sentences, withheld)


def candidate(kind: str, value: str) -> str:
    """A value as it stands inside a closed question: "an MRI", "a nodule", "left"."""
    if kind == "modality":
        return {"chest X-ray": "a chest X-ray", "CT": "CT", "MRI": "MRI"}.get(value, value)
    if kind == "finding":
        return value if value in ("inflammation", "necrosis") else with_article(value)
    return value


def fact(truth: Truth, kind: str) -> str:
    """The canonical value of one fact, "" where it does not apply."""
    return {
        "modality": DOMAIN_NAMES[truth.domain],
        "organ": truth.organ,
        "finding": "" if truth.normal else truth.finding,
        "side": truth.side,
        "size": truth.size,
        "count": COUNT_WORDS.get(truth.count, ""),
    }[kind]


def plausible(truth: Truth, kind: str) -> tuple[str, ...]:
    """The values of a fact that a fair closed question about this picture may name."""
    return {
        "modality": tuple(DOMAIN_NAMES.values()),
        "organ": organs_of(truth.domain),
        "finding": findings_of(truth.domain),
        "side": SIDES,
        "size": SIZES,
        "count": tuple(COUNT_WORDS.values()),
    }[kind]
