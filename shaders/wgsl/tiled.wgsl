// A tile of ${TILE_ROWS} x ${TILE_COLS} results for a workgroup of ${THREADS} threads, ${THREAD_ROWS} x ${THREAD_COLS} for
// each, in blocks of 4 x 4. Both operands are staged ${STEP} inner positions at a time, inner position first; the next step's
// are loaded while a step is multiplied.
${TILES}
@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) group_id: vec3<u32>, @builtin(num_workgroups) group_count: vec3<u32>,
        @builtin(local_invocation_index) local: u32) {
    let group = group_number(group_id, group_count);
    let tiles = params.row_tiles * params.col_tiles;
    if group >= tiles * ${BATCHES} {
        return;
    }
    let first_row = ((group / params.col_tiles) % params.row_tiles) * ${TILE_ROWS}u;
    let first_col = (group % params.col_tiles) * ${TILE_COLS}u;
    let whole_batch = group / tiles;
${SPLIT}
    let thread_row = (local / ${THREADS_ACROSS}u) * 4u;
    let thread_col = (local % ${THREADS_ACROSS}u) * 4u;
${SETUP}
${LOAD_FIRST}
    for (var step = first_inner; step < last_inner; step += ${STEP}u) {
${STORE}
        workgroupBarrier();
        if step + ${STEP}u < last_inner {
${LOAD_NEXT}
        }
        for (var k = 0u; k < ${STEP}u; k += ${UNROLL}u) {
${MULTIPLY}
        }
        workgroupBarrier();
    }
${FINISH}
}
