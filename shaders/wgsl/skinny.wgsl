// A product with at most ${ROWS} rows. ${SLOTS} slots of ${THREAD_COLS} columns; each of a slot's ${LANES} lanes sums its share
// of the inner axis, then the lanes' sums are added up as a tree in workgroup memory.
var<workgroup> partial: array<${SUM}, ${PARTIAL}>;

@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) group_id: vec3<u32>, @builtin(num_workgroups) group_count: vec3<u32>,
        @builtin(local_invocation_index) local: u32) {
    let group = group_number(group_id, group_count);
    if group >= params.col_tiles * params.batches {
        return;
    }
    let batch = batch_of(group / params.col_tiles);
    let lane = ${LANE};
    let slot = ${SLOT};
    let col = ((group % params.col_tiles) * ${SLOTS}u + slot) * ${THREAD_COLS}u;
    let right = rhs_item(batch, col);
${SETUP}
    for (var k = lane * ${WIDTH}u; k < params.inner; k += ${STRIDE}u) {
${MULTIPLY}
    }
${REDUCE}
    if lane == 0u {
${FINISH}
    }
}
