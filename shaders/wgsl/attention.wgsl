// Scores and softmax without storing the scores. One key head at a time; a row is a query of one of the query heads that
// share it, so that keys and values are read once for all of them.
const HIDDEN = -3.402823e38;

struct Place { batch: u32, kv_head: u32, key: u32, value: u32 }

fn place_of(index: u32) -> Place {
    let batch = index / params.kv_heads;
    let kv_head = index % params.kv_heads;
    return Place(batch, kv_head,
        params.key_offset + batch * params.key_batch + kv_head * params.key_head,
        params.value_offset + batch * params.value_batch + kv_head * params.value_head);
}

// The keys that a query sees: the first and the one after the last.
fn keys_of(query: u32) -> vec2<u32> {
    let position = bitcast<i32>(query);
    let room = bitcast<i32>(params.keys) - position;
    let first = bitcast<i32>(params.first_distance);
    let last = bitcast<i32>(params.last_distance);
    var seen = vec2<u32>(0u, params.keys);
    // Distances are compared with what is left before they are added to anything: sums stay within the keys.
    if params.bounded_below != 0u {
        seen.x = select(bitcast<u32>(max(position + min(first, room), 0)), params.keys, first >= room);
    }
    if params.bounded_above != 0u && last < room - 1 {
        seen.y = bitcast<u32>(max(position + last + 1, 0));
    }
    return seen;
}

// The keys that any of some neighbouring rows sees.
fn keys_of_rows(first_row: u32, rows: u32) -> vec2<u32> {
    let last_query = min((first_row + rows - 1u) / params.group, params.queries - 1u);
    return vec2<u32>(keys_of(first_row / params.group).x, keys_of(last_query).y);
}

struct Row { present: bool, first_key: u32, key_count: u32, source: u32, mask: u32, out: u32 }

fn row_of(place: Place, index: u32) -> Row {
    let query = index / params.group;
    let head = place.kv_head * params.group + index % params.group;
    let seen = keys_of(query);
    let present = query < params.queries;
    return Row(present, seen.x, select(0u, seen.y - seen.x, present && seen.x < seen.y),
        params.query_offset + place.batch * params.query_batch + head * params.query_head + query * params.query_row,
        params.mask_offset + place.batch * params.mask_batch + head * params.mask_head + query * params.mask_row,
        params.out_offset + place.batch * params.out_batch + head * params.out_head + query * params.out_row);
}

// The score that softmax sees, or HIDDEN.
fn finished_score(raw: f32, row: Row, key: u32) -> f32 {
    if key - row.first_key >= row.key_count {
        return HIDDEN;
    }
    var score = raw * bitcast<f32>(params.scale);
    let cap = bitcast<f32>(params.softcap);
    if cap != 0.0 {
        // Beyond 15 tanh is 1 in f32, and some drivers' tanh overflows far out.
        score = cap * tanh(clamp(score / cap, -15.0, 15.0));
    }
${MASK}
    return score;
}

// softmax's numerator; `largest` is the largest score so far.
fn weight(score: f32, largest: f32) -> f32 {
    return select(exp(score - largest), 0.0, score == HIDDEN);
}

fn query_value(row: Row, at: u32) -> f32 {
    if row.present && at < params.depth {
        return load_query(row.source + at * params.query_depth);
    }
    return 0.0;
}

fn key_value(place: Place, key: u32, at: u32) -> f32 {
    if key < params.keys && at < params.depth {
        return load_key(place.key + key * params.key_row + at * params.key_depth);
    }
    return 0.0;
}

fn value_value(place: Place, key: u32, at: u32) -> f32 {
    if key < params.keys && at < params.value_depth {
        return load_value(place.value + key * params.value_row + at * params.value_col);
    }
    return 0.0;
}
