"""How texts are asked and answers scored: `classification` by label words or a head, `generation` by written
or chosen ones.

    JSONL --data.examples--> Example --data.tokenization--> Sequences --data.sampling--> Batch
    --readers--> losses, likelihoods, answers --data.answer_scores--> a score an example --metrics--> a number
"""
