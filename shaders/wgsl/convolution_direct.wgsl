// One result for each thread, for groups with too few output channels to fill a tile.
@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group_id: vec3<u32>, @builtin(num_workgroups) group_count: vec3<u32>,
        @builtin(local_invocation_index) local: u32) {
    let group = group_number(group_id, group_count);
    let tiles = params.row_tiles * params.col_tiles;
    if group >= tiles * params.groups {
        return;
    }
    let batch = batch_of(group / tiles);
    let row = (group / params.col_tiles) % params.row_tiles;
    let col = (group % params.col_tiles) * 256u + local;
    let left = lhs_item(batch, row);
    let right = rhs_item(batch, col);
    var sum = ${V}();
    for (var channel = 0u; channel < params.inner_channels; channel += 1u) {
        for (var x = 0u; x < params.source[0].w; x += 1u) {
            for (var y = 0u; y < params.source[1].w; y += 1u) {
                for (var z = 0u; z < params.source[2].w; z += 1u) {
                    let weight = ${V}(load_weight(left.base + channel * params.weight_in
                        + x * params.source[0].z + y * params.source[1].z + z * params.source[2].z));
                    sum += weight * input_value(right, channel, vec3<u32>(x, y, z));
                }
            }
        }
    }
    finish(batch, row, col, sum);
}
