"""Metrics in files of the user's own."""



def mine(folder, body, takes=("predictions", "references"), name="mine", above=""):
    """A folder with a metric module, as the evaluate library takes it."""
    (folder / name).mkdir()
    features = ", ".join(f"'{key}': datasets.Value('{'float' if key == 'prediction_scores' else 'int32'}')"
                         for key in takes)
    (folder / name / f"{name}.py").write_text(
        f"import datasets\nimport evaluate\n{above}\n\nclass Mine(evaluate.Metric):\n"
        "    def _info(self):\n"
        "        return evaluate.MetricInfo(description='', citation='', inputs_description='',\n"
        f"                                   features=datasets.Features({{{features}}}))\n\n"
        f"    def _compute(self, {', '.join(takes)}):\n        {body}\n")
    return folder / name
