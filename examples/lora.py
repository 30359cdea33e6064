"""A language model of Hugging Face that is trained, and travels, as its LoRA adapters alone.

    pip install transformers peft                   # the extra `lora`
    edge-fl check examples/lora.py:Lora
    edge-fl run task=examples/lora.py:Lora learning-rate=0.5
    edge-fl run task=examples/lora.py:Lora mode=consensus consensus.learning-rate=0.5
    CHECKPOINT=/abs/gpt2 edge-fl run task=examples/lora.py:Lora      # a checkpoint of yours

Without a checkpoint the network is a tiny GPT-2 of random weights over bytes, so that nothing is
downloaded: it shows how this works, and learns little. The frozen weights are made or read by every
process on its own; of a checkpoint each machine needs a copy, at the same path.
"""

import os

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from fl_app.tasks.text import Text
from strategies.task import Examples

CHECKPOINT = os.environ.get("CHECKPOINT", "")
TINY = GPT2Config(
    vocab_size=256,
    n_positions=64,
    n_embd=64,
    n_layer=2,
    n_head=2,
    bos_token_id=0,
    eos_token_id=0,
    resid_pdrop=0.0,
    embd_pdrop=0.0,
    attn_pdrop=0.0,
)
RANKS = {"small": 4, "large": 16}  # of participants, and of the distillation server


class Logits(nn.Module):
    """Token numbers (b, t) to logits (b, vocabulary, t), as the app's losses take them."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.network(input_ids=tokens.long(), use_cache=False).logits.transpose(1, 2)


class Lora(Text):
    """The next token of a text, from a frozen network with adapters in its attention."""

    def model(self, role: str) -> nn.Module:
        if CHECKPOINT:
            network = AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32)
        else:
            network = GPT2LMHeadModel(TINY)
        wanted = LoraConfig(
            r=RANKS[role],
            lora_alpha=2 * RANKS[role],
            fan_in_fan_out=network.config.model_type == "gpt2",  # whose weights are transposed
            task_type="CAUSAL_LM",
        )
        return Logits(get_peft_model(network, wanted))

    def training(self) -> Examples:
        return self._tokens(super().training())

    def test(self) -> Examples:
        return self._tokens(super().test())

    def _tokens(self, examples: Examples) -> Examples:
        """Windows of bytes as windows of the checkpoint's tokens."""
        if not CHECKPOINT:
            return examples
        text = examples.inputs.numpy().tobytes().decode(errors="replace")
        found = AutoTokenizer.from_pretrained(CHECKPOINT)(text)["input_ids"]
        length = examples.inputs.shape[1]
        count = (len(found) - 1) // length
        tokens = torch.tensor(found[: count * length + 1])
        return Examples(tokens[:-1].view(count, length), tokens[1:].view(count, length))

    def groups(self, examples: Examples) -> None:
        """None: windows of tokens are of no one document."""
