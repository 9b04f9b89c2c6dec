// ${ROWS} rows x ${COLS} value columns for a workgroup of ${SUBGROUPS} subgroups of ${LANES} threads, ${KEYS} keys at a time,
// in matrices of ${SIZE} x ${SIZE}. A subgroup has ${OWN_ROWS} rows; queries and sums stay in its matrices. Scores pass
// through workgroup memory, where ${PARTS} threads keep the softmax of a row.
var<workgroup> key_tile: array<f16, ${KEY_TILE}>;
var<workgroup> value_tile: array<f16, ${VALUE_TILE}>;
var<workgroup> score_tile: array<f32, ${SCORE_TILE}>;
var<workgroup> weight_tile: array<f16, ${WEIGHT_TILE}>;
var<workgroup> grown: array<u32, ${SUBGROUPS}>;

// How far above its reference a score may be before the sums are rescaled: its weight is e^8 then, well within f16.
const GROWTH = 8.0;

fn stage_queries(place: Place, first_row: u32, first_depth: u32, local: u32) {
    for (var item = local; item < ${QUERY_FOURS}u; item += ${THREADS}u) {
        let line = item / ${KEYS_FOURS}u;
        let column = (item % ${KEYS_FOURS}u) * 4u;
        let row = row_of(place, first_row + line);
        var halves = vec4<f16>();
        if row.present && first_depth + column < params.depth {
            halves = vec4<f16>(load4_query(row.source + first_depth + column));
        }
        let at = line * ${WEIGHT_PITCH}u + column;
        weight_tile[at] = halves.x;
        weight_tile[at + 1u] = halves.y;
        weight_tile[at + 2u] = halves.z;
        weight_tile[at + 3u] = halves.w;
    }
}

fn stage_keys(place: Place, first_key: u32, local: u32) {
    for (var item = local; item < ${KEY_FOURS}u; item += ${THREADS}u) {
        let line = item / ${DEPTH_FOURS}u;
        let column = (item % ${DEPTH_FOURS}u) * 4u;
        let key = first_key + line;
        var halves = vec4<f16>();
        if key < params.keys && column < params.depth {
            halves = vec4<f16>(load4_key(place.key + key * params.key_row + column));
        }
        let at = line * ${KEY_PITCH}u + column;
        key_tile[at] = halves.x;
        key_tile[at + 1u] = halves.y;
        key_tile[at + 2u] = halves.z;
        key_tile[at + 3u] = halves.w;
    }
}

fn stage_values(place: Place, first_key: u32, first_col: u32, local: u32) {
    for (var item = local; item < ${VALUE_FOURS}u; item += ${THREADS}u) {
        let line = item / ${COLS_FOURS}u;
        let column = (item % ${COLS_FOURS}u) * 4u;
        let key = first_key + line;
        var halves = vec4<f16>();
        if key < params.keys && first_col + column < params.value_depth {
            halves = vec4<f16>(load4_value(place.value + key * params.value_row + first_col + column));
        }
        let at = line * ${VALUE_PITCH}u + column;
        value_tile[at] = halves.x;
        value_tile[at + 1u] = halves.y;
        value_tile[at + 2u] = halves.z;
        value_tile[at + 3u] = halves.w;
    }
}

@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) group_id: vec3<u32>, @builtin(num_workgroups) group_count: vec3<u32>,
        @builtin(local_invocation_index) local: u32, @builtin(subgroup_id) subgroup: u32,
        @builtin(subgroup_invocation_id) lane: u32) {
    let group = group_number(group_id, group_count);
    let tiles = params.row_tiles * params.col_tiles;
    // Matrices want all threads of a subgroup to arrive, which a return would put in doubt: workgroups beyond the last have
    // rows beyond the last and no keys.
    let is_surplus = group >= tiles * params.batches * params.kv_heads;
    let place = place_of(select(group / tiles, 0u, is_surplus));
    let rows = params.queries * params.group;
    let first_row = select(((group / params.col_tiles) % params.row_tiles) * ${ROWS}u, rows, is_surplus);
    let first_col = (group % params.col_tiles) * ${COLS}u;
    let own = subgroup * ${OWN_ROWS}u;
    let part = (lane % ${PARTS}u) * 4u;
    let own_line = own + lane / ${PARTS}u;
    let own_scores = own_line * ${SCORE_PITCH}u + part;
    let own_weights = own_line * ${WEIGHT_PITCH}u + part;
    let row = row_of(place, first_row + own_line);
    var reference = HIDDEN;
    var total = 0.0;
${QUERIES}
    let seen = keys_of_rows(first_row, ${ROWS}u);
    let last_key = select(seen.y, 0u, is_surplus);
    for (var first_key = seen.x; first_key < last_key; first_key += ${KEYS}u) {
        stage_keys(place, first_key, local);
        stage_values(place, first_key, first_col, local);
        workgroupBarrier();
${SCORES}
        workgroupBarrier();
${FINISH_SCORES}
${LARGEST}
        let is_grown = largest > reference + GROWTH;
        let now_reference = select(reference, largest, is_grown);
        let factor = exp(reference - now_reference);
        reference = now_reference;
        total *= factor;
${WEIGHTS}
        let is_any_grown = subgroupAny(is_grown);
        if lane == 0u {
            grown[subgroup] = select(0u, 1u, is_any_grown);
        }
        let all_grown = workgroupUniformLoad(&grown);
        if (${ANY_GROWN}) != 0u {
${RESCALE}
        }
${ACCUMULATE}
        workgroupBarrier();
    }
${TOTAL}
${STORE}
}
