// A convolution as a product for each channel group: rows are output channels, columns are batch and output position, the
// inner axis is input channel and kernel position. Always three spatial axes; missing ones have length 1.
// params.source[a] = (input length, input stride, weight stride, kernel length)
// params.window[a] = (stride, dilation, zeros before, output length)
struct Batch { group: u32, out: u32 }

fn batch_of(index: u32) -> Batch {
    return Batch(index, params.out_offset);
}

struct LhsItem { present: bool, base: u32 }

fn lhs_item(batch: Batch, row: u32) -> LhsItem {
    return LhsItem(row < params.rows,
        params.weight_offset + batch.group * params.weight_group + row * params.weight_out);
}

struct RhsItem { present: bool, base: u32, origin: vec3<i32> }

fn rhs_item(batch: Batch, col: u32) -> RhsItem {
    let image = col / params.positions;
    let position = col % params.positions;
    let out = vec3<i32>(vec3<u32>(
        position / (params.window[1].w * params.window[2].w),
        (position / params.window[2].w) % params.window[1].w,
        position % params.window[2].w));
    let before = bitcast<vec3<i32>>(vec3<u32>(params.window[0].z, params.window[1].z, params.window[2].z));
    return RhsItem(col < params.cols,
        params.input_offset + image * params.input_batch + batch.group * params.input_group,
        ${ORIGIN});
}

// Where kernel position `at` of axis `axis` reads the input; the length of the input or more for the zeros around it.
fn source_position(axis: u32, origin: i32, at: u32) -> u32 {
    let reach = i32(at * params.window[axis].y);
${SOURCE}
}

struct Source { present: bool, at: u32 }

// The element of input channel `channel` that a kernel position reads.
fn source_of(item: RhsItem, channel: u32, at: vec3<u32>) -> Source {
    let x = source_position(0u, item.origin.x, at.x);
    let y = source_position(1u, item.origin.y, at.y);
    let z = source_position(2u, item.origin.z, at.z);
    return Source(item.present && x < params.source[0].x && y < params.source[1].x && z < params.source[2].x,
        item.base + channel * params.input_channel
            + x * params.source[0].y + y * params.source[1].y + z * params.source[2].y);
}

// The weight of an input channel (w) and a kernel position (xyz), from that of the first.
fn weight_place(at: vec4<u32>) -> u32 {
    return at.w * params.weight_in + at.x * params.source[0].z + at.y * params.source[1].z + at.z * params.source[2].z;
}

// Kernel position (xyz) of a number that counts these fastest, and what is left (w).
fn kernel_of(number: u32) -> vec4<u32> {
    let last = number / params.source[2].w;
    let middle = last / params.source[1].w;
    return vec4<u32>(middle % params.source[0].w, last % params.source[1].w, number % params.source[2].w,
        middle / params.source[0].w);
}

${VALUES}
fn finish(batch: Batch, row: u32, col: u32, value: ${V}) {
    if row < params.rows && col < params.cols {
        finish_at(batch, batch.group * params.rows + row, col / params.positions, col % params.positions, value);
    }
}

fn finish_at(batch: Batch, channel: u32, image: u32, position: u32, value: ${V}) {
    let at = batch.out + image * params.out_batch + channel * params.out_channel + position;
    epilogue(value, at, channel, position, image);
}

${EPILOGUE}
