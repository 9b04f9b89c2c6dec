// A tile of ${TILE_ROWS} x ${TILE_COLS} results for a workgroup of ${SUBGROUPS} subgroups of ${LANES} threads, each with
// ${DOWN} x ${ACROSS} matrices of ${SIZE} x ${SIZE}. Operands are staged as f16, ${STEP} inner positions at a time, contiguous
// along the axis that is so in storage; the next step's are loaded while a step is multiplied. Results leave through
// workgroup memory, where every thread finds elements of its own.
${TILES}
var<workgroup> results: array<f32, ${RESULTS}>;

@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) group_id: vec3<u32>, @builtin(num_workgroups) group_count: vec3<u32>,
        @builtin(local_invocation_index) local: u32, @builtin(subgroup_id) subgroup: u32,
        @builtin(subgroup_invocation_id) lane: u32) {
    let group = group_number(group_id, group_count);
    let tiles = params.row_tiles * params.col_tiles;
    // Matrices want all threads of a subgroup to arrive, which a return would put in doubt: workgroups beyond the last have
    // rows beyond the last.
    let is_surplus = group >= tiles * ${BATCHES};
    let first_row = select(((group / params.col_tiles) % params.row_tiles) * ${TILE_ROWS}u, params.rows, is_surplus);
    let first_col = (group % params.col_tiles) * ${TILE_COLS}u;
    let whole_batch = select(group / tiles, 0u, is_surplus);
${SPLIT}
    let own_row = (subgroup / ${SUBGROUPS_ACROSS}u) * ${OWN_ROWS}u;
    let own_col = (subgroup % ${SUBGROUPS_ACROSS}u) * ${OWN_COLS}u;
${SETUP}
${LOAD_FIRST}
    for (var step = first_inner; step < last_inner; step += ${STEP}u) {
${STORE}
        workgroupBarrier();
        if step + ${STEP}u < last_inner {
${LOAD_NEXT}
        }
${MULTIPLY}
        workgroupBarrier();
    }
    let own_results = subgroup * ${MATRIX}u;
${FINISH}
}
