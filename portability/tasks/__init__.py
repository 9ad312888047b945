"""Tasks beyond sentiment: an answer is written, or chosen among several, after a prompt of any kind.

    JSONL --examples--> Example --encode--> Sequences --padding--> Batch --readers, decoding--> losses, likelihoods, answers
    answers, likelihoods --scoring--> a score an example --metrics--> a number

`generated` makes two such tasks, and the text to pretrain hosts on, out of a seed. Nothing here knows the grid, the store or
Hydra. Only padding, readers and decoding need torch, only metrics the evaluate library.
"""
