"""PyTorch's side of `cargo xtask bench ops`.

Reads one case per line from stdin, `NAME REPEATS`, runs it that often (forward, backward and, for steps, the optimiser)
and answers with one JSON line: {"seconds": [...]}. The first line it prints says which PyTorch this is. Shapes and
weights are those of `benches/src/cases.rs` and `step.rs`; keep the two in step.
"""

import json
import math
import os
import sys
import time

import torch
import torch.nn as nn
import torch.nn.functional as F

torch.set_num_threads(int(os.environ.get("BENCH_THREADS", os.cpu_count() or 1)))
torch.manual_seed(0)


def numbers(*dims, grad=True, scale=1.0):
    return (torch.randn(*dims) * scale).requires_grad_(grad)


def op(forward, inputs):
    """A closure that runs `forward` and the backward pass of its result."""
    out = forward()
    seed = torch.randn_like(out)

    def run():
        for x in inputs:
            x.grad = None
        forward().backward(seed)

    return run


def linear(n, i, o):
    x, w, b = numbers(n, i), numbers(o, i, scale=0.05), numbers(o)
    return op(lambda: F.linear(x, w, b), [x, w, b])


def linear_gelu(n, i, o):
    x, w, b = numbers(n, i), numbers(o, i, scale=0.05), numbers(o)
    return op(lambda: F.gelu(F.linear(x, w, b), approximate="tanh"), [x, w, b])


def unary(f, n, d):
    x = numbers(n, d)
    return op(lambda: f(x), [x])


def swiglu(n, d):
    gate, up = numbers(n, d), numbers(n, d)
    return op(lambda: F.silu(gate) * up, [gate, up])


def layer_norm(n, d):
    x, w, b = numbers(n, d), numbers(d), numbers(d)
    return op(lambda: F.layer_norm(x, (d,), w, b, 1e-6), [x, w, b])


def rms_norm(n, d):
    x, w = numbers(n, d), numbers(d)
    return op(lambda: F.rms_norm(x, (d,), w, 1e-6), [x, w])


def add_rms_norm(n, d):
    x, r, w = numbers(n, d), numbers(n, d), numbers(d)

    def forward():
        s = x + r
        return s + F.rms_norm(s, (d,), w, 1e-6)

    return op(forward, [x, r, w])


def rotary_tables(t, dh):
    angles = torch.arange(t)[:, None] / 10000.0 ** (torch.arange(0, dh, 2) / dh)
    both = torch.cat([angles, angles], -1)
    return both.cos(), both.sin()


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


def rotary(b, h, t, dh):
    x = numbers(b, h, t, dh)
    cos, sin = rotary_tables(t, dh)
    return op(lambda: rotate(x, cos, sin), [x])


def attention(b, h, t, dh, causal):
    q, k, v = numbers(b, h, t, dh), numbers(b, h, t, dh), numbers(b, h, t, dh)
    return op(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=causal), [q, k, v])


def cross_entropy(n, v):
    logits = numbers(n, v)
    ids = torch.randint(v, (n,))
    return op(lambda: F.cross_entropy(logits, ids, reduction="none"), [logits])


def token_scores(n, v):
    logits = numbers(n, v)
    ids = torch.randint(v, (n,))

    def forward():
        log_probs = F.log_softmax(logits, -1)
        chosen = log_probs.gather(-1, ids[:, None]).squeeze(-1)
        return chosen - (log_probs.exp() * log_probs).sum(-1)

    return op(forward, [logits])


def linear_scores(n, d, v):
    hidden, w = numbers(n, d), numbers(v, d, scale=0.02)
    ids = torch.randint(v, (n,))

    def forward():
        log_probs = F.log_softmax(F.linear(hidden, w), -1)
        chosen = log_probs.gather(-1, ids[:, None]).squeeze(-1)
        return chosen - (log_probs.exp() * log_probs).sum(-1)

    return op(forward, [hidden, w])


def embedding(v, d, n):
    table = numbers(v, d)
    ids = torch.randint(v, (n,))
    return op(lambda: F.embedding(ids, table), [table])


