"""Judges: small finding classifiers, one for each image stream, that never saw a generated image.

Whether a generated X-ray shows the left effusion of its report is decided by a network that shares
neither weights nor architecture with the model under test: a plain convolutional classifier,
trained on the *real* images of the train split. For every finding it answers: is it there, is it on
the patient's left, on the right, in this lobe? Its pooled activations serve as the feature space of
the Fréchet and kernel distances (`medm2g_core.evaluation.fidelity`), in the place of an Inception
network: those distances are comparable within this repository only.

`labels` are the questions, `network` the classifier, `judge` the two together, `files` where they
lie, `training` how they are made:

    python -m medm2g_core.judges            # trains what is missing in checkpoints/judges
"""
