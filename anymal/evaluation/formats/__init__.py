"""The layouts in which predictions and references travel between evaluations: COCO captions, VQA, VizWiz, LLaVA's answers, lmms-eval's samples.

Identifiers are text here, whatever the file has; writers give whole numbers back as numbers.
"""