def patch_embedding(b, s, p, d):
    images, w, bias = numbers(b, 3, s, s, grad=False), numbers(d, 3, p, p), numbers(d)
    return op(lambda: F.conv2d(images, w, bias, stride=p).flatten(2).transpose(1, 2), [w, bias])


def adamw(n):
    # As many tensors as a transformer of that size has, for both sides the same.
    params = [nn.Parameter(torch.randn(n // 64)) for _ in range(64)]
    for p in params:
        p.grad = torch.randn_like(p)
    optimizer = make_optimizer(params)

    def run():
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()

    return run


def make_optimizer(params):
    """PyTorch's fused AdamW, its fastest on CPU; BENCH_OPTIMIZER=default takes the one most programs use."""
    fused = os.environ.get("BENCH_OPTIMIZER", "fused") == "fused"
    return torch.optim.AdamW(params, lr=1e-4, weight_decay=0.01, **({"fused": True} if fused else {}))


class RmsNorm(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d))

    def forward(self, x):
        return F.rms_norm(x, (x.shape[-1],), self.weight, 1e-6)


class LlamaBlock(nn.Module):
    def __init__(self, d, heads, m, causal):
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1, self.norm2 = RmsNorm(d), RmsNorm(d)
        self.q, self.k, self.v, self.o = (nn.Linear(d, d, bias=False) for _ in range(4))
        self.gate, self.up = nn.Linear(d, m, bias=False), nn.Linear(d, m, bias=False)
        self.down = nn.Linear(m, d, bias=False)

    def forward(self, x, tables, mask=None, read=None):
        b, t, d = x.shape
        h = self.norm1(x)
        part = (lambda y: y) if read is None else (lambda y: y[:, read[0] : read[0] + read[1]])
        split = lambda y: y.view(b, -1, self.heads, d // self.heads).transpose(1, 2)
        q, k, v = split(self.q(part(h))), split(self.k(h)), split(self.v(h))
        cos, sin = tables
        first, count = (0, t) if read is None else read
        q = rotate(q, cos[first : first + count], sin[first : first + count])
        k = rotate(k, cos, sin)
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=self.causal)
        x = part(x) + self.o(seen.transpose(1, 2).reshape(b, count, d))
        h = self.norm2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Llama(nn.Module):
    def __init__(self, layers, d, heads, m, v, t, causal=True):
        super().__init__()
        self.embed = nn.Embedding(v, d)
        self.blocks = nn.ModuleList(LlamaBlock(d, heads, m, causal) for _ in range(layers))
        self.norm = RmsNorm(d)
        self.head = nn.Linear(d, v, bias=False)
        self.tables = rotary_tables(t, d // heads)
        nn.init.normal_(self.head.weight, std=0.02)

    def forward(self, ids):
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x, self.tables)
        return self.head(self.norm(x))


def stepper(model, loss):
    """One training step: forward, backward, clipping, AdamW."""
    optimizer = make_optimizer(model.parameters())

    def run():
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return run


def llama_step(layers, d, heads, m, v, b, t):
    model = Llama(layers, d, heads, m, v, t)
    ids = torch.randint(v, (b, t))
    targets = torch.randint(v, (b * t,))
    return stepper(model, lambda: F.cross_entropy(model(ids).flatten(0, 1), targets))


class VitBlock(nn.Module):
    def __init__(self, d, heads, m):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(d, 1e-6), nn.LayerNorm(d, 1e-6)
        self.q, self.k, self.v, self.o = (nn.Linear(d, d) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(d, m), nn.Linear(m, d)

    def forward(self, x):
        b, n, d = x.shape
        h = self.norm1(x)
        split = lambda y: y.view(b, n, self.heads, d // self.heads).transpose(1, 2)
        seen = F.scaled_dot_product_attention(split(self.q(h)), split(self.k(h)), split(self.v(h)))
        x = x + self.o(seen.transpose(1, 2).reshape(b, n, d))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x)), approximate="tanh"))


