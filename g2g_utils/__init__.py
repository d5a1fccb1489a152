"""Zero-shot phrase grounding in chest X-rays from the cross-attention of a diffusion model.

The tour, from the ground up; imports point to earlier lines only (docs/architecture.md):

    config, runs      a profile; atomic files, locks and records of a run (cache: in memory)
    data              files and phantoms -> Example: image, phrase, boxes, patient
    text, tagger      words <-> tokens, and the words that count
    models            U-Net, VAE and text encoders: built, loaded, checked
    training          pre-training and fine-tuning on image-text pairs
    sampling          the inputs of the U-Net; attention: its cross-attention -> maps
    bbm, masks        maps -> merged map -> mask; information: predicted noise -> map
    metrics           heat map and boxes -> scores
    grounding         ground(model, image, phrase) -> heat map, mask, words
    methods           every way to ground, behind one protocol
    bench, plots      one score for all methods, statistics, claims; figures
    experiment        what a profile makes, once; explorer: widgets on top
"""

__version__ = "0.1.0"
