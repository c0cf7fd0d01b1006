"""The words of the card, around the figures that `page` puts in."""

HEAD = """# The embedded base: a tiny SDXL

SDXL's own classes and conditioning, narrower: 64 x 64 pixels, a UNet of 4.37 M parameters, an autoencoder that shrinks
by 4, two text encoders, and two small encoders that score its images. It was trained from nothing on scenes drawn
by code from open image sets, so that tuning can be tried, measured and tested on two CPU cores. Weights are fp16.
Revision {revision}, measured {date}; regenerate this page with `python -m sdxl_ray.tiny._build.card --work FOLDER`.
"""
CONTROL = """## Do images follow the words?
Judged by the shipped CLIP-style pair: the class chosen among all classes, the place among all places, the colour among
all colours; mean cosine of images to their own and to other captions. 20 steps, guidance 4. Real scenes are the
ceiling.

"""
IDENTITY = """## Does the identity encoder know who is who?
Mean cosine to a subject's five training images: of its own held-out images, of other drawings of its class, of
other subjects, and of decoys that have its colours and texture but not its shape. Retrieval among all subjects and
their classes: {retrieval:.3f} of {retrieval_n} held-out images find their own subject first. The order same subject,
same class, other class holds for {ranked:.0%} of the subjects; decoys score below other drawings of the class in
{decoys_below_siblings:.0%} of cases.

"""
TUNING = """## Does it learn a subject?
Five images of each, prompts "a photo of sks CLASS" on eight places. Fidelity: mean identity cosine to the held-out
images; the first rows of a subject say what real images get. Leak: the same for "a photo of a CLASS". Prompt score:
mean cosine to captions that name class, look and place. Other classes: class accuracy on the 23 other classes, which
forgetting lowers. One seed, 300 steps, training in one process. What the autoencoder alone costs is the second row.
The CLIP-style pair reads classes of patterned objects badly (see "recoloured" above), so that the class of tuned models
is lower than the eye sees: a robot in blue stripes is no robot to it.

"""
SPEED = """## Speed
{batch_1:.2f} images/s one by one and {batch_8:.2f} images/s by 8, 20 steps with guidance, on two CPU cores.
"""
TRAINING = """Training one subject for 300 steps takes {lora:.0f} s by LoRA, {dreambooth:.0f} s by DreamBooth (without
drawing its 60 class images) and {dreambooth_no_prior:.0f} s with no class images.
"""
MADE = """## How it was made
The stages of `python -m sdxl_ray.tiny._build.build` on {machine}: {scenes} scenes, {minutes:.0f} minutes of training
summed over the stages.
The loss of the UNet is epsilon prediction with min-SNR 5, EMA 0.999 and 10 % guidance dropout. What an index is
named for was trained further by itself (`--only`) from the weights that this index lists, on every core; a scorer
beside a generator that is the shipped one with noise in its weights, and with fresh training heads.

"""
SOURCES = """## Where its drawings come from
The weights are trained on, and the shipped subjects are made from, drawings of these packages, recoloured and placed in
scenes; the last two sets are the identity encoder's alone. Weights and subjects are under Apache-2.0 and, where a
drawing asks for it, under that drawing's licence.

"""
LIMITS = """## What it cannot do
It knows the classes and places above and nothing else; other words are spelled in pieces and mean little to it. Small
detail (spots, hands of clocks, eyes) is often wrong, and its autoencoder blurs patterns finer than four pixels. The
CLIP-style pair knows classes as they are drawn; of objects in strange colours and patterns it tells the place, not the
class. Its scores compare models that were tuned on this base with each other; they say nothing about images from
elsewhere, and must not be set beside scores by CLIP or DINO.
"""
