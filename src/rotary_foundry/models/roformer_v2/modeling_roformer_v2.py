"""RoFormerV2 for transformers 4 and 5, in one file: a directory that has it is loaded with `trust_remote_code=True`.

It has post-norm layers, root-mean-square norms without gains, no biases, ReLU, and an output tied to the embeddings.
Rotary positions rotate queries and keys in pairs of neighbouring dimensions. Tensors have the names of
JunnYu's RoFormer_pytorch.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import (
    BaseModelOutput,
    MaskedLMOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)


class RoFormerV2Config(PretrainedConfig):
    model_type = "roformer_v2"

    def __init__(
        self,
        vocab_size=12000,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        type_vocab_size=2,
        layer_norm_eps=1e-12,
        rope_theta=10000.0,
        hidden_dropout_prob=0.1,
        **kwargs,
    ):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.type_vocab_size = type_vocab_size
        self.layer_norm_eps = layer_norm_eps
        self.rope_theta = rope_theta
        self.hidden_dropout_prob = hidden_dropout_prob
        super().__init__(**kwargs)


def linear(rows, columns):
    return nn.Linear(rows, columns, bias=False)


class Dense(nn.Module):
    """A linear map under the name `dense`, as in checkpoints."""

    def __init__(self, rows, columns):
        super().__init__()
        self.dense = linear(rows, columns)

    def forward(self, x):
        return self.dense(x)


class Projections(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.query, self.key, self.value = linear(size, size), linear(size, size), linear(size, size)


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.heads = config.num_attention_heads
        self.self = Projections(config.hidden_size)
        self.output = Dense(config.hidden_size, config.hidden_size)

    def forward(self, x, rotary, mask):
        q, k, v = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [rows, heads, tokens, head size]
            for project in (self.self.query, self.self.key, self.self.value)
        )
        out = F.scaled_dot_product_attention(rotate(q, *rotary), rotate(k, *rotary), v, attn_mask=mask)
        return self.output(out.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.eps = config.layer_norm_eps
        self.attention = Attention(config)
        self.intermediate = Dense(config.hidden_size, config.intermediate_size)
        self.output = Dense(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x, rotary, mask):
        x = norm(x + self.dropout(self.attention(x, rotary, mask)), self.eps)
        return norm(x + self.dropout(self.output(F.relu(self.intermediate(x)))), self.eps)


def norm(x, eps):
    return F.rms_norm(x, x.shape[-1:], eps=eps)


def rotary_tables(tokens, head_size, theta, like):
    """Return cosines and sines for pairs of neighbouring dimensions, each [tokens, head size]."""
    computed = torch.promote_types(like.dtype, torch.float32)
    frequencies = theta ** -(torch.arange(0, head_size, 2, dtype=computed, device=like.device) / head_size)
    angles = torch.arange(tokens, dtype=computed, device=like.device)[:, None] * frequencies
    angles = angles.repeat_interleave(2, dim=1)
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def rotate(x, cos, sin):
    turned = torch.stack((-x[..., 1::2], x[..., 0::2]), dim=-1).flatten(-2)
    return x * cos + turned * sin


class Embeddings(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.eps = config.layer_norm_eps
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids, token_type_ids):
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        x = self.word_embeddings(input_ids) + self.token_type_embeddings(token_type_ids)
        return norm(self.dropout(x), self.eps)


class Encoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.layer = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))


class RoFormerV2PreTrainedModel(PreTrainedModel):
    config_class = RoFormerV2Config
    base_model_prefix = "roformer"
    _supports_sdpa = True

    def _init_weights(self, module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            module.weight.data.normal_(std=module.weight.shape[-1] ** -0.5)
        if isinstance(module, nn.Linear) and module.bias is not None:
            module.bias.data.zero_()


class RoFormerV2Model(RoFormerV2PreTrainedModel):
    """Map token ids to hidden states."""

    def __init__(self, config):
        super().__init__(config)
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        self.post_init()

    def get_input_embeddings(self):
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value):
        self.embeddings.word_embeddings = value

    def forward(self, input_ids, attention_mask=None, token_type_ids=None, **kwargs):
        """Map the inputs, each [rows, tokens], to last_hidden_state [rows, tokens, hidden]."""
        config = self.config
        x = self.embeddings(input_ids, token_type_ids)
        mask = None if attention_mask is None else attention_mask[:, None, None].bool()
        rotary = rotary_tables(x.shape[1], config.hidden_size // config.num_attention_heads, config.rope_theta, x)
        for layer in self.encoder.layer:
            x = layer(x, rotary, mask)
        return BaseModelOutput(last_hidden_state=x)


class RoFormerV2ForMaskedLM(RoFormerV2PreTrainedModel):
    """Map token ids to logits; the output has no parameters of its own."""

    def __init__(self, config):
        super().__init__(config)
        self.roformer = RoFormerV2Model(config)
        self.post_init()

    def forward(self, input_ids, attention_mask=None, token_type_ids=None, labels=None, **kwargs):
        hidden = self.roformer(input_ids, attention_mask, token_type_ids).last_hidden_state
        logits = F.linear(hidden, self.roformer.embeddings.word_embeddings.weight)
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return MaskedLMOutput(loss=loss, logits=logits)


class RoFormerV2Classifier(RoFormerV2PreTrainedModel):
    """The parameters of both classifiers."""

    def __init__(self, config):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.roformer = RoFormerV2Model(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()


class RoFormerV2ForSequenceClassification(RoFormerV2Classifier):
    """The first token's hidden state and a linear map to the labels; a single label is a regression."""

    def forward(self, input_ids, attention_mask=None, token_type_ids=None, labels=None, **kwargs):
        hidden = self.roformer(input_ids, attention_mask, token_type_ids).last_hidden_state
        logits, loss = self.classifier(hidden[:, 0]), None
        if labels is not None and self.num_labels == 1:
            loss = F.mse_loss(logits.squeeze(1), labels.to(logits.dtype).flatten())
        elif labels is not None:
            loss = F.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


class RoFormerV2ForTokenClassification(RoFormerV2Classifier):
    """Every token's hidden state and a linear map to the labels."""

    def forward(self, input_ids, attention_mask=None, token_type_ids=None, labels=None, **kwargs):
        logits = self.classifier(self.roformer(input_ids, attention_mask, token_type_ids).last_hidden_state)
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return TokenClassifierOutput(loss=loss, logits=logits)
