"""What the kernels of linear layers and convolutions share: how they walk tiles (see `spfde.sparse.tiles`)."""

import triton
import triton.language as tl


@triton.jit
def entry_of(entry, first, step, k, IN: tl.constexpr, TOGETHER: tl.constexpr, STACK: tl.constexpr,
             PARTS: tl.constexpr, DEPTH: tl.constexpr):  # fmt: skip
    """(where, column, slot, inside): what the DEPTH lanes `k` of a step multiply.

    STACK > 1: entries side by side, one for every IN lanes. Else one entry, in PARTS steps; `slot` of its first row.
    """
    WIDTH: tl.constexpr = 2 + TOGETHER
    if STACK > 1:
        tl.static_assert(TOGETHER == 1, "rows that share a program are multiplied by one entry at a time")
        at = entry + (first + step * STACK + k // IN) * WIDTH
        column = tl.max_constancy(tl.load(at), IN)
        slot = tl.max_constancy(tl.load(at + 2), IN)
        inside = k % IN
    else:
        at = entry + (first + step // PARTS) * WIDTH
        column = tl.load(at)
        slot = tl.load(at + 2)
        inside = (step % PARTS) * DEPTH + k
    return at, column, slot, inside


@triton.jit
def block_of(values, at, slot, inside, n, OUT: tl.constexpr, IN: tl.constexpr, TOGETHER: tl.constexpr,
             STACK: tl.constexpr, TRANSPOSED: tl.constexpr, WIDE: tl.constexpr):  # fmt: skip
    """The weights [DEPTH, outputs] that `entry_of` found, 0 where a row stores none. WIDE: 32 bits do not count them.

    A block is OUT x IN in the direction of the product; TRANSPOSED, it lies in memory as IN x OUT.
    """
    STEP_OUT: tl.constexpr = 1 if TRANSPOSED else IN
    STEP_IN: tl.constexpr = OUT if TRANSPOSED else 1
    if STACK > 1:
        place = (slot.to(tl.int64) if WIDE else slot) * (OUT * IN) + inside * STEP_IN
        block = tl.load(values + place[:, None] + n[None, :] * STEP_OUT, mask=(slot >= 0)[:, None], other=0.0)
    elif TOGETHER > 1:
        slots = tl.max_constancy(tl.load(at + 2 + n // OUT), OUT)
        place = (slots.to(tl.int64) if WIDE else slots) * (OUT * IN) + (n % OUT) * STEP_OUT
        block = tl.load(values + inside[:, None] * STEP_IN + place[None, :], mask=(slots >= 0)[None, :], other=0.0)
    else:
        place = values + slot.to(tl.int64) * (OUT * IN)
        block = tl.load(place + inside[:, None] * STEP_IN + n[None, :] * STEP_OUT)
    return block


@triton.jit
def store_blocks(acc, out, at, part, blocks, m, n, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, TOGETHER: tl.constexpr,
                 ADD: tl.constexpr):  # fmt: skip
    """Writes the sums acc [inputs, outputs] of the entries `at` to out [parts, blocks, HEIGHT, WIDTH]."""
    slot = tl.zeros_like(acc).to(tl.int32) - 1
    for row in tl.static_range(TOGETHER):
        slot = tl.where((n // HEIGHT == row)[None, :], tl.load(at + 2 + row)[:, None], slot)
    place = (part * blocks + slot) * (HEIGHT * WIDTH) + (n % HEIGHT * WIDTH)[None, :] + (m % WIDTH)[:, None]
    if ADD:
        acc += tl.load(out + place, mask=slot >= 0, other=0.0).to(tl.float32)
    tl.store(out + place, acc.to(out.dtype.element_ty), mask=slot >= 0)


@triton.jit
def store_sums(dy, sums, part, output, batch, rows, stride_dy, steps, OUTPUTS: tl.constexpr, DEPTH: tl.constexpr):
    """Writes the sums over tokens of dY's columns `output` to sums [parts, rows]."""
    total = tl.zeros((OUTPUTS,), tl.float32)
    for step in range(0, steps):
        token = ((part * steps + step) * DEPTH + tl.arange(0, DEPTH))[:, None]
        mask = (token < batch) & (output < rows)[None, :]
        total += tl.sum(tl.load(dy + token * stride_dy + output[None, :], mask=mask, other=0.0).to(tl.float32), 0)
    tl.store(sums + part * rows + output, total.to(sums.dtype.element_ty), mask=output < rows)
