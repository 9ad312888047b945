"""What is said of the published studies of strategies is what their cells in results/ have."""

from pathlib import Path

import pandas as pd
import pytest

from portability.porting.verdict import STUDIES

RESULTS = Path(__file__).parents[2] / "results"


def chosen(study, **where):
    """The cells of a study at these places."""
    cells = pd.read_parquet(RESULTS / f"strategies_{study}/published/cells.parquet")
    for column, value in where.items():
        cells = cells[cells[column].isin(value if isinstance(value, tuple) else (value,))]
    assert len(cells)
    return cells


def of(study, init, budget, **where):
    """Mean AUC, in points, over seeds, methods and directions."""
    return 100 * chosen(study, init=init, budget=budget, **where)["eval_auc"].mean()


def test_what_is_said_of_studies_is_what_they_published():
    """Each number of the sentences, made of the cells that stand in results/."""
    base, tuned, large = "nano-raw-base", "nano-tuned-base", "nano-raw-large"
    lineage = {"origin": (base, tuned), "receiving": (base, tuned)}
    size = {"origin": (base, large), "receiving": (base, large)}
    books, fewer, turned = ({"receiving": f"smollm2-{name}"}
                            for name in ("books-60", "20-layers-healed", "hidden"))

    def lift(study, **where):
        return of(study, "ported", 0, port="pad", **where) - of(study, "bare", 0, **where)

    gains = sorted(lift("nano", method=name, **lineage) for name in ("adapter", "lora"))
    said = STUDIES["the same coordinates and depth"]
    assert f"pad was {gains[0]:.0f} and {gains[1]:.0f} points ahead" in said
    assert f"{lift('smollm2', **books):.1f} on SmolLM2" in said
    level = of("smollm2", "ported", 20, port="pad", **books) - of("smollm2", "scratch", 20, **books)
    assert "scratch was level after 20 updates" in said and abs(level) < 1
    said = STUDIES["the same coordinates, another depth"]
    down, up = (lift("minilm", receiving=name) for name in ("minilm-l3-derived", "minilm-l6"))
    assert f"pad was {lift('smollm2', **fewer):.1f} points ahead" in said
    assert f"{down:.1f} and {up:.1f} on MiniLM's 3 and 6" in said
    said = STUDIES["other coordinates of one width"]
    whole, pad = (of("smollm2", "ported", 0, port=port, **turned)
                  for port in (("procrustes", "embed"), "pad"))
    bare, scratch = of("smollm2", "bare", 0, **turned), of("smollm2", "scratch", 20, **turned)
    assert f"(AUC {whole:.1f}; bare {bare:.1f}, pad {pad:.1f})" in said
    after = [of("smollm2", "ported", 20, port=port, **turned) for port in ("procrustes", "embed")]
    assert f"({after[0]:.0f} and {after[1]:.0f}; scratch {scratch:.0f})" in said
    apart = {"receiving": "nano-other-base"}
    behind = of("nano_auc", "ported", 0, port="pad", **apart) - of(
        "nano_auc", "ported", 0, port="procrustes", **apart)
    declared = pd.read_csv(RESULTS / "strategies_nano_auc/tables/primary.csv").set_index("name")["verdict"]
    assert f"procrustes was {behind:.1f} behind pad" in said
    assert declared["procrustes against pad before any update - apart"] == "behind"
    said = STUDIES["another width"]
    maps = [of("nano_auc", "ported", 0, port=port, method=name, **size)
            for port in ("procrustes", "corr", "embed") for name in ("adapter", "lora")]
    bare, pad = of("nano_auc", "bare", 0, **size), of("nano_auc", "ported", 0, port="pad", **size)
    assert f"(AUC {min(maps):.0f} to {max(maps):.0f}; bare {bare:.0f}, pad {pad:.0f})" in said
    assert f"distill did ({of('nano_trained', 'ported', 0, port='distill', **size):.0f})" in said
    ahead, behind = (of("nano_auc", "ported", 20, port=port, **size)
                     - of("nano_auc", "ported", 20, port="pad", **size) for port in ("procrustes", "embed"))
    assert f"(procrustes {ahead:.1f} points ahead, embed {-behind:.1f} behind)" in said
    assert {declared[f"{name} against pad - size"] for name in ("procrustes", "embed")} == {"open"}


def lift(study, port, **where):
    """AUC before any update less that of the bare host, in standard errors over seeds."""
    ported, bare = (chosen(study, budget=0, **which, **where).groupby("seed")["eval_auc"].mean()
                    for which in ({"init": "ported", "port": port}, {"init": "bare"}))
    gains = ported - bare
    assert len(gains) >= 3
    return gains.mean() / gains.sem()


@pytest.mark.parametrize(("study", "receiving", "carries"), [
    ("smollm2", "smollm2-books-60", True), ("smollm2", "smollm2-20-layers-healed", True),
    ("smollm2", "smollm2-narrow-healed", False), ("smollm2", "smollm2-hidden", False),
    ("minilm", "minilm-l3-derived", True), ("minilm", "minilm-l6", True), ("nano", None, True)])
def test_noise_of_the_modules_norm_has_no_lift(study, receiving, carries):
    """Within two standard errors on each real host, and on the embedded ones together. Of the embedded ones
    alone it is not on nano-tuned-base from nano-raw-base: AUC +4.5 and +4.1, 4.7 and 6.5 standard errors,
    where the bare host answers worse than by chance (45.7)."""
    where = {"receiving": receiving} if receiving else {}
    assert abs(lift(study, "random", **where)) <= 2
    assert (lift(study, "pad", **where) > 4) == carries
