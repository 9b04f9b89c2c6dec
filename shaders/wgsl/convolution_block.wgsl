// ${DOWN} x ${ACROSS} results of one channel along the last two axes for each thread. Every input element that they share is
// read once.
fn input_or_zero(present: bool, at: u32) -> ${V} {
    if present {
        return ${V}(load_input(at));
    }
    return ${V}();
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group_id: vec3<u32>, @builtin(num_workgroups) group_count: vec3<u32>,
        @builtin(local_invocation_index) local: u32) {
    let number = group_number(group_id, group_count) * 256u + local;
    let channel = number / params.block_cols;
    if channel >= params.rows * params.groups {
        return;
    }
    let batch = batch_of(channel / params.rows);
    let left = lhs_item(batch, channel % params.rows);
    let image = (number % params.block_cols) / params.blocks;
    let block = (number % params.block_cols) % params.blocks;
    let across = (params.window[2].w + ${ACROSS}u - 1u) / ${ACROSS}u;
    let down = (params.window[1].w + ${DOWN}u - 1u) / ${DOWN}u;
    let out_x = block / (across * down);
    let out_y = ((block / across) % down) * ${DOWN}u;
    let out_z = (block % across) * ${ACROSS}u;
    let first_x = i32(out_x * params.window[0].x) - bitcast<i32>(params.window[0].z);
    let first_y = i32(out_y * ${STRIDE_Y}u) - bitcast<i32>(params.window[1].z);
    let first_z = i32(out_z * ${STRIDE_Z}u) - bitcast<i32>(params.window[2].z);
    let base = params.input_offset + image * params.input_batch + batch.group * params.input_group;
${SETUP}
    for (var channel_in = 0u; channel_in < params.inner_channels; channel_in += 1u) {
        for (var x = 0u; x < params.source[0].w; x += 1u) {
            let at_x = source_position(0u, first_x, x);
            if at_x < params.source[0].x {
                let plane = base + channel_in * params.input_channel + at_x * params.source[0].y;
                let weights = left.base + channel_in * params.weight_in + x * params.source[0].z;
${MULTIPLY}
            }
        }
    }
${FINISH}
}
