// Joins the results of the key ranges: each range has, for each row, its largest score, its total and its sums.
@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group_id: vec3<u32>, @builtin(num_workgroups) group_count: vec3<u32>,
        @builtin(local_invocation_index) local: u32) {
    let group = group_number(group_id, group_count);
    let rows = params.queries * params.group;
    if group >= rows * params.batches * params.kv_heads {
        return;
    }
    let head = group / rows;
    let row_index = group % rows;
    let place = place_of(head);
    let row = row_of(place, row_index);
    if !row.present {
        return;
    }
    let size = params.value_depth + 2u;
    var largest = HIDDEN;
    for (var split = 0u; split < params.splits; split += 1u) {
        largest = max(largest, load_parts(((head * params.splits + split) * rows + row_index) * size));
    }
    for (var col = local; col < params.value_depth; col += 64u) {
        var sum = 0.0;
        var total = 0.0;
        for (var split = 0u; split < params.splits; split += 1u) {
            let part = ((head * params.splits + split) * rows + row_index) * size;
            let factor = exp(load_parts(part) - largest);
            total += load_parts(part + 1u) * factor;
            sum += load_parts(part + 2u + col) * factor;
        }
        store_out(row.out + col * params.out_col, select(sum / total, 0.0, total == 0.0));
    }
}
