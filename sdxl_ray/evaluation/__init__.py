"""Accuracy, measured: encoders that look at images, scores with intervals, and the drawing of what is scored.

    evaluate(models, subject, prompts, settings, home=folder)     # rows of the tables `scores` and `images`

Protocol: DreamBooth, arXiv 2208.12242, section 4. Every score says its encoder, preprocessing and count.
"""
