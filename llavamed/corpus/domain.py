"""What kind of picture a figure is, from its words: LLaVA-Med's five domains, or other.

The paper chose its pairs by words of the caption (Li et al. 2023, section 3). Each domain here is a
table of words with a weight; the caption votes fully, all the sentences that cite the figure together
half, the title of the article a quarter, since an article on MRI also shows its histology. The score is
the winner's share of all votes, so 1.0 is "nothing spoke for another domain". Words of weight 1
("specimen", "stained") only support: a map of where specimens were found is no gross photograph.

Charts and drawings speak of images too ("ROC curve of the CT score"); they are flagged apart by their
own table, and what the text says of them is no picture.

How often this is right stands in `docs/experiments.md` (`benchmarks/domain.py`); a caption that names no
modality ("Dissected view of the mass") is beyond any table of words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from llavamed.records import Mention

_SAW = r"(?:photo\w*|views?|images?|pictures?|findings?|aspects?|appearances?|visuali[sz]ations?)"
_ORGAN = (
    r"(?:organs?|kidneys?|liver|spleen|heart|ventricles?|lungs?|brain|eyes?|uterus|ovar(?:y|ies)|test[ei]s|prostate|bladder|"
    r"bowel|intestines?|colon|c(?:a)?ecum|stomach|(?:o?e)sophagus|gallbladder|pancreas|appendix|thyroid|trachea|aorta|"
    r"arter(?:y|ies)|veins?|lymph nodes?|placentas?|f(?:o?e)tus(?:es)?|femurs?|femoral head|humerus|mandibles?|skulls?|"
    r"bones?|cartilage|tendons?|nerves?|muscles?|tooth|teeth)"
)
_FINDING = (
    r"(?:specimens?|tumou?rs?|mass|lesions?|cysts?|nodules?|grafts?|membranes?|stones?|calcul(?:us|i)|bezoars?|\w+omas?|"
    r"bon[ey] (?:pieces|fragments|blocks|chips)|" + _ORGAN + ")"
)
# what stands beside a CT, and what else the letters mean where a caption explains them
_NO_CT = (
    r"(?!(?:.*\bCT)?,? ?[:=,(] ?(?:connective|cycle|control|cortex))"
    r"(?![- ](?:gantry|rooms?|suite|scanners?|machines?|table|dosimetry|(?:\w+ )?phantoms?))"
)
# of the brain, as functional imaging names it
_BRAIN = (
    r"(?:cort(?:ex|ices|ical)|gyr(?:us|i)|insulae?|insular|cingulate|striat(?:um|al)|caudate|putamen|accumbens|thalam(?:us|ic)|"
    r"amygdalae?|hippocamp(?:us|i|al)|precuneus|cerebell(?:um|ar)|brain|(?:frontal|temporal|parietal|occipital) lobes?)"
)
_ACTIVE = r"(?:(?:de)?activations?|(?:de)?activated|(?-i:BOLD))"
# stains and reactions of light microscopy
_STAIN = (
    r"(?:ha?ematoxylin|eosin|H ?& ?E|HE|PAS|periodic acid[- ]schiff|methenamine[- ]silver|silver|grocott|giemsa|wright\w*|"
    r"may[- ]gr[uü]nwald\w*|M\.?G\.?G\.?|gram|ziehl[- ]neelsen|papanicolaou|pap|masson\w*|mallory\w*|trichrome|azan|"
    r"(?:elastica[- ])?van gieson\w*|verhoeff\w*|movat\w*|pentachrome|orcein|elastic|reticulin|gomori|congo red|"
    r"cresyl[- ]violet|crystal violet|thionine?|nissl|luxol fast blue|golgi|bielschowsky|toluidine[- ]blue|methylene blue|"
    r"azure\w*|alcian blue|mucicarmine|safranin[- ]?o|fast green|sirius red|picrosirius|von kossa|alizarin red|oil red o|"
    r"sudan\w*|perls\w*|prussian blue|fontana\w*|feulgen|methyl green|TRAP|NADH|(?:X|[βb]eta|β)-?gal|DAB|diaminobenzidine|"
    r"cotton blue)"
)
# Regular expressions that must match whole words, in any case unless marked (?-i:...); (pattern, weight).
_WORDS: dict[str, tuple[tuple[str, float], ...]] = {
    "chest_xray": (
        (r"(?:chest|thoracic|thorax|lung) (?:x[- ]?(?:rays?|rs?)|radio?graphs?|radiography|roentgenogra\w+|skiagrams?|films?)", 3),
        (r"(?:x[- ]?rays?|radiographs?|radiography|films?) (?:of the |of )?(?:chest|thorax|lungs?)|(?-i:CXRs?)", 3),
        (r"radiographies? (?:thoraciques?|pulmonaires?|d[eu] (?:poumons?|thorax))", 3),
        (r"tele(?:cardio|radio)gra(?:ms?|phy)", 3),
        (r"(?:posteroanterior|anteroposterior|(?-i:PA|AP)|portable|frontal|lateral) (?:chest|thorax)", 2),
        (r"(?:lateral|frontal|dorsoventral|ventrodorsal) thoracic (?:views?|projections?)", 2),
        (r"cardiothoracic ratio|costophrenic|cardiac silhouette", 1),
    ),
    "mri": (
        # no picture of what stands in the scanner
        (r"(?-i:f?MRIs?|MRA|MRCP|CMR|MRV|IRM)(?![- ](?:compatible|safe|suite|room|scanners?|machines?|table|bed))", 3),
        (r"(?:nuclear )?magnetic resonance(?! (?:spectr\w+|scanners?))(?: imag\w*)?", 3),
        (r"(?-i:MR) (?:imag\w*|scans?|diffusion|angiogra\w*|cholangiopancreatogra\w*|lymphogra\w*|sequences?)", 3),
        (r"T[12]\*?[- ]?(?:weighted|sagittal|axial|coronal|images?|sequences?|signal)", 2),
        (r"(?:sagittal|axial|coronal) T[12]", 2),
        (r"(?-i:T[12]WI?|FLAIR|STIR|DWI|SWI|DTI|SSFP|FSPGR|MPRAGE|TrueFISP|BOLD)|flai?re? images?", 2),
        (r"proton[- ]density", 2),
        (r"(?:diffusion|susceptibility|proton)[- ]weighted|ADC maps?|gadolinium\w*|tractography", 2),
        (r"(?:diffusion )?tensor imaging", 2),
        (r"spin[- ]echo|gradient[- ]echo|(?:multiple|multi)[- ]echo|inversion[- ]recovery", 2),
        (r"fluid[- ]sensitive sequences?", 2),
        # activation maps; a caption seldom says that their background is an MRI
        (r"MNI|talairach|voxel[- ](?:based|wise|level)|peak voxels?|statistical parametric maps?", 2),
        (rf"{_ACTIVE} (?:[\w()-]+ ){{0,8}}{_BRAIN}|{_BRAIN}[,;:]? (?:[\w()-]+ ){{0,6}}{_ACTIVE}", 2),
        (r"default mode network|resting[- ]state (?:networks?|functional|f?MRI)|brodmann|(?:FWE|FDR)[- ]corrected", 2),
        (rf"(?:regions?[- ]of[- ]interest|(?-i:ROIs?)|seeds?)[,;:]? (?:[\w()-]+ ){{0,8}}{_BRAIN}", 2),
        (rf"{_BRAIN} (?:[\w()-]+ ){{0,3}}(?:seeds?|(?-i:ROIs?)|regions? of interest)", 2),
        (r"(?:hyper|hypo|iso)[- ]?intens\w+", 2),
        (r"fractional anisotropy|functional connectivity|brain activations?", 1),
    ),
    "ct_scan": (
        # "CT" stands for other things in a list of abbreviations
        (rf"(?-i:(?:3-?D[- ]?|X|XR|Q|pQ|CC)?CTs?|CECT|NCCT|HRCT|MDCT|MSCT|CBCT|CTA|CCTA|CTPA|CTV){_NO_CT}", 3),
        (r"(?:micro|nano|angio)[- ]?CT|[μµ]-?CT|CAT scans?|(?-i:TDM)|denta-?scan|angio-?scan\w*|tomographic slices?", 3),
        (r"scanner (?:thoracique|abdomin\w*|c[eé]r[eé]br\w*|show\w*)", 3),
        (r"comput(?:ed|er|eri[sz]ed) (?:axial )?tomogra\w*(?! (?:gantry|rooms?|suite|scanners?|phantoms?))|comput(?:ed|eri[sz]ed) angiogra\w*|tomodensitom\w*", 3),
        (r"hounsfield|(?-i:HU)|lung windows?|bone windows?|(?:hyper|hypo)[- ]?(?:attenuat|dens)\w+", 2),
        (r"(?:axial|coronal|sagittal|multiplanar) (?:reformat\w*|reformations?|reconstructions?)", 2),
        (r"(?-i:MPR) (?:axial|coronal|sagittal|recon\w*|images?)", 2),
    ),
    "histology": (
        (rf"microscopic(?:al)? (?:\w+ )?(?:{_SAW}|sections?|slides?|preparations?|structures?|examinations?|features?)", 3),
        (rf"{_STAIN}(?:[- ](?:\w+[- ])?(?:stain\w*|sections?|slides?|mounts?|smears?|method|reaction|positiv\w*))", 3),
        (rf"stain\w* (?:\w+ ){{0,4}}(?:with|by|for|using|in) (?:\w+ ){{0,2}}{_STAIN}|histochem\w*", 3),
        (r"histolog\w*|histopatholog\w*|photomicrographs?|microphotographs?", 3),
        (r"h ?(?:&|and|\+|/) ?e|ha?ematoxylin(?:(?:-?,? and | ?& ?|[- ])eosin)?|eosin", 3),
        (r"papanicolaou|giemsa|masson\w*|(?:goldner\w*|masson\w*)? ?trichrome|periodic acid[- ]schiff", 3),
        (r"van gieson", 3),
        (r"toluidine blue|cresyl violet|nissl|congo red|alcian blue|safranin[- ]?o|picrosirius|von kossa", 3),
        (r"silver stain\w*", 3),
        (r"(?-i:H&E|HE|HPE|HPS|EVG)(?:[ ,;:]+(?:original )?(?:magnification )?(?:[×xX] ?\d|\d+ ?[×xX]))|(?-i:HPE)", 3),
        (r"(?:stained|histological|paraffin|ground|semi-?thin|(?:de|un|non)-?calcified) (?:\w+ )?sections?|(?<!cross.)sections? (?:of|from|through) (?:\w+ ){1,4}show\w*", 2),
        (r"sections? (?:\w+ )?(?:was |were )?stained|stain\w* in a \w* ?section", 2),
        (r"immunohistochem\w*|(?-i:IHC)", 2.5),
        (r"immuno-?(?:stain\w*|reactiv\w*|positiv\w*|label\w*|peroxidase)|in situ hybridi[sz]ation|(?-i:ISH)", 2),
        (r"(?:low|high|intermediate|medium)[- ]power|frozen sections?|cell blocks?|bone marrow (?:aspirate|biopsy)", 2),
        (r"patholog\w+ (?:slides?|sections?|examinations?|features?)|[,;:] ?[×x] ?\d{2,3}\.?\Z", 2),
        (r"ki[- ]?67|smears?|cytolog\w*|cytopatholog\w*|aspiration cytology|(?-i:FNAC)", 2),
        (r"(?-i:CD\d+|S-?100|SMA|EMA|HMB-?45|NSE|p53|p63)(?: \w+)? (?:positiv\w*|stain\w*|express\w*)", 2),
        (r"(?:vimentin|desmin|(?:cyto)?keratin|synaptophysin|chromogranin\w*|neuron[- ]specific enolase),? .*[×x] ?\d", 2),
        # what only a pathologist sees
        (r"hyperkerat\w+|acanthosis|papillomatosis|parakeratosis|hyperchromatic|pleomorphi\w+|mitotic figures?", 2),
        (r"(?:giant|spindle|inflammatory|epithelioid|neoplastic|tumou?r|malignant|atypical)[- ](?:shaped )?cells?", 2),
        (r"(?:inflammatory|lymphocytic|eosinophilic|neutrophilic|mononuclear|cellular)(?: cell)? infiltrat\w+", 2),
        (r"(?:colliquative|coagulative|caseous|fibrinoid|focal) necrosis|granulomas?|osteo(?:cyte|blast|clast|n)s?", 2),
        (r"(?:squamous|columnar|cuboidal|glandular|odontogenic) epitheli\w+|rete ridges|seminiferous|keratin pearls?", 2),
        (r"(?:dense|loose|fibrous) connective tissue|(?:papillary|reticular|superficial|deep) dermis|muscle fib(?:er|re)s", 2),
        (r"light micrographs?|magnification,? ?[×x]? ?\d{2,3}|\((?:[^()\d]{0,40}[,; ])?[×x] ?\d{2,3}\)", 1.5),
        (r"stain(?:ed|ing)?|biops(?:y|ies)|micrographs?|microscop\w*|original magnification|tissue sections?", 1),
    ),
    "gross": (
        (r"gross (?:pathology|specimens?|appearance|examination|photographs?|findings?|anatomy|morphology)|grossly", 3),
        (r"gross (?:view|image|section)", 3),
        (rf"macroscopic(?:al)? {_SAW}|macrophotographs?|macroscopy", 3),
        (r"(?:resected|surgical|resection|excised|operative|postoperative|bisected|\w+ectomy) specimens?", 3),
        (r"(?:autopsy|necropsy|cadaver\w*) specimens?|pi[eè]ces? op[eé]ratoires?", 3),
        (r"anatomical (?:preparations?|dissections?)|plastinat\w+|(?:arranged|articulated|whole) skeletons?", 3),
        (rf"(?:removed|enucleated|explanted|excised|resected|dissected|extracted|retrieved) (?:\w+ )?{_FINDING}", 2),
        (r"surgically (?:removed|excised|resected)|(?:removed|excised|resected) (?:surgically|en bloc|in toto)", 2),
        (r"specimens? (?:\w+ ){0,2}(?:measur\w+|weigh\w+)", 2),
        (rf"(?:harvested|bi-?valved|bisected|sectioned|opened) (?:\w+ )?{_FINDING}", 2),
        (rf"{_FINDING} (?:\w+ )?after (?:its |their )?(?:removal|excision|resection|extraction)", 2),
        (rf"{_FINDING} (?:\(\w+\) )?(?:was|were) (?:\w+ )?(?:dissected|exposed|ligated|transected|excised|exteriori[sz]ed)", 2),
        (rf"(?:intra|per|peri)[- ]?op[eé]rat(?:ive|oire)(?:ly)? (?:\w+ )?(?:{_SAW}|exposures?|fields?|use)", 2),
        (r"(?:operative|operating|surgical) (?:views?|photo\w*|exposures?|findings?|fields?)", 2),
        (r"(?:clamshell|midline|median|exploratory|emergency|open) (?:laparotomy|thoracotomy|sternotomy)", 2),
        (r"exteriori[sz]\w+|(?:at|during|on) (?:autopsy|necropsy|laparotomy|thoracotomy|sternotomy)", 2),
        (r"(?:post[- ]?mortem|autopsy|necropsy|cadaver\w*|dissect\w*) (?:photo\w*|views?|findings?|pictures?)", 2),
        (r"dissections? of (?:the )?(?:(?:left|right) )?(?:side|thorax|neck|arm|forearm|thigh|leg|foot|hand|limb|axilla)", 2),
        (r"cut (?:surfaces?|sections?)|\A(?:\w+ )?specimens?(?=[.,:]| show)|cadaver\w*", 2),
        (rf"specimens? (?:of|from) (?:the |an? )?(?:\w+ )?{_FINDING}", 2),
        (rf"cross[- ]sections? (?:of|through) (?:the )?(?:\w+ )?{_ORGAN}|(?-i:TTC)|triphenyl\w*tetrazolium", 2),
        (r"(?:medial|lateral|inner|outer|anterior|posterior) (?:surface|aspect) of (?:the )?(?:mandib\w+|ramus|skull|scapula)", 2),
        (r"viewed from (?:the |its )?(?:\w+ )?(?:apex|aspect)", 2),
        (r"(?:has|have) been removed", 2),
        (rf"exposures? of (?:the )?(?:(?:left|right) )?(?:\w+ head|elbow|hip|knee|spine|{_ORGAN})", 2),
        (r"(?:gr[ae]y|white|tan|yellow)\w*[- ,]+(?:[\w-]+,? ){0,4}(?:mass|tumou?r|nodule)", 2),
        (r"(?:firm|rubbery|fleshy) mass", 2),
        (rf"(?:photographs?|pictures?) (?:of|show\w*) (?:\w+ ){{0,3}}{_ORGAN}", 1.5),
        (r"(?:dry|dried|anatomical) (?:bones?|skulls?|specimens?|mandibles?)", 1.5),
        (r"intra-?operatively|post-?mortem|surgical approach|formalin[- ]fixed", 1.5),
        (r"specimens?|autopsy|necropsy|excised|resected|macroscop\w*|intra-?operative", 1),
    ),
    # Other modalities vote too: an ultrasound image that is compared with CT is not a CT image.
    "other": (
        (r"ultraso\w*|sonogra\w*|doppler|echocardiogra\w*|mammogra\w*|scintigra\w*|fluoroscop\w*", 3),
        (r"hypoechoic|echogenic", 3),
        (r"(?!\w*(?:micro|macro)scop)\w+-?scop(?:y|ies|ic|ically|es?)", 3),  # endoscopy and its like
        (r"(?-i:VATS|EUS|ERCP)|robot\w*|da vinci|trocars?|(?:umbilical|ancillary|[- ]mm) ports?|(?:working|camera|viewing|\w+lateral) portals?", 3),
        (r"specimen radiogra\w+|set-?ups?|test(?:ing)? (?:rigs?|machines?)", 3),
        (r"fundus (?:photo\w*|images?|camera|auto\w*|exam\w*|fluor\w*)|ocular fundus", 3),
        (r"optical coherence tomography|(?-i:OCT|PET|SPECT)|slit[- ]lamp|photograph of (?:the|a) patient", 3),
        (r"electron (?:photo)?micro\w*|microtomes?", 4),  # "photomicrograph" is a part of its name
        (r"(?-i:SEM) \(|(?-i:TEM|(?:FE-)?SEM (?:image|micro\w+|of)|(?:micrographs?|images?) (?:by|in) SEM)", 3),
        (r"western blots?|gels?|immunofluorescen\w*|immunocytochem\w*|confocal|fluorescen\w*", 3),
        (r"(?-i:e?GFP|DAPI|FISH|Hoechst)", 3),
        (r"(?:knee|hip|pelvic|abdominal|dental|hand|wrist|spine|panoramic) (?:x[- ]?rays?|radiographs?)", 3),
        (r"(?:clinical|intra-?oral) (?:photo\w*|views?|findings?|pictures?|appearances?|aspects?)", 3),
        (r"(?-i:AP|PA) views?", 3),
        (r"laser micrographs?|intravital|lateral views?|cultur(?:e|ed|es)|agar", 2),
        (r"angiogra(?:m|ms|phy|phic)|clinical", 1),
    ),
}

# A drawing, whatever else the caption says.
_PLOTS = (
    r"(?:bar|pie|line|flow|funnel) ?(?:charts?|graphs?|plots?|diagrams?)|histograms?|nomogram|dendrogram",
    r"box(?:[- ]and[- ]whiskers?)? ?plots?|(?:forest|violin|volcano|dot|density) ?plots?|heat ?maps?",
    r"scatter ?(?:plots?|grams?|diagrams?)|bland[- ]altman|graphs?|plots?|charts?",
    r"kaplan[- ]meier|(?:survival|calibration|(?-i:ROC)) curves?|receiver operating characteristics?",
    r"schematic(?:s|ally)?|diagrams?|flow of (?:participants|patients)|(?-i:PRISMA|CONSORT)|workflow",
    r"phylogenetic trees?|(?:consensus|inference|parsimony|neighbor-joining)\)? trees?|pedigree|sequence alignments?",
    r"chromatograms?|error bars?|regression lines?|odds ratios?|chemical structures?",
    r"maps? (?:of|illustrat\w+|prepared)|diagrammatic\w*|(?:line|schematic) drawings?|sketch(?:es)?|cartoons?|lithographs?",
)
# A drawing if the caption names no kind of image beside it.
_MAYBE_PLOTS = (
    r"curves?|scheme|algorithm|framework|architecture|time ?line|spectr(?:um|a)|model",
    r"study (?:design|selection|areas?)",
    r"mean ?(?:±|\+/-)|correlations?|distributions?|[xy][- ]axis|axes|comparisons?|relationship|prevalence|plotted",
    r"p ?[<=] ?0?[.]\d+|(?:95 ?% )?(?-i:CIs?)|confidence (?:intervals?|bounds?)|median(?! (?:nerve|sternotomy|plane|section|line|raphe))|average|probabilit(?:y|ies)",
    r"(?-i:SEM|SD|SNPs?)|transcripts?|kinetics?|meta-analys[ie]s|associations?|risk|time to|networks?",
    r"simulat\w+|trees?",
    r"relative abundance|clustering|scaling analysis|multidimensional scaling|principal components?",
    r"profiles? of|percent(?:age)?s?",
)


def _whole_words(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w)(?:{pattern})(?!\w)", re.IGNORECASE)


_HYPHENS = str.maketrans(dict.fromkeys("\u2010\u2011", "-"))  # "X‐ray" as many publishers set it
_DOMAIN_PATTERNS = {
    name: tuple((_whole_words(pattern), float(weight)) for pattern, weight in words) for name, words in _WORDS.items()
}
_PLOT_PATTERN = _whole_words("|".join(_PLOTS))
_MAYBE_PLOT_PATTERN = _whole_words("|".join(_MAYBE_PLOTS))

_SUPPORTING = 1.0  # the weight of words that name no domain on their own
_CHART = 3.5
_LEAST_VOTES = 0.75  # what half of the sentences that cite a figure give, or the title alone: words in passing
_CAPTION_WEIGHT, _MENTION_WEIGHT, _TITLE_WEIGHT = 1.0, 0.5, 0.25


@dataclass(frozen=True)
class Verdict:
    """`score` is the winner's share of the votes, 0-1; 0 where no word of any domain was found."""

    domain: str
    score: float
    is_plot: bool


