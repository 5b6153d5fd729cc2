"""The accuracy experiments: `python -m bench.experiments NAME`. docs/experiments.md says what they compare, and how.

plan.py       every experiment: its image sets, backbones, protocols and amounts
method_sets.py the sets of methods, and what the tables need to know of each
emoji7.py     emoji of seven vendors, which npm downloads
data.py       images or stored features, and their parts for training, validation and testing
tuning.py     the ranges of the settings, and the trials drawn from them
frozen.py     methods on features of a frozen backbone
joint.py      methods that train the backbone
factors.py    the default of joint training with options changed
similar_identities.py one of them: batches of similar identities
camera_pairs.py a classifier with weights of each pair of cameras
score_matrix.py the losses on a score matrix, for scores that are no head's
trial.py      one fit, measured: average precision and recall@1 of each identity
records.py    results as JSON lines, appended as they arrive
runner.py     what is left to do, in which order, and what it costs
bootstrap.py  intervals of paired differences
contrasts.py  methods that differ in one thing
comparison.py the numbers of tables and pictures
summary.py    one table of all experiments
processes.py  fits at the same time
evidence.py   what the demo says about its methods, from the results of the experiment demo
tables.py, plots.py    Markdown and picture, from the JSON lines alone
"""
