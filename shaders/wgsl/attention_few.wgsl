// At most ${ROWS} rows. 64 threads have a key each for the scores and ${COLS_EACH} value columns each for the sums. The keys
// are divided into `splits` ranges, a workgroup for each; with more than one, their results are joined by another kernel.
var<workgroup> queries: array<f32, ${QUERY_SIZE}>;
var<workgroup> weights: array<f32, ${WEIGHT_SIZE}>;
var<workgroup> tree: array<f32, ${WEIGHT_SIZE}>;
${MEMORY}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group_id: vec3<u32>, @builtin(num_workgroups) group_count: vec3<u32>,
        @builtin(local_invocation_index) local: u32) {
    let group = group_number(group_id, group_count);
    let pieces = params.splits * params.col_tiles;
    if group >= pieces * params.batches * params.kv_heads {
        return;
    }
    let place = place_of(group / pieces);
    let split = (group / params.col_tiles) % params.splits;
    let first_col = (group % params.col_tiles) * ${COLS}u;
${RANGE}
${SETUP}
    for (var item = local; item < params.depth; item += 64u) {
${STAGE_QUERIES}
    }
    workgroupBarrier();

    for (var first_key = start_key; first_key < end_key; first_key += 64u) {
        let key = first_key + local;
${KEY_ROWS}
${CLEAR}
        if key < end_key {
            for (var at = 0u; at < params.depth; at += ${KEY_STEP}u) {
                let k = ${KEY_LOAD};
${SCORES}
            }
${FINISH_SCORES}
        }
${TREE_MAX}
${WEIGHTS}
        workgroupBarrier();
        let visible = min(64u, end_key - first_key);
        // The weights beyond are 0.
        for (var n = 0u; n < visible; n += 4u) {
${ACCUMULATE}
        }
        workgroupBarrier();
    }
${TREE_SUM}
${STORE}
}