class Vla(nn.Module):
    """The quickstart's network: `VlaConfig::quickstart` with patches of 16 px and learned placeholders."""

    def __init__(self):
        super().__init__()
        dv, d, patch, size = 96, 128, 16, 64
        self.patch = nn.Conv2d(3, dv, patch, patch)
        self.positions = nn.Parameter(torch.randn((size // patch) ** 2, dv) * 0.1)
        self.vision = nn.ModuleList(VitBlock(dv, 3, 256) for _ in range(3))
        self.post = nn.LayerNorm(dv, 1e-6)
        self.project = nn.Sequential(
            nn.Linear(dv, 4 * dv), nn.GELU(), nn.Linear(4 * dv, d), nn.GELU(), nn.Linear(d, d)
        )
        self.proprio = nn.Sequential(nn.Linear(8, d), nn.GELU(), nn.Linear(d, d))
        self.embed = nn.Embedding(768, d)
        self.queries = nn.Parameter(torch.randn(56, d) * 0.2)
        self.blocks = nn.ModuleList(LlamaBlock(d, 4, 352, False) for _ in range(4))
        self.norm = RmsNorm(d)
        self.head = nn.Parameter(torch.randn(768, d) * 0.02)
        self.length = 1 + 2 * 16 + 1 + 20 + 56 + 1
        self.tables = rotary_tables(self.length, d // 4)

    def forward(self, pixels, proprio, ids, valid):
        b = pixels.shape[0]
        x = self.patch(pixels.flatten(0, 1)).flatten(2).transpose(1, 2) + self.positions
        for block in self.vision:
            x = block(x)
        patches = self.project(self.post(x)).reshape(b, 32, -1)
        tokens = self.embed(ids)
        x = torch.cat(
            [
                tokens[:, :1],
                patches,
                self.proprio(proprio)[:, None],
                tokens[:, 1:21],
                self.queries.expand(b, -1, -1),
                tokens[:, 21:],
            ],
            1,
        )
        mask = valid[:, None, None, :]
        read = (self.length - 1 - 56 - 1, 56)
        for i, block in enumerate(self.blocks):
            x = block(x, self.tables, mask, read if i + 1 == len(self.blocks) else None)
        return F.linear(self.norm(x), self.head[512:])


def vla_step(b):
    model = Vla()
    pixels, proprio = torch.randn(b, 2, 3, 64, 64), torch.randn(b, 8)
    ids = torch.randint(512, (b, 22))
    valid = torch.ones(b, model.length, dtype=torch.bool)
    valid[:, 34:42] = False  # prompts of 12 tokens, padded on the left
    bins = torch.randint(256, (b * 56,))
    return stepper(
        model, lambda: F.cross_entropy(model(pixels, proprio, ids, valid).flatten(0, 1), bins)
    )


def matmul(n, i, o):
    x, w = torch.randn(n, i), torch.randn(i, o)
    return lambda: x @ w


def copy(n):
    x, y = torch.randn(n), torch.empty(n)
    return lambda: y.copy_(x)


CASES = {
    "linear": linear,
    "linear_gelu": linear_gelu,
    "gelu_tanh": lambda n, d: unary(lambda x: F.gelu(x, approximate="tanh"), n, d),
    "gelu_erf": lambda n, d: unary(F.gelu, n, d),
    "silu": lambda n, d: unary(F.silu, n, d),
    "swiglu": swiglu,
    "layer_norm": layer_norm,
    "rms_norm": rms_norm,
    "add_rms_norm": add_rms_norm,
    "rotary": rotary,
    "attention_full": lambda *dims: attention(*dims, causal=False),
    "attention_causal": lambda *dims: attention(*dims, causal=True),
    "cross_entropy": cross_entropy,
    "token_scores": token_scores,
    "linear_scores": linear_scores,
    "embedding": embedding,
    "patch_embedding": patch_embedding,
    "adamw": adamw,
    "llama_step": llama_step,
    "vla_step": vla_step,
    "matmul": matmul,
    "copy": copy,
}


def main():
    print(json.dumps({"version": torch.__version__, "threads": torch.get_num_threads()}), flush=True)
    name, run = None, None
    for line in sys.stdin:
        case, repeats = line.rsplit(None, 1)
        if case != name:
            # The last case's memory goes before the next one's comes.
            run = None
            kind, *dims = case.split()
            name, run = case, CASES[kind](*map(int, dims))
            run()
        seconds = []
        for _ in range(int(repeats)):
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
        print(json.dumps({"seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
