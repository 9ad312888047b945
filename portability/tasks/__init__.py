"""Tasks beyond sentiment: an answer is written, or chosen among several, after a prompt of any kind.

    JSONL --examples--> Example --encode--> Sequences --padding--> Batch --readers, decoding--> losses, likelihoods, answers
    answers, likelihoods --scoring--> a score an example --metrics--> a number

`scorer` puts them together for training and evaluation, as `portability.scorer` does for texts with labels. `generated` makes
two such tasks, and the text to pretrain hosts on, out of a seed. Nothing here knows the grid, the store or Hydra; examples,
encode, scoring and generated do without torch.
"""
