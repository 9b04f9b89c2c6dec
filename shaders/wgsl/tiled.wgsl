// A tile of ${TILE_ROWS} x ${TILE_COLS} results for a workgroup of ${THREADS} threads, ${THREAD_ROWS} x ${THREAD_COLS} for
// each. Both operands are staged ${STEP} inner positions at a time in workgroup memory, inner position first.
var<workgroup> lhs_tile: array<${V}, ${LHS_SIZE}>;
var<workgroup> rhs_tile: array<${V}, ${RHS_SIZE}>;

@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) group_id: vec3<u32>, @builtin(num_workgroups) group_count: vec3<u32>,
        @builtin(local_invocation_index) local: u32) {
    let group = group_number(group_id, group_count);
    let tiles = params.row_tiles * params.col_tiles;
    if group >= tiles * params.${BATCHES} {
        return;
    }
    let first_row = ((group / params.col_tiles) % params.row_tiles) * ${TILE_ROWS}u;
    let first_col = (group % params.col_tiles) * ${TILE_COLS}u;
    let batch = batch_of(group / tiles);
    let thread_row = (local / ${THREADS_ACROSS}u) * ${THREAD_ROWS}u;
    let thread_col = (local % ${THREADS_ACROSS}u) * ${THREAD_COLS}u;
${SETUP}
    for (var step = 0u; step < params.inner; step += ${STEP}u) {
${STAGE}
        workgroupBarrier();
        for (var k = 0u; k < ${STEP}u; k += ${UNROLL}u) {
${MULTIPLY}
        }
        workgroupBarrier();
    }
${FINISH}
}
