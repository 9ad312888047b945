"""Studies of starts cut out of a larger host."""


INITS = ("extracted", "scratch", "extracted_random", "extracted_shuffled", "extracted_noise", "pissa")
LORA = ("method=lora_all", "method.lora_all.settings.r=4", "method.lora_all.settings.alpha=4")
QUICK = (*LORA, "tracking.wandb=disabled", "yes=true", "engine=inprocess", "engine.device=cpu",
         "grid.seeds=[0]")


def hosts(make_host, family="t5"):
    """Overrides for a larger teacher and a smaller student."""
    teacher, student = make_host(family, 48, 3, 6, 2), make_host(family, 32, 2, 4, 1)
    return (f"host.nano-raw-large.path={teacher.source}", f"host.nano-raw-base.path={student.source}",
            "grid.pairs=[[nano-raw-large,nano-raw-base]]")


def inits(*names):
    return f"grid.inits=[{','.join(names)}]"
