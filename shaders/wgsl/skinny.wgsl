// A product with at most ${ROWS} rows. ${SLOTS} slots of ${THREAD_COLS} columns; each of a slot's ${LANES} lanes sums its share
// of the inner axis, then the lanes' sums are added up.
var<workgroup> partial: array<${SUM}, ${PARTIAL}>;

@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) group_id: vec3<u32>, @builtin(num_workgroups) group_count: vec3<u32>,
        @builtin(local_invocation_index) local: u32${BUILTINS}) {
    let group = group_number(group_id, group_count);
    if group >= params.col_tiles * ${BATCHES} {
        return;
    }
    let whole_batch = group / params.col_tiles;
${SPLIT}
    let lane = ${LANE};
    let slot = ${SLOT};
    let col = ((group % params.col_tiles) * ${SLOTS}u + slot) * ${THREAD_COLS}u;
${SETUP}
    for (var k = first_inner + lane * ${ALONG}u; k < last_inner; k += ${STEP}u) {
${MULTIPLY}
    }
${REDUCE}
}
