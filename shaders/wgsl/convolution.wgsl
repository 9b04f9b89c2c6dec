// A convolution as a product for each channel group: rows are output channels, columns are batch and output position, the
// inner axis is input channel and kernel position. Always three spatial axes; missing ones have length 1.
// params.source[a] = (input length, input stride, weight stride, kernel length)
// params.window[a] = (stride, dilation, zeros before, output length)
struct Batch { group: u32 }

fn batch_of(index: u32) -> Batch {
    return Batch(index);
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

fn input_value(item: RhsItem, channel: u32, at: vec3<u32>) -> ${V} {
    let x = source_position(0u, item.origin.x, at.x);
    let y = source_position(1u, item.origin.y, at.y);
    let z = source_position(2u, item.origin.z, at.z);
    if item.present && x < params.source[0].x && y < params.source[1].x && z < params.source[2].x {
        return ${V}(load_input(item.base + channel * params.input_channel
            + x * params.source[0].y + y * params.source[1].y + z * params.source[2].y));
    }
    return ${V}();
}

// Input channel (w) and kernel position (xyz) of an inner position.
fn inner_of(inner: u32) -> vec4<u32> {
    let last = inner / params.source[2].w;
    let middle = last / params.source[1].w;
    return vec4<u32>(middle % params.source[0].w, last % params.source[1].w, inner % params.source[2].w,
        middle / params.source[0].w);
}

${WEIGHTS}
fn rhs_value(item: RhsItem, inner: u32) -> ${V} {
    if inner >= params.inner {
        return ${V}();
    }
    let at = inner_of(inner);
    return input_value(item, at.w, at.xyz);
}

fn finish(batch: Batch, row: u32, col: u32, value: ${V}) {
    if row < params.rows && col < params.cols {
        let image = col / params.positions;
        let position = col % params.positions;
        let channel = batch.group * params.rows + row;
        let at = params.out_offset + image * params.out_batch + channel * params.out_channel + position;
        epilogue(value, at, channel, position, image);
    }
}

${EPILOGUE}
