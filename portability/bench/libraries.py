"""A host with a method on it as its library's user would build it: peft for LoRA, adapters for the rest."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional as F

from portability.bench.workload import Workload, method_spec, task_spec
from portability.core.specs import HostSpec
from portability.hosts.host import Host, from_folder
from portability.hosts.sources import HostSource, describe
from portability.methods.adapters_backend import config_of
from portability.tasks.classification import HEAD, Scorer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LORA_TARGETS = {  # the matrices that conf/method/lora.yaml adapts through adapters: q, k, v of every attention, and the FFN
    "t5": r".*\.(q|k|v|wi|wo)",
    "bert": r".*\.(query|key|value|intermediate\.dense|layer\.\d+\.output\.dense)",
    "llama": r".*\.(q_proj|k_proj|v_proj|up_proj|down_proj)",  # adapters 1.3.0 leaves the gate alone
}
NO_DROPOUT = {
    "t5": {"dropout_rate": 0.0}, "bert": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}, "llama": {},
}


class Labelled(nn.Module):
    """A host that answers with the label in one step, by our scorer, and gives the loss that Trainer asks for.

    `weight` multiplies the mean loss: K where K modules share a batch, so that each has the gradient of its own mean.
    """

    def __init__(self, scorer: Scorer, weight: int = 1):
        super().__init__()
        self.scorer, self.weight = scorer, weight
        if scorer.has_head:
            scorer.head.requires_grad_(True)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Loss, and logits (B, V) or (B, 2); labels (B,) are classes of these logits."""
        logits = self.scorer(input_ids, attention_mask)
        if labels is None:
            return {"logits": logits}
        return {"loss": F.cross_entropy(logits.float(), labels) * self.weight, "logits": logits}


def host_spec(work: Workload) -> HostSpec:
    """The benchmark's host."""
    return describe(HostSource(work.shape, path=str(work.path / "host")))


def load(work: Workload, dropout: bool) -> "PreTrainedModel":
    """The host as transformers loads it, with the attention that it chooses."""
    family = host_spec(work).shape.family
    return from_folder(work.shape, family, work.path / "host", **({} if dropout else NO_DROPOUT[family]))


def with_peft(model: "PreTrainedModel", work: Workload) -> nn.Module:
    """LoRA by peft, of the same matrices and sizes as ours; the layers are put into `model` itself."""
    import peft

    settings = method_spec(work.method).settings
    family = model.config.model_type
    kinds = {"t5": "SEQ_2_SEQ_LM", "llama": "CAUSAL_LM", "bert": "FEATURE_EXTRACTION"}
    return peft.get_peft_model(model, peft.LoraConfig(
        r=settings["r"], lora_alpha=settings["alpha"], lora_dropout=0.0, target_modules=LORA_TARGETS[family],
        task_type=kinds[family]))


def with_adapters(model: "PreTrainedModel", work: Workload, sizes: Sequence[int] = ()) -> None:
    """A module by adapters, or several side by side over one batch (BatchSplit) of `sizes` examples each."""
    import adapters
    from adapters.composition import BatchSplit

    adapters.init(model)
    model.accepts_loss_kwargs = False  # Trainer takes the library's **kwargs for a place to put num_items_in_batch
    config = config_of(method_spec(work.method), host_spec(work).shape)
    names = [f"module{i}" for i in range(len(sizes) or 1)]
    for name in names:
        model.add_adapter(name, config=config)
    model.train_adapter(BatchSplit(*names, batch_sizes=list(sizes)) if sizes else names[0])


def scorer_over(model: "PreTrainedModel", work: Workload, precision: str = "fp32") -> Scorer:
    """Our scoring of the label over any model of the host's kind; Trainer brings its own autocast, so it takes fp32."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(work.path / "host")
    return Scorer(Host(host_spec(work), model, tokenizer, precision), task_spec())


def trainable(network: nn.Module, modules: int) -> int:
    """Numbers that training changes per module; a head is counted whole, because modules in one batch share it."""
    counts = {name: parameter.numel() for name, parameter in network.named_parameters() if parameter.requires_grad}
    head = sum(count for name, count in counts.items() if name.endswith(HEAD))
    return (sum(counts.values()) - head) // modules + head
