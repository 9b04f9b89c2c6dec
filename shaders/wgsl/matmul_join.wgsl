// Adds up the parts of a product whose inner axis was divided, always in the same order. Parts lie one after the other, each
// dense: batches, rows, columns.
@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group_id: vec3<u32>, @builtin(num_workgroups) group_count: vec3<u32>,
        @builtin(local_invocation_index) local: u32) {
    let at = group_number(group_id, group_count) * 256u + local;
    let size = params.batches * params.rows * params.cols;
    if at >= size {
        return;
    }
    var sum = load_parts(at);
    for (var split = 1u; split < params.splits; split += 1u) {
        sum += load_parts(split * size + at);
    }
    let col = at % params.cols;
    let rest = at / params.cols;
    finish(batch_of(rest / params.rows), rest % params.rows, col, sum);
}