def classify(caption: str, mentions: Iterable[Mention] = (), title: str = "") -> Verdict:
    """The domain that a figure's words speak for, one of `records.DOMAINS`."""
    sentences = list(dict.fromkeys(mention.sentence for mention in mentions))
    caption = caption.translate(_HYPHENS)
    texts = [(caption, _CAPTION_WEIGHT), (title, _TITLE_WEIGHT)]
    # all that cite it together: a figure of a skull cited ten times, once beside "CT", need not be a CT
    is_plot = _is_plot(caption)
    if is_plot:
        sentences, texts = [], texts[:1]  # what the text says of a chart's data is no picture of it
    texts += [(sentence.translate(_HYPHENS), _MENTION_WEIGHT / len(sentences)) for sentence in sentences]
    votes = dict.fromkeys(_DOMAIN_PATTERNS, 0.0)
    named = {"other"}
    for text, weight in texts:
        for name, words in _DOMAIN_PATTERNS.items():
            # the strongest word of each text counts, once: repeating "CT" five times is no more CT
            strongest = max((w for pattern, w in words if pattern.search(text)), default=0.0)
            votes[name] += weight * strongest
            if strongest > _SUPPORTING:
                named.add(name)
    if _PLOT_PATTERN.search(re.split(r"(?<=[.:]) ", caption, maxsplit=1)[0]):
        votes["other"] += _CHART  # the first sentence says what a figure is: a chart of MRI volumes is no MRI
    total = sum(votes.values())
    # of two that are named as strongly, the one that is named first: "histology slice for comparison with MRI"
    best = max((name for name in votes if name in named), key=lambda name: (votes[name], name != "other", -_first(name, caption)))
    best = best if votes[best] > _LEAST_VOTES else "other"
    return Verdict(
        domain=best,
        score=round(votes[best] / total, 4) if total else 0.0,
        is_plot=is_plot,
    )


def _first(name: str, caption: str) -> int:
    """Where the first word of the domain stands that is more than support."""
    found = (pattern.search(caption) for pattern, weight in _DOMAIN_PATTERNS[name] if weight > _SUPPORTING)
    return min((match.start() for match in found if match), default=len(caption))


def _is_plot(caption: str) -> bool:
    if _PLOT_PATTERN.search(caption):
        return True
    names_image = any(w >= 2 and p.search(caption) for words in _DOMAIN_PATTERNS.values() for p, w in words)
    return not names_image and _MAYBE_PLOT_PATTERN.search(caption) is not None
