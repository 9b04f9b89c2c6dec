// One result for each thread.
@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group_id: vec3<u32>, @builtin(num_workgroups) group_count: vec3<u32>,
        @builtin(local_invocation_index) local: u32) {
    let number = group_number(group_id, group_count) * 256u + local;
    let rows = params.rows * params.groups;
    if number >= rows * params.cols {
        return;
    }
    let batch = batch_of(number / params.cols / params.rows);
    let row = (number / params.cols) % params.rows;
    let col = number % params.cols;
    let left = lhs_item(batch, row);
    let right = rhs_item(batch, col);
    var sum = ${V}();
    for (var channel = 0u; channel < params.inner_channels; channel += 1u) {
        for (var x = 0u; x < params.source[0].w; x += 1u) {
            for (var y = 0u; y < params.source[1].w; y += 1u) {
                for (var z = 0u; z < params.source[2].w; z += 1u) {
                    let source = source_of(right, channel, vec3<u32>(x, y, z));
                    if source.present {
                        let weight = load_weight(left.base + weight_place(vec4<u32>(x, y, z, channel)));
                        sum += ${V}(weight) * ${V}(load_input(source.at));
                    }
                }
            }
        }
    }
    finish(batch, row, col, sum);
}
