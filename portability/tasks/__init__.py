"""How texts are asked and answers scored: `classification` by label words or a head, `generation` by written
or chosen ones.

    JSONL --data.examples--> Example --data.answer_tokens--> Sequences --padding--> Batch --readers,
    decoding--> losses, likelihoods, answers --data.answer_scores--> a score an example --metrics--> a number

`generated` makes two such tasks out of a seed.
"""
