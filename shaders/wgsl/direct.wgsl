// A result for each thread of a workgroup of ${ROWS} x ${COLS}, from operands as they lie, ${STEP} inner positions at a time.
@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) group_id: vec3<u32>, @builtin(num_workgroups) group_count: vec3<u32>,
        @builtin(local_invocation_index) local: u32) {
    let group = group_number(group_id, group_count);
    let tiles = params.row_tiles * params.col_tiles;
    if group >= tiles * params.batches {
        return;
    }
    let row = ((group / params.col_tiles) % params.row_tiles) * ${ROWS}u + local / ${COLS}u;
    let col = (group % params.col_tiles) * ${COLS}u + local % ${COLS}u;
    let batch = batch_of(group / tiles);
    let left = lhs_item(batch, row);
    let right = rhs_item(batch, col);
    var sum = ${V}();
    for (var inner = 0u; inner < params.inner; inner += ${STEP}u) {
        sum += ${PRODUCT};
    }
    finish(batch, row, col, sum);
}
