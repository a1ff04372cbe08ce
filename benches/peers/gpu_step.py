"""The training step of crates/ops/examples/gpu_check/step.rs in PyTorch: f32 weights, bf16 autocast, SDPA, fused AdamW.

Arguments: width heads kv_heads head_dim mlp vocab layers batch length. Prints `eager N` and `compiled N`, tokens/s.
"""

import statistics
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

WIDTH, HEADS, KV, HEAD, MLP, VOCAB, LAYERS, BATCH, LENGTH = map(int, sys.argv[1:10])


def rotate(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1 = nn.RMSNorm(WIDTH, eps=1e-6)
        self.q = nn.Linear(WIDTH, HEADS * HEAD)
        self.k = nn.Linear(WIDTH, KV * HEAD)
        self.v = nn.Linear(WIDTH, KV * HEAD)
        self.o = nn.Linear(HEADS * HEAD, WIDTH, bias=False)
        self.norm2 = nn.RMSNorm(WIDTH, eps=1e-6)
        self.gate = nn.Linear(WIDTH, MLP, bias=False)
        self.up = nn.Linear(WIDTH, MLP, bias=False)
        self.down = nn.Linear(MLP, WIDTH, bias=False)

    def forward(self, x, cos, sin):
        b, t, _ = x.shape
        h = self.norm1(x)
        q = rotate(self.q(h).view(b, t, HEADS, HEAD).transpose(1, 2), cos, sin)
        k = rotate(self.k(h).view(b, t, KV, HEAD).transpose(1, 2), cos, sin)
        v = self.v(h).view(b, t, KV, HEAD).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.o(y.transpose(1, 2).reshape(b, t, HEADS * HEAD))
        h = self.norm2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = nn.RMSNorm(WIDTH, eps=1e-6)
        self.head = nn.Linear(WIDTH, VOCAB, bias=False)
        angles = torch.arange(LENGTH)[:, None] / 1e6 ** (torch.arange(0, HEAD, 2) / HEAD)
        self.register_buffer("cos", angles.cos().to(torch.bfloat16))
        self.register_buffer("sin", angles.sin().to(torch.bfloat16))

    def forward(self, ids, targets):
        x = self.embedding(ids).to(torch.bfloat16)
        for layer in self.layers:
            x = layer(x, self.cos, self.sin)
        return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1), targets)


def measure(model, call):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1, fused=True)
    ids = torch.randint(0, VOCAB, (BATCH, LENGTH), device="cuda")
    targets = torch.randint(0, VOCAB, (BATCH * LENGTH,), device="cuda")

    def step():
        with torch.autocast("cuda", torch.bfloat16):
            loss = call(ids, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    for _ in range(4):
        step()
    times = []
    for _ in range(11):
        torch.cuda.synchronize()
        start = time.perf_counter()
        step()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return BATCH * LENGTH / statistics.median(times)


torch.manual_seed(0)
with torch.device("cuda"):
    model = Model()
print("eager", measure(model, model), flush=True)
print("compiled", measure(model, torch.compile(model)), flush=True)
