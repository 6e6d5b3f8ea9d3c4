"""The phantom world: llavamed's CLEVR.

Medical-looking pictures drawn from a seed and a written-down truth, published as articles in the
layout of the PubMed Central bucket, so that every stage can be run on a laptop and tested against
what is known. Nothing here is, or is derived from, a picture of a patient.
"""
