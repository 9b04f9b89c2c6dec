// 32 rows x ${COLS} value columns for a workgroup of 64 threads, 32 keys at a time. A thread has 4 rows; their scores for 4
// keys and their sums for ${VECTORS} x 4 columns. Rows of the tiles are 36 words apart against bank conflicts.
var<workgroup> query_tile: array<f32, 576>;
var<workgroup> key_tile: array<f32, 576>;
var<workgroup> weight_tile: array<f32, 1152>;
var<workgroup> value_tile: array<f32, 1024>;
var<workgroup> half_row: array<f32, 64>;
var<workgroup> row_factor: array<f32, 32>;
${MEMORY}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group_id: vec3<u32>, @builtin(num_workgroups) group_count: vec3<u32>,
        @builtin(local_invocation_index) local: u32) {
    let group = group_number(group_id, group_count);
    let tiles = params.row_tiles * params.col_tiles;
    if group >= tiles * params.batches * params.kv_heads {
        return;
    }
    let place = place_of(group / tiles);
    let first_row = ((group / params.col_tiles) % params.row_tiles) * 32u;
    let first_col = (group % params.col_tiles) * ${COLS}u;
    let thread_row = (local / 8u) * 4u;
    let thread_slot = (local % 8u) * 4u;
${SETUP}
    let own_depth = local % 16u;
    // The softmax of a row is kept by two threads, each for 16 of the 32 keys.
    let own_row = local / 2u;
    let own_half = (local % 2u) * 16u;
    var largest = HIDDEN;
    var total = 0.0;

${RUNS}
    for (var first_key = seen.x; first_key < seen.y; first_key += 32u) {
${KEY_ROWS}
${CLEAR}
        for (var step = 0u; step < params.depth; step += 16u) {
            let at = step + own_depth;
${STAGE}
            workgroupBarrier();
            for (var at = 0u; at < 16u; at += 1u) {
                let k = at * 36u + thread_slot;
                let keys = vec4<f32>(key_tile[k], key_tile[k + 1u], key_tile[k + 2u], key_tile[k + 3u]);
                let q = at * 36u + thread_row;
${SCORES}
            }
            workgroupBarrier();
        }
${FINISH_SCORES}
        workgroupBarrier();

        var half_largest = HIDDEN;
        for (var n = 0u; n < 16u; n += 1u) {
            half_largest = max(half_largest, weight_tile[(own_half + n) * 36u + own_row]);
        }
        half_row[local] = half_largest;
        workgroupBarrier();
        let now_largest = max(largest, max(half_row[own_row * 2u], half_row[own_row * 2u + 1u]));
        let factor = exp(largest - now_largest);
        var half_total = 0.0;
        for (var n = 0u; n < 16u; n += 1u) {
            let at = (own_half + n) * 36u + own_row;
            let w = weight(weight_tile[at], now_largest);
            weight_tile[at] = w;
            half_total += w;
        }
        total = total * factor + half_total;
        largest = now_largest;
        if own_half == 0u {
            row_factor[own_row] = factor;
        }
        workgroupBarrier();
${RESCALE}
        for (var part = 0u; part < 32u; part += ${VALUE_STEP}u) {
            for (var n = 0u; n < 16u; n += 1u) {
                let item = local + n * 64u;
                value_tile[item] = ${VALUE};
            }
            workgroupBarrier();
            for (var n = 0u; n < ${VALUE_STEP}u; n += 1u) {
                let w = (part + n) * 36u + thread_row;
                let v = n * ${COLS}u + thread_slot;
${ACCUMULATE}
            }
            workgroupBarrier();
        }
    }
${RUNS_END}
    half_row[local] = total;
    workgroupBarrier();
${STORE}
}

fn finish(row: Row, col: u32, sum: f32, total: f32) {
    if row.present && col < params.value_depth {
        // A row that sees no key gives 0.
        store_out(row.out + col * params.out_col, select(sum / total, 0.0, total == 0.0));
    }
}
