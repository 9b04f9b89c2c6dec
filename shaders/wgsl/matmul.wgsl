// out[b, r, c] = sum over k of lhs[b, r, k] * rhs[b, k, c], every operand with strides of its own.
// Strides are two's complement, so that they may be negative. A batch axis is (length, lhs, rhs, out stride).
struct Batch { index: u32, lhs: u32, rhs: u32, out: u32 }

fn batch_of(index: u32) -> Batch {
    var batch = Batch(index, params.lhs_offset, params.rhs_offset, params.out_offset);
    var rest = index;
    for (var axis = 0u; axis < params.batch_rank; axis += 1u) {
        let dim = params.batch_dims[axis];
        let at = rest % dim.x;
        rest /= dim.x;
        batch.lhs += at * dim.y;
        batch.rhs += at * dim.z;
        batch.out += at * dim.w;
    }
    return batch;
}

// Offsets of an inner position in the left and the right operand, where the contracted axis is several.
fn inner_offsets(inner: u32) -> vec2<u32> {
    var offsets = vec2<u32>();
    var rest = inner;
    for (var axis = 0u; axis < params.inner_rank; axis += 1u) {
        let dim = params.inner_dims[axis];
        offsets += (rest % dim.x) * dim.yz;
        rest /= dim.x;
    }
    return offsets;
}

struct Item { present: bool, base: u32 }

fn lhs_item(batch: Batch, row: u32) -> Item {
    return Item(row < params.rows, batch.lhs + row * params.lhs_row);
}

fn rhs_item(batch: Batch, col: u32) -> Item {
    return Item(col < params.cols, batch.rhs + col * params.rhs_col);
}

${VALUES}
fn finish(batch: Batch, row: u32, col: u32, value: ${V}) {
    if row < params.rows && col < params.cols {
        let at = batch.out + row * params.out_row + col * params.out_col;
        epilogue(value, at, ${EPILOGUE_POSITION}, batch.index);
    }
}

${EPILOGUE}
